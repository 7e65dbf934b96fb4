"""Steps that are all alike: a token comes and, where the window is full, the oldest one leaves.

Nearly all steps of a stream are such, and they differ by a position alone. So they are planned
once, and a step in the midst of a run takes three numbers instead of a plan and a state: where
tokens come one by one, Python does its work after each decode with cold caches, and planning each
step anew was more than half of what a token fed alone took beyond a bare decode (95 of 165 us on
two cores of a slow EPYC; docs/README.md, speed).
"""

from __future__ import annotations

from msgspec.structs import replace

from streamsink.core.moves import later
from streamsink.core.state import State

LONGEST = 1024
"""Steps of a run: between two of them it is seen to what nobody asks for any more."""


class Run:
    """Up to so many steps from one state on, each with one token.

    Parameters
    ----------
    base : State
        Where the stream stands before: the step needs nothing but room and a decode.
    evicts : bool
        Whether a token leaves in each step, so that the fill stays what it is.
    n_steps : int
        How many steps there are, at least 1.

    Attributes
    ----------
    n_given : int
        As in `State`.
    n_done : int
        Steps that have been carried out.
    n_begun : int
        The same, and the one that is being carried out.
    index, pos : int
        Index and position of the token that the first step decodes.
    gone_index, gone_pos : int
        Those of the token that leaves in the first step.
    """

    __slots__ = (
        "base",
        "evicts",
        "gone_index",
        "gone_pos",
        "index",
        "n_begun",
        "n_done",
        "n_given",
        "n_steps",
        "pos",
    )

    def __init__(self, base: State, n_steps: int, *, evicts: bool) -> None:
        ledger = base.ledger
        window = ledger.segments[-1]
        self.base = base
        self.n_steps = n_steps
        self.evicts = evicts
        self.n_given = base.n_given
        self.n_done = self.n_begun = 0
        self.index, self.pos = ledger.next_index, ledger.next_pos
        self.gone_index, self.gone_pos = window.index, window.pos

    @property
    def state(self) -> State:
        """Where the stream stands after the steps that have been carried out."""
        base, n = self.base, self.n_done
        if not n:
            return base if self.n_given == base.n_given else base.but(n_given=self.n_given)
        ledger, counters = base.ledger.append(n), base.counters
        boundaries = base.boundaries
        if self.evicts:
            ledger, counters = ledger.evict(n), counters.with_evictions(n, n)
            boundaries = later(boundaries, ledger.window_index)
        return replace(
            base,
            ledger=ledger,
            n_given=self.n_given,
            boundaries=boundaries,
            counters=counters,
            has_logits=True,
            is_shifting=False,
        )
