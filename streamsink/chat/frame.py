"""What a chat template writes around turns: their headers, and what ends an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from streamsink.chat.words import Message, Refusal, Render, common_end, stand_ins

SYSTEM, USER, ANSWER, NEXT = (word for word, _ in zip(stand_ins(), range(4), strict=False))
"""Words where only the template's own text counts."""


class Frame(NamedTuple):
    """Texts around a turn.

    Attributes
    ----------
    header : str or None
        What stands between a system block or an answer's end and a user's words; None where it
        cannot be told.
    closing : str
        What ends an answer before another turn; empty where it cannot be told.
    last : str
        What ends an answer at the end of a conversation.
    """

    header: str | None
    closing: str
    last: str


def frame(opened: Render, closed: Render) -> Frame:
    """Find out what a template writes around turns.

    Parameters
    ----------
    opened, closed : callable
        The template, going on to where an answer begins, and not.
    """
    user, answer = Message("user", USER), Message("assistant", ANSWER)
    system = Message("system", SYSTEM)
    between = _text(opened, [user, answer, Message("user", NEXT)])
    between = between.partition(ANSWER)[2].partition(NEXT)[0]
    last = _text(closed, [user, answer]).partition(ANSWER)[2]
    header: str | None = None
    # A system message alone is the block, where a template writes one alone.
    alone, followed = _text(closed, [system]), _text(opened, [system, user])
    if SYSTEM in alone and followed.startswith(alone):
        header = followed[len(alone) :].partition(USER)[0]
    if between and not header:  # or the block goes on to the user's words
        header = between[len(last) :] if between.startswith(last) else between
    first, found, _ = _text(opened, [user]).partition(USER)
    if header and found:  # what only ends another turn does not begin a conversation
        header = common_end(header, first)
        header = header if header.strip() else ""
    if header and between.endswith(header):
        closing = between[: len(between) - len(header)]
    else:
        closing = last if between.startswith(last) else ""
    return Frame(header, closing, last)


def _text(render: Render, messages: Sequence[Message]) -> str:
    try:
        return render(messages)
    except Refusal:
        return ""
