"""Where the words of a message stand in the text that a chat template makes of a conversation.

A template may trim words, escape them, or write them beside its own in any place. So two renderings
are compared that differ in the words only: what is before and after them is the template's, and
what is between is what the template makes of the words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Literal, NamedTuple, TypeAlias

from streamsink.errors import ModelError, UsageError, setting

Part: TypeAlias = tuple[str, bool]
"""Text, and whether control tokens are read in it: in what a person typed there are none."""

Role: TypeAlias = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    """What somebody says in a conversation.

    Attributes
    ----------
    role : {"system", "user", "assistant"}
        Who.
    content : str
        What.
    thought : str
        What an assistant thought before.
    """

    role: Role
    content: str
    thought: str = ""


Render: TypeAlias = Callable[[Sequence[Message]], str]


class Span(NamedTuple):
    """A range of characters of a text, half-open."""

    start: int
    stop: int

    def moved(self, by: int) -> Span:
        """The same range in a text that begins elsewhere."""
        return Span(self.start + by, self.stop + by)


class Refusal(ModelError):
    """The template itself refuses a conversation, in words of its own."""


class Lost(Exception):
    """A template does not write some words once and whole; the text says what becomes of them."""


def find(
    render: Render, messages: Sequence[Message], at: int, text: str, *, before: str = ""
) -> Span:
    """Where the words of a message stand in a text.

    Parameters
    ----------
    render : callable
        Gives the text of a conversation.
    messages : sequence of Message
        The conversation.
    at : int
        The place of the message in it.
    text : str
        What ``render`` gives for it.
    before : str
        With what the message begins that is not looked for.

    Raises
    ------
    Lost
        They do not stand there once and whole.
    """
    words = messages[at].content.removeprefix(before)
    marks = stand_ins(message.content for message in messages)
    head, tail = next(marks), next(marks)

    def marked(content: str) -> str:
        changed = replace(messages[at], content=before + content)
        try:
            return render([*messages[:at], changed, *messages[at + 1 :]])
        except Refusal:
            return ""

    around = marked(head + words + tail)
    span = _between(text, around, head, tail)
    if span is None:
        # A template may look at how words begin and end, as it does for the results of a tool:
        # then a mark amid them tells, and they stand as they are.
        half = len(words) // 2
        span = _amid(text, marked(words[:half] + head + words[half:]), head, words, half)
        if span and _copied(words, text[: span.start] + "\0" + text[span.stop :], marked(head)):
            raise Lost("it writes a part of the words twice")
    if span is None:
        # Or it may look at how many they are: others of the same lengths tell.
        masked = _MASKED.sub(lambda found: _mask(found.group()), words)
        span = _instead(text, marked(masked), masked, words)
    if span is None:
        raise Lost(_what_became(around.count(head), around.count(tail)))
    return span


def _between(text: str, marked: str, head: str, tail: str) -> Span | None:
    """The span of words in a text, by another that has marks around the words."""
    before, found, rest = marked.partition(head)
    _, ended, after = rest.partition(tail)
    if not found or not ended or marked.count(head) > 1 or marked.count(tail) > 1:
        return None
    span = Span(len(before), len(text) - len(after))
    same = text.startswith(before) and text.endswith(after) and span.start <= span.stop
    return span if same else None


def _amid(text: str, marked: str, mark: str, words: str, half: int) -> Span | None:
    """The span of words in a text, by another that has a mark amid the words."""
    before, found, after = marked.partition(mark)
    if not found or before + after != text:
        return None
    for left in (words[:half], words[:half].lstrip()):
        for right in (words[half:], words[half:].rstrip()):
            if before.endswith(left) and after.startswith(right):
                return Span(len(before) - len(left), len(before) + len(right))
    return None


def _copied(words: str, around: str, otherwise: str) -> bool:
    """Whether some of what may be a control token stands around the words too, by these words."""
    return any(
        around.count(piece) > otherwise.count(piece)
        for piece in {words[at : at + 4] for at in range(max(1, len(words) - 3))}
        if _BRACKETS.search(piece)
    )


def _instead(text: str, marked: str, mask: str, words: str) -> Span | None:
    """The span of words in a text, by another that has others of the same lengths instead."""
    for trim in (str, str.strip) if mask.strip() else ():
        before, found, after = marked.partition(trim(mask))
        if found and trim(mask) not in after and f"{before}{trim(words)}{after}" == text:
            return Span(len(before), len(before) + len(found))
    return None


def _mask(word: str) -> str:
    """Digits that stand in for a word of their number, as `stand_ins` has them."""
    return ("1" + "2345678954326" * (len(word) // 12 + 1))[: len(word)]


def _what_became(heads: int, tails: int) -> str:
    if heads == tails == 0:
        return "it leaves words out"
    if heads > 1 or tails > 1:
        return f"it writes words {max(heads, tails)} times"
    return "it leaves out a part" if heads != tails else "it reads words as its own"


def stand_ins(texts: Iterable[str] = ()) -> Iterator[str]:
    """Words that stand in for others, and occur in none of some texts.

    They are of digits, which no filter for case, spaces, HTML or JSON changes. The first digit
    occurs in no other place, so that none overlaps with itself or another.
    """
    taken = "\n".join(texts)
    for n in count(0o1234567):
        word = "1" + f"{n:09o}".translate(_DIGITS)
        if word not in taken:
            yield word


_BRACKETS = re.compile(r"[<>\[\]|｜]")
_MASKED = re.compile(r"\S+")
_DIGITS = str.maketrans("01234567", "23456789")


def parts(text: str, spans: Iterable[Span]) -> list[Part]:
    """Cut a text at the words of people."""
    cut: list[Part] = []
    end = 0
    for start, stop in sorted(spans):
        cut += [(text[end:start], True), (text[start:stop], False)]
        end = stop
    return [part for part in [*cut, (text[end:], True)] if part[0]]


def common_start(first: str, second: str) -> str:
    """The longest text with which both begin."""
    pairs = enumerate(zip(first, second, strict=False))
    return first[: next((at for at, (a, b) in pairs if a != b), min(len(first), len(second)))]


def common_end(first: str, second: str) -> str:
    """The longest text with which both end."""
    return common_start(first[::-1], second[::-1])[::-1]


def placed(render: Render, messages: Sequence[Message], at: int, text: str) -> Span:
    """Where the words of a message stand in the text of its conversation.

    Raises
    ------
    UsageError
        The template does not write them, or takes no such system prompt.
    """
    try:
        return find(render, messages, at, text)
    except Lost as lost:
        if messages[at].role == "system":
            raise no_system(str(lost)) from None
        raise unwritten(str(lost)) from None


def unwritten(why: str) -> UsageError:
    """The error that words are which a template does not write."""
    return UsageError(
        f"the model's chat template does not write all that was said: {why} (another "
        f"{setting('chat_template')} may)"
    )


def no_system(why: str) -> UsageError:
    """The error that a system prompt is which a template does not take."""
    return UsageError(
        f"the model's chat template takes no such system prompt: {why} "
        f"(leave out {setting('system')}, or choose another {setting('chat_template')})"
    )
