"""What comes next for a stream: from where it stands, and what it may have, to a plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from streamsink.core import lanes, moves
from streamsink.core.capabilities import Capabilities
from streamsink.core.ledger import Missing
from streamsink.core.placement import Choice, choose
from streamsink.core.plan import Plan
from streamsink.core.policy import WHOLES, SinkPolicy, next_chunk
from streamsink.core.run import LONGEST, Run
from streamsink.core.state import State
from streamsink.errors import CapabilityError, setting

LEAST_QUEUE = 4
"""Evictions for which lanes are worth their while: afterwards the cells must be put together."""


class Grant(NamedTuple):
    """What a context lets a stream have in the next decode.

    Attributes
    ----------
    n_batch : int
        Most tokens.
    n_spare : int
        Cells beyond ``n_ctx``.
    n_lanes : int
        Most groups between evictions; 1 where lanes do not work.
    one_by_one : bool
        Whether tokens come singly, so that it pays to put scattered cells together.
    """

    n_batch: int
    n_spare: int = 0
    n_lanes: int = 1
    one_by_one: bool = False


class Planner:
    """Plans the steps of one stream, of which it holds nothing.

    Parameters
    ----------
    able : Capabilities
        What may be done to the cache.
    n_ctx : int
        Tokens that a token can attend to, itself and the sink included.
    rebase_at : int
        Position at which growing positions are brought back to 0.
    ends_sentence : callable
        Whether a token ends a sentence.
    """

    def __init__(
        self,
        able: Capabilities,
        n_ctx: int,
        rebase_at: int,
        ends_sentence: Callable[[int], bool] = lambda token: False,
    ) -> None:
        self.able = able
        self.n_ctx = n_ctx
        self.rebase_at = rebase_at
        self._ends_sentence = ends_sentence

    def choose(self, policy: SinkPolicy, n_keep: int) -> Choice:
        """Placement, slack and size of an eviction under a policy that pins ``n_keep`` tokens.

        Raises
        ------
        CapabilityError
            The model cannot stream so.
        """
        choice = choose(policy, self.able, n_keep, self.n_ctx)
        if not self.able.takes_back and choice.n_discard >= self.n_ctx - n_keep:
            raise CapabilityError(
                f"an eviction of {choice.n_discard} tokens would empty the window of "
                f"{self.n_ctx - n_keep}, and this model's recurrent state cannot give up its "
                f"newest token: lower {setting('n_discard')} or {setting('n_keep')}, or raise "
                f"{setting('n_ctx')}"
            )
        return choice

    def advance(self, state: State, grant: Grant) -> Plan:
        """The next step on the way to having all pending tokens decoded."""
        if not state.n_pending:
            return lanes.take_down(state)
        plan = self._put_right(state, grant)
        if plan is None:
            return self._feed(state, grant)
        return lanes.take_down(state) if state.lanes else plan

    def run(self, state: State) -> Run | None:
        """The run that begins with the next token, given alone; None where it takes a plan."""
        ledger, choice, n_discard = state.ledger, state.choice, state.policy.n_discard
        if (
            ledger.missing is not Missing.NOTHING
            or not ledger.n_newest
            or state.lanes
            or state.is_scattered
            or n_discard == "sentence"
        ):
            return None
        n_steps, left = self.n_ctx - ledger.n_live, choice.slack - ledger.sink_lag
        evicts = n_steps == 0
        if evicts:
            left = min(left, self.n_free(state))
            one_leaves = choice.n_discard == 1 and n_discard not in WHOLES and ledger.n_window > 1
            if not one_leaves or ledger.n_head != ledger.n_keep:
                return None
            n_steps = left
        elif left < 0:
            return None
        n_steps = min(n_steps, self.rebase_at + 1 - ledger.next_pos, LONGEST)
        return Run(state, n_steps, evicts=evicts) if n_steps > 0 else None

    def _put_right(self, state: State, grant: Grant) -> Plan | None:
        """What comes before the next token, though it made no room."""
        ledger = state.ledger
        if ledger.missing is not Missing.NOTHING:
            return moves.rebuild(state, grant.n_batch)
        if ledger.next_pos > self.rebase_at:
            span = self.n_ctx + state.choice.slack + grant.n_batch
            plan = moves.rebase(state, self.able, max(self.rebase_at, 2 * span))
            if plan:
                return plan
        if grant.one_by_one and state.is_scattered:
            return moves.close_gap(state) or moves.compact(state)
        return moves.close_gap(state)

    def _feed(self, state: State, grant: Grant) -> Plan:
        """Decode pending tokens, an eviction before them where the window is full."""
        ledger, n_waiting = state.ledger, state.n_given - state.ledger.next_index
        n, n_out, cut = 1, 0, False
        if ledger.n_live >= self.n_ctx:
            n_out, cut = self._n_discard(state)
            lag = ledger.sink_lag + n_out
            # What comes between eviction and decode: the sink moves, or lanes are filled.
            if n_waiting > 1 or lag > state.choice.slack or n_out >= ledger.n_window:
                return moves.evict(state, n_out, cut=cut)
        elif n_waiting > 1:
            n_discard, _ = self._n_discard(state)
            n = self._n_next(state, n_discard, grant)
            if n > self.n_ctx - ledger.n_live:
                return lanes.feed(state, _next(state, n), n_discard)
        if state.lanes:
            return lanes.take_down(state)
        tokens = _next(state, n)
        ends: list[int] = []
        if state.policy.n_discard == "sentence":
            after = enumerate(tokens, ledger.next_index + 1)
            ends = [index for index, token in after if self._ends_sentence(token)]
        return moves.take_in(state, tokens, ends, n_out=n_out, cut=cut)

    def _n_next(self, state: State, n_discard: int, grant: Grant) -> int:
        """Pending tokens of the next decode."""
        ledger = state.ledger
        return next_chunk(
            state.n_pending,
            room=self.n_ctx - ledger.n_live,
            n_window=ledger.n_window,
            n_discard=n_discard,
            sink_lag=ledger.sink_lag,
            slack=state.choice.slack,
            n_batch=grant.n_batch,
            n_lanes=grant.n_lanes if self.uses_lanes(state) else 1,
            n_spare=grant.n_spare,
        )

    def uses_lanes(self, state: State) -> bool:
        """Whether the next decode would be the better for lanes, if they work."""
        n_discard = state.policy.n_discard
        if state.n_pending <= LEAST_QUEUE or n_discard in WHOLES:
            return False
        n_discard, _ = self._n_discard(state)
        return (
            state.n_pending > LEAST_QUEUE * n_discard
            and (not state.pinned.held or state.n_pending <= self.n_free(state))
            and self.n_ctx - state.ledger.n_live == n_discard
            and state.ledger.n_pinned > 0
            and state.choice.slack >= n_discard
            and (not self.able.sight or self.n_ctx + state.choice.slack <= self.able.sight)
        )

    def n_free(self, state: State, protected: int = 0) -> int:
        """Tokens of the window that may leave: those before the first that is held."""
        ledger, held = state.ledger, state.pinned.oldest_held
        if held is None:
            return ledger.n_window
        return max(0, ledger.n_before(held.ranges[0][0]) - max(ledger.n_pinned, protected))

    def _n_discard(self, state: State) -> tuple[int, bool]:
        """Tokens of the next eviction, and whether it cuts off what should leave whole."""
        n, cut = self._n_discard_of_window(state)
        return (min(n, max(1, self.n_free(state))), cut) if state.pinned.held else (n, cut)

    def _n_discard_of_window(self, state: State) -> tuple[int, bool]:
        size = state.choice.n_discard
        if state.policy.n_discard not in WHOLES:
            return size, False
        ledger = state.ledger
        window = ledger.window_index
        end = next((place for place in state.boundaries if place > window), None)
        n_whole = ledger.n_window if end is None else ledger.n_before(end) - ledger.n_pinned
        # A token must stay, for the stream to go on from.
        if 0 < n_whole < ledger.n_window:
            return n_whole, False
        return size, True


def _next(state: State, n: int) -> list[int]:
    """Ids of the first pending tokens."""
    first = state.ledger.next_index
    return state.tape.read(range(first, first + n))
