"""Where the words of a message stand in the text that a chat template makes of a conversation.

A template may trim words, escape them, or write them beside its own in any place. So two renderings
are compared that differ in the words only: what is before and after them is the template's, and
what is between is what the template makes of the words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Literal, NamedTuple, TypeAlias

from streamsink.errors import ModelError

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
    # Marks around the words tell both ends. A template may look at how words begin or end, as for
    # the results of a tool; then the mark at the other end tells, and the words stand as they are.
    lost = ""
    for left, right in ((head, tail), ("", tail), (head, "")):
        marked = replace(messages[at], content=before + left + words + right)
        try:
            found = render([*messages[:at], marked, *messages[at + 1 :]])
        except Refusal as error:
            lost = lost or str(error)
            continue
        span = _between(text, found, words, left, right)
        if span:
            return span
        lost = lost or _what_became(found.count(head), found.count(tail))
    raise Lost(lost)


def _what_became(heads: int, tails: int) -> str:
    if heads == tails == 0:
        return "it leaves words out"
    if heads > 1 or tails > 1:
        return f"it writes words {max(heads, tails)} times"
    return "it leaves out a part" if heads != tails else "it reads words as its own"


def _between(text: str, marked: str, words: str, head: str, tail: str) -> Span | None:
    """The span of words in a text, by another that has marks around the words."""
    if any(mark and marked.count(mark) != 1 for mark in (head, tail)):
        return None
    before = marked[: marked.index(head)] if head else ""
    after = marked[marked.index(tail) + len(tail) :] if tail else ""
    start, stop = len(before), len(text) - len(after)
    if start > stop or not (text.startswith(before) and text.endswith(after)):
        return None
    if head and tail:
        return Span(start, stop) if marked.index(head) < marked.index(tail) else None
    for spelled in (words, words.lstrip(), words.rstrip(), words.strip()):
        span = Span(start, start + len(spelled)) if head else Span(stop - len(spelled), stop)
        around = marked.startswith(text[: span.start]) and marked.endswith(text[span.stop :])
        if around and text[span.start : span.stop] == spelled:
            return span
    return None


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
