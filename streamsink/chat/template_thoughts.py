"""How a chat template writes what a model thought: between marks, and not for ever."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, TypeAlias

from streamsink.chat.frame import ANSWER, NEXT, USER
from streamsink.chat.renderer import Renderer
from streamsink.chat.words import Message, Refusal, Render, Span, common_start, find, stand_ins

Marks: TypeAlias = tuple[str, str]
"""The texts with which a thought begins and ends."""

Dropping: TypeAlias = Literal["inline", "field", ""]
"""How a template leaves an old thought out: by the marks in the answer, or as a field of the
message; or it keeps it."""

_THOUGHT = list(zip(stand_ins(), range(5), strict=False))[-1][0]

# A mark as it ends a text, and the marks that end a thought in the sources of templates.
_LAST_MARK = re.compile(r"(<[^<>\s]+>|\[[^\[\]\s]+\]|◁[^◁▷\s]+▷)\s*$")
_END_MARK = re.compile(
    r"</[\w:|-]*(?:think|thought|reason)[\w:|-]*>|<\|END_\w*(?:THINK|REASON)\w*\|>"
    r"|\[/\w*(?:THINK|REASON)\w*\]|◁/\w*(?:think|thought|reason)\w*▷",
    re.IGNORECASE,
)


def has_switch(renderer: Renderer) -> bool:
    """Whether a template writes something else when it is told to think, or not to."""
    try:
        on, off = (
            renderer.text([Message("user", USER)], opens=True, now=0.0, thinking=thinking)
            for thinking in (True, False)
        )
    except Refusal:
        return False
    return on != off


def marks(renderer: Renderer, source: str) -> Marks | None:
    """The texts around a thought.

    By a conversation that has one, or by the empty one that a template writes to have none, or by
    the marks that its source has.
    """

    def write(*messages: Message, opens: bool = False, thinking: bool = True) -> str:
        """What a template writes behind the first words of the user."""
        render = partial(renderer.text, opens=opens, now=0.0, thinking=thinking)
        return _text(render, messages).partition(USER)[2]

    user = Message("user", USER)
    on, off = (write(user, opens=True, thinking=thinking) for thinking in (True, False))
    return _around(write, on, off) or _of_none(on, off) or _in_source(on, source)


def _around(write: Callable[..., str], on: str, off: str) -> Marks | None:
    """What is around a thought in a conversation."""
    user, answer = Message("user", USER), Message("assistant", ANSWER)
    thinks = Message("assistant", ANSWER, _THOUGHT)
    before, found, after = write(user, thinks).partition(_THOUGHT)
    if not found or ANSWER not in after:
        return None
    others = [on, write(user, answer), write(user, thinks, Message("user", NEXT))]
    others += [off] if common_start(on, off) else []  # else it answers to the user's words
    shared = min((common_start(before, other) for other in others), key=len)
    start = _to_a_border(before, shared)
    begins, ends = before[start:].strip(), after.partition(ANSWER)[0].strip()
    if not begins:  # the mark is before every answer, or only before those yet to come
        prompted = on[start:].partition(ends)[0].strip() if ends else ""
        begins = prompted or _last_mark(before)
    return (begins, ends) if begins and ends else None


def _of_none(on: str, off: str) -> Marks | None:
    """What a template adds where a model is not to think: a thought of no words."""
    if not on or not off.startswith(on):
        return None
    empty = off[len(on) :].strip()
    ends = _last_mark(empty)
    begins = empty[: len(empty) - len(ends)].strip()
    return (begins, ends) if begins and ends else None


def _in_source(on: str, source: str) -> Marks | None:
    """What ends the text before an answer, or else a mark in the source that ends thoughts."""
    opening = _last_mark(on)
    if opening and _END_MARK.fullmatch(_counterpart(opening)):
        return opening, _counterpart(opening)
    found = _END_MARK.search(source)
    return (_opposite(found.group()), found.group()) if found else None


def is_open(render: Render, marks: Marks) -> bool:
    """Whether the text before an answer ends with the mark that begins a thought."""
    return render([Message("user", USER)]).rstrip().endswith(marks[0].rstrip())


def dropping(opened: Render, closed: Render, marks: Marks) -> Dropping:
    """How a template leaves a thought out once another turn follows.

    Parameters
    ----------
    opened, closed : callable
        The template, going on to where an answer begins, and not.
    marks : tuple of str
        Its marks around a thought.
    """
    user, after = Message("user", USER), Message("user", NEXT)
    whole = Message("assistant", f"{marks[0]}\n{_THOUGHT}\n{marks[1]}\n\n{ANSWER}")
    fields = Message("assistant", ANSWER, _THOUGHT)
    inline = _text(opened, [user, whole, after])
    if inline.count(ANSWER) == 1 and _THOUGHT not in inline:
        return "inline"
    newest, old = _text(closed, [user, fields]), _text(opened, [user, fields, after])
    return "field" if _THOUGHT in newest and ANSWER in old and _THOUGHT not in old else ""


def _text(render: Render, messages: Sequence[Message]) -> str:
    try:
        return render(messages)
    except Refusal:
        return ""


def past(
    render: Render, marks: Marks | None, how: Dropping, user: str, answer: str
) -> tuple[str, Span, Span]:
    """A conversation that goes on after an answer, and where its first two messages are in it.

    Parameters
    ----------
    render : callable
        The template.
    marks : tuple of str or None
        Its marks around a thought.
    how : {"inline", "field", ""}
        See `dropping`.
    user, answer : str
        What was said.

    Raises
    ------
    Lost
        The template does not write them once and whole.
    Refusal
        The template refuses.
    """
    before, thought, words = "", "", answer
    if marks and how and marks[1] in answer:
        thought, _, words = answer.partition(marks[1])
        thought = thought.partition(marks[0])[2] or thought
    if thought and how == "field":
        said = Message("assistant", words := words.strip(), thought)
    else:
        before = f"{marks[0]}{thought}{marks[1]}" if marks and thought else ""
        said = Message("assistant", before + words)
    messages = [Message("user", user), said, Message("user", next(stand_ins([user, answer])))]
    text = render(messages)
    return text, find(render, messages, 0, text), find(render, messages, 1, text, before=before)


def _to_a_border(text: str, shared: str) -> int:
    """Where the shared beginning of a text ends, but not within a mark."""
    begun = max(shared.rfind("<"), shared.rfind("["))
    within = begun >= 0 and not _LAST_MARK.match(text[begun : len(shared)])
    return begun if within and not re.search(r"[>\]\s]", shared[begun:]) else len(shared)


def _last_mark(text: str) -> str:
    found = _LAST_MARK.search(text)
    return found.group(1) if found else ""


def _counterpart(opening: str) -> str:
    """The mark that ends what another begins."""
    if "START_" in opening:
        return opening.replace("START_", "END_")
    return f"{opening[0]}/{opening[1:]}"


def _opposite(ending: str) -> str:
    """The mark that begins what another ends."""
    return ending.replace("END_", "START_").replace("/", "", 1)
