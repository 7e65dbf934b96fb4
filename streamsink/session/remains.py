"""What is left of a turn in the window of a stream."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeAlias

from streamsink.session.conversation import Message

Memory: TypeAlias = Literal["pinned", "visible", "cut", "forgotten"]
"""Of a turn that is cut the model sees a part: its end, or what of it is pinned."""

Ranges: TypeAlias = Iterable[tuple[int, int]]


def what_is_left(turn: Message, sees: Ranges, pinned: Ranges) -> Memory:
    """What the model can still see of a turn.

    Parameters
    ----------
    turn : Message
        The turn.
    sees : iterable of (int, int)
        Index ranges that the next token can see, half-open.
    pinned : iterable of (int, int)
        Those that stay for good.
    """
    sees, pinned = tuple(sees), tuple(pinned)
    newest = max((stop for _, stop in sees), default=0)
    # A turn may end with tokens that are not yet evaluated: they are no less visible.
    start, stop = turn.start, min(turn.stop, max(turn.start, newest))
    if start < stop and _covers(pinned, start, stop):
        return "pinned"
    if _covers((*sees, *pinned), start, stop):
        return "visible"
    # Of one that begins the stream a few tokens may be the sink: nobody could read them.
    ends = any(first < stop <= last for first, last in sees)
    kept = any(first > 0 and first < stop and start < last for first, last in pinned)
    return "cut" if ends or kept else "forgotten"


def _covers(ranges: Ranges, start: int, stop: int) -> bool:
    """Whether ranges together hold all of one; an empty one lies in what it touches."""
    at: int | None = None
    for first, last in sorted(ranges):
        if first <= (start if at is None else at) <= last:
            at = last
    return at is not None and at >= stop
