"""How a stream goes back to where a transaction began."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress

from streamsink.core.snapshot import Snapshot
from streamsink.errors import CacheError

SHORT = 1.0
"""Seconds of feeding that are not interrupted where that could not be undone exactly."""


class Undo:
    """What is kept of a stream, so that what a transaction does can be undone.

    Tokens that came are taken out again, which costs nothing. What leaves does not come back: so
    the cells are copied before the first token leaves, if there is so much still to be fed that
    somebody may lose patience. A copy takes a small part of that time: that of a cell is made in
    microseconds, and evaluating a token takes a hundred times as long.

    Parameters
    ----------
    save : callable
        Gives out the cells, or raises `CacheError`.
    note : callable
        Where the stream stands.
    rate : float
        Tokens a second that it is fed at; 0 where that is not known.
    takes_back : bool
        Whether tokens that came can be taken out again.

    Attributes
    ----------
    lowest : int
        The lowest index to which the stream has gone back; what follows it is decoded again.
    has_lost : bool
        Whether something has left that cannot come back by itself.
    kept : Snapshot or None
        Where the stream stood when its cells were copied.
    cells : memoryview or None
        The copy.
    """

    def __init__(
        self,
        save: Callable[[], memoryview],
        note: Callable[[], Snapshot],
        rate: float,
        *,
        takes_back: bool,
    ) -> None:
        self._save = save
        self._note = note
        self._rate = rate
        self._takes_back = takes_back
        self._is_long = False
        self.lowest = sys.maxsize
        self.has_lost = False
        self.kept: Snapshot | None = None
        self.cells: memoryview | None = None

    @property
    def is_possible(self) -> bool:
        """Whether an interruption now could be undone, or is worth an evaluation."""
        return not self.has_lost or self._is_long

    def begins(self, n_waiting: int) -> None:
        """So many tokens are about to be fed."""
        if not self._takes_back:
            self.will_lose(n_waiting)

    def goes_back_to(self, index: int) -> None:
        """The tokens from an index on have been taken out."""
        self.lowest = min(self.lowest, index)

    def will_lose(self, n_waiting: int) -> None:
        """Something is about to leave, with so many tokens still to be fed."""
        self._is_long |= not self._rate or n_waiting / self._rate > SHORT
        if not self.has_lost and self._is_long:
            self.kept = self._note()
            with suppress(CacheError):  # then the tokens are evaluated again
                self.cells = self._save()
        self.has_lost = True

    def loses(self) -> None:
        """Something leaves."""
        self.has_lost = True
