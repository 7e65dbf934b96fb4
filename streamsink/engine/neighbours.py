"""Which places the streams that are at work should have, where only neighbours work together."""

from __future__ import annotations

from collections.abc import Sequence

PATIENCE = 64
"""Steps for which streams that are at work may be apart: a move takes as long as some steps."""


class Neighbours:
    """Watches who is at work in one context, and says who is to move.

    Parameters
    ----------
    n_places : int
        Places in the context.
    """

    def __init__(self, n_places: int) -> None:
        self._n_places = n_places
        self._n_apart = 0

    def moves(self, places: Sequence[int]) -> list[tuple[int, int]]:
        """Note one more step, and say which places are to be swapped now.

        Parameters
        ----------
        places : sequence of int
            Those of the streams that are at work.

        Returns
        -------
        list of (int, int)
            From where, to where: the fewest after which all are side by side; mostly none.
        """
        at_work = set(places)
        n = len(at_work)
        if n < 2 or max(at_work) - min(at_work) < n:
            self._n_apart = 0
            return []
        self._n_apart += 1
        if self._n_apart <= PATIENCE:
            return []
        self._n_apart = 0
        blocks = (range(start, start + n) for start in range(self._n_places - n + 1))
        block = max(blocks, key=lambda block: len(at_work.intersection(block)))
        return list(
            zip(sorted(at_work.difference(block)), sorted(set(block) - at_work), strict=True)
        )
