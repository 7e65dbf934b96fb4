"""For how many streams a context has cells, and in how many pools."""

from __future__ import annotations

from dataclasses import dataclass

CELL_STEP = 256
"""llama.cpp rounds a pool of cells up to whole steps, and computes attention over whole steps."""


@dataclass(frozen=True, slots=True)
class Places:
    """Places in a context, one a stream.

    Attributes
    ----------
    n : int
        How many there are. Only one that is alone has lanes beside it: a stream's lanes are a run
        of sequences from its own on.
    unified : bool
        Whether their cells are of one pool, and not of a pool each.
    """

    n: int = 1
    unified: bool = True

    def n_cells(self, n_ctx: int, n_lanes: int) -> int:
        """Cells of a context whose streams see ``n_ctx`` tokens each."""
        if self.n == 1:
            return n_ctx + n_lanes - 1
        return self.n * (n_ctx if self.unified else padded(n_ctx))

    def n_sequences(self, n_lanes: int) -> int:
        """Sequences of the context."""
        return self.n * self.n_sequences_each(n_lanes)

    def n_sequences_each(self, n_lanes: int) -> int:
        """Sequences of each place: the stream's own, and those for what is evaluated beside it."""
        if self.n == 1:
            return 1 + n_lanes
        return 2 if self.unified else 1


ALONE = Places()


def padded(n_cells: int) -> int:
    """Cells of a pool that has at least so many."""
    return -(-n_cells // CELL_STEP) * CELL_STEP
