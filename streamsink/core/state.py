"""Where a stream stands: one value, which changes in one place (`streamsink.core.controller`)."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from streamsink.core.ledger import Ledger, Missing
from streamsink.core.pinned import Pinned
from streamsink.core.placement import Choice
from streamsink.core.policy import SinkPolicy
from streamsink.core.tape import Tape

Cause: TypeAlias = Literal["", "reanchor", "rebase", "repin"]


class Counters(msgspec.Struct, frozen=True, gc=False):
    """How often what has happened."""

    evicted: int = 0
    evictions: int = 0
    reanchors: int = 0
    shifts: int = 0
    rebases: int = 0

    def with_evictions(self, n: int, n_tokens: int) -> Counters:
        """After ``n`` evictions of ``n_tokens`` together."""
        return Counters(
            self.evicted + n_tokens, self.evictions + n, self.reanchors, self.shifts, self.rebases
        )


class State(msgspec.Struct, frozen=True):
    """Where a stream stands, and what it goes by.

    Attributes
    ----------
    policy : SinkPolicy
        What to keep, what to evict.
    pinned : Pinned
        What ``n_keep`` comes to, and what is pinned beside the prefix.
    choice : Choice
        Placement and slack in force.
    tape : Tape
        The ids of its tokens by index; the one thing here that is written on.
    ledger : Ledger
        Which token sits where.
    n_given : int
        Tokens taken in so far; those that are not in the ledger yet are pending.
    boundaries : tuple of int
        Indices at which the window may begin, where whole turns or sentences are evicted.
    counters : Counters
        How often what has happened.
    lanes : tuple of int
        Position after the last token of each lane that stands, the fullest first.
    is_scattered : bool
        Whether lanes have left live tokens in the spare cells.
    has_logits : bool
        Whether the context's last row of logits is that of the newest token.
    is_shifting : bool
        Whether keys are rotated only with the next decode: until then, cells are not given out.
    cause : {"", "reanchor", "rebase", "repin"}
        Why cells are missing, if that is no failure.
    """

    policy: SinkPolicy
    pinned: Pinned
    choice: Choice
    tape: Tape
    ledger: Ledger = Ledger()
    n_given: int = 0
    boundaries: tuple[int, ...] = ()
    counters: Counters = Counters()
    lanes: tuple[int, ...] = ()
    is_scattered: bool = False
    has_logits: bool = False
    is_shifting: bool = False
    cause: Cause = ""

    @property
    def n_pending(self) -> int:
        """Tokens taken in and not decoded yet."""
        return self.n_given - self.ledger.next_index

    @property
    def n_pinned(self) -> int:
        """Live tokens that stay for good, in front of the window or in it."""
        return self.ledger.n_pinned + self.pinned.n_held

    def without_cells(self) -> State:
        """The same after all cells were lost: its tokens are evaluated anew before it goes on."""
        return self.but(
            ledger=self.ledger.lacking(Missing.ALL), lanes=(), has_logits=False, is_shifting=False
        )

    def but(self, **changes: object) -> State:
        """The same with some values changed."""
        return msgspec.structs.replace(self, **changes)
