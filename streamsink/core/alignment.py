"""What of a stream an edited history still holds: kept, taken out, forgotten, or to be fed.

Nothing can be put between two tokens of a cache, and any token can be taken out of it. So of the
window is kept what the history holds of it up to the first token that is new there; what follows
is fed. Of what the stream has forgotten, nothing has to be found again but where it ends: what
stands before it is forgotten as well.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from streamsink.core.matching import Ids, Passage, common

CERTAIN = 4
"""Forgotten tokens that a new one before them takes to be passed over as forgotten."""


class Alignment(NamedTuple):
    """What becomes of a stream, whose owner has edited its history.

    Attributes
    ----------
    start : int
        Where in the history the window begins. What stands before it, the pinned prefix aside, is
        forgotten.
    forgotten : int
        Where in the history that ends which the stream has forgotten; it is fed from ``start`` on.
    kept : tuple of Passage
        What stays of the window, one after another in the history from ``start`` on; ``old`` counts
        from the window's beginning.
    """

    start: int
    forgotten: int
    kept: tuple[Passage, ...]


def align(past: Ids, n_lost: int, window: Ids, history: Ids, room: int) -> Alignment:
    """Find in a history what a stream holds; the pinned prefix is part of neither.

    Parameters
    ----------
    past : ndarray of int32
        What the stream has forgotten, oldest first.
    n_lost : int
        Tokens before that, whose ids nobody knows any more.
    window : ndarray of int32
        What it sees.
    history : ndarray of int32
        What it is to hold.
    room : int
        Tokens that a window can hold.
    """
    n_past = len(past)
    found = common(np.concatenate([past, window]), history, begin_alike=not n_lost)
    mine = [_behind(one, n_past) for one in found if one.old + one.n > n_past]
    forgotten = _forgotten(found, n_past, n_lost, mine[0].new if mine else len(history))
    if not mine:
        # Nothing is left to go on from, so what was forgotten is read again, if there is room.
        return Alignment(min(forgotten, max(0, len(history) - room)), forgotten, ())
    first = mine[0].new
    if forgotten < first and len(history) - first < room:
        return Alignment(forgotten, forgotten, ())  # something new stands before all that is seen
    n_kept = next(
        (at for at, (a, b) in enumerate(pairwise(mine), 1) if a.new + a.n < b.new), len(mine)
    )
    return Alignment(first, first, tuple(mine[:n_kept]))


def _behind(passage: Passage, n_past: int) -> Passage:
    """The part of a passage that is in the window."""
    skip = max(0, n_past - passage.old)
    return Passage(passage.old + skip - n_past, passage.new + skip, passage.n - skip)


def _forgotten(found: list[Passage], n_past: int, n_lost: int, stop: int) -> int:
    """How many of the first tokens of a history, before ``stop``, are forgotten.

    A passage of the past ends what is forgotten where of all that stands before it, back to any
    place, `CERTAIN` times as much was in the past as is new. So a turn that was edited long ago is
    passed over, and what somebody quotes of the past in something new is not taken for the past: to
    read too much again costs time, to read too little would lose text.
    """
    balance = highest = min(n_lost, found[0].new if found else stop)
    forgotten = end = balance
    for passage in found:
        n = min(passage.n, n_past - passage.old, stop - passage.new)
        if n <= 0:
            break
        balance += n - CERTAIN * max(0, passage.new - end)
        end = passage.new + n
        if balance >= highest:
            highest, forgotten = balance, end
    return forgotten
