"""A stream alone in its context: what its controller plans, step by step, to an end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamsink.core.ledger import Missing
from streamsink.core.plan import Plan, Rows
from streamsink.core.planner import Grant
from streamsink.core.snapshot import Snapshot
from streamsink.core.state import State
from streamsink.engine.context import Logits, Outputs
from streamsink.engine.scoring import nll
from streamsink.engine.settling import Settling
from streamsink.engine.task import AskAside, AskLanes, AskPlace, Task
from streamsink.engine.undo import Undo
from streamsink.errors import CacheError, StreamsinkError, UsageError


class Spliced(NamedTuple):
    """What swapping tokens came to.

    Attributes
    ----------
    n_evicted, n_evaluated : int
        Tokens that left to make room, and that were evaluated.
    first : int
        Index of the first token that came.
    """

    n_evicted: int
    n_evaluated: int
    first: int


class Driver(Settling):
    """What a stream does with its plans.

    Parameters
    ----------
    context : Context
        The stream's own.
    controller : Controller
        The stream's logic.
    """

    # -- forward --------------------------------------------------------------------------------

    def advance(self, scores: NDArray[np.float64] | None = None) -> Task[None]:
        """Decode what is pending, with every eviction that this takes.

        Parameters
        ----------
        scores : ndarray of float64, shape (n_pending,), optional
            Receives the negative log-likelihoods of all tokens but the first, in nat.

        Raises
        ------
        DecodeError, CacheError
            Ledger and cache hold the tokens decoded before; the others are still pending.
        """
        controller = self.controller
        step = self.step() if scores is None else None
        if step and (yield step):
            return
        n_given = controller.n_pending
        tokens = controller.pending() if scores is not None else ()
        if self.undo and n_given:
            self.undo.begins(n_given)
        outputs: Outputs = "last" if scores is None else "all"
        has_decoded = False
        while not controller.is_done:
            if has_decoded:
                self.pause_if_possible()
            yield from self.seek_room()
            yield from self._join()
            grant = yield from self._grant(outputs, one_by_one=n_given == 1)
            plan = controller.plan(grant)
            done = yield from self.carry_out(plan, outputs)
            if done and plan.rows and plan.rows.is_input:
                has_decoded = True
                if scores is not None:
                    self._score(scores, tokens, plan.rows)

    def _grant(self, outputs: Outputs, *, one_by_one: bool) -> Task[Grant]:
        controller, context = self.controller, self.context
        n_lanes = 1
        if not one_by_one and controller.uses_lanes:
            # The first question tries lanes out, and leaves other logits behind.
            controller.settle_on(controller.state.but(has_logits=False))
            n_lanes = yield AskLanes(context)
        n_batch = context.n_batch
        if outputs == "all":
            n_batch = min(n_batch, context.max_output_rows)
        return Grant(n_batch, context.n_cells - controller.n_ctx, n_lanes, one_by_one)

    def _score(self, scores: NDArray[np.float64], tokens: Sequence[int], rows: Rows) -> None:
        end = len(tokens) - self.controller.n_pending
        first = end - len(rows.tokens) + 1
        targets = tokens[first : end + 1]
        scores[first : first + len(targets)] = nll(self.context.logits()[: len(targets)], targets)

    def settle(self) -> Task[None]:
        """Bring the cells to where the ledger has them, and no others, to be given out.

        Raises
        ------
        DecodeError, CacheError
            What is missing could not be brought back.
        """
        yield from self.finish()
        if self.controller.state.is_shifting and self.context.capabilities.takes_back:
            yield from self.truncate(1)
            yield from self.advance()
        yield AskPlace(self.context)

    def evict(self, n: int) -> Task[None]:
        """Take the oldest tokens out of the window; before the next decode the sink is seen to."""
        yield from self.finish()
        yield from self._evict(n)

    def _evict(self, n: int, protected: int = 0) -> Task[None]:
        """Take tokens out, around what is held; no more than there are."""
        while n > 0:
            yield from self._join()
            here = min(n, self.controller.n_free(protected))
            if not here:
                return
            yield from self.carry_out(self.controller.plan_eviction(here, protected=protected))
            n -= here

    def _join(self) -> Task[None]:
        """Pin what is held and has come to the front of the window."""
        while self.controller.has_arrived:
            yield from self.take_down_lanes()
            self.controller.join()

    def splice(
        self, at: int, n: int, tokens: Sequence[int], under: State, *, exact: bool
    ) -> Task[Spliced]:
        """Swap ``n`` of the oldest tokens, after the first ``at``, for others, and evaluate them.

        Parameters
        ----------
        at, n : int
            Where they stand, and how many there are.
        tokens : sequence of int
            Those that come; with what else is pinned, fewer than ``n_ctx``.
        under : State
            The present state under the policy that goes with them.
        exact : bool
            Evaluate the window anew too: its keys and values remember the old prefix.

        Raises
        ------
        DecodeError, CacheError
            Nothing was swapped; or it was, and whatever comes next evaluates them.
        """
        controller = self.controller
        yield from self.finish()
        if self.undo:
            self.undo.loses()
        over = max(0, controller.ledger.n_live - n + len(tokens) - controller.n_ctx)
        if over:
            yield from self._evict(over, protected=at + n)
        # Before anything waits to be rotated: until that is done, no cells are taken elsewhere.
        exact = exact or not (yield AskAside(self.context))
        plan, index = controller.plan_splice(at, n, tokens, under, exact=exact)
        yield from self.carry_out(plan)
        ledger = controller.ledger
        n_evaluated = ledger.n_live if ledger.missing is Missing.ALL else ledger.n_head
        yield from self.finish()
        return Spliced(over, n_evaluated, index)

    def clear(self) -> Task[None]:
        """Forget everything; the policy stays. Cells that stay are cleared by the next token."""
        if self.undo:
            self.undo.loses()
        self.controller.reset()
        yield from self.finish()

    def evaluate(self) -> Task[int]:
        """Evaluate the visible tokens, whose cells are missing, and no more than ``n_ctx`` holds.

        Returns
        -------
        int
            How many they are.

        Raises
        ------
        DecodeError, CacheError
            They could not be evaluated; whatever comes next tries again.
        """
        controller = self.controller
        while (over := controller.ledger.n_live - controller.n_ctx) > 0:
            if controller.has_arrived:
                controller.join()
                continue
            plan = controller.plan_eviction(min(over, controller.n_free()))
            yield from self.carry_out(Plan(plan.base, plan.then, told=plan.told))
        yield from self.finish()
        return controller.ledger.n_live

    def evaluate_anew(self) -> Task[None]:
        """Evaluate all visible tokens again, from position 0 on."""
        self.controller.settle_on(self.controller.state.without_cells())
        yield from self.finish()

    def read_until(self, index: int) -> Task[None]:
        """Evaluate again what is visible before an index of the window, and nothing else."""
        controller = self.controller
        before = controller.snapshot().until(index)
        yield from self.will_lose(before.n_live)
        controller.resume(before, with_cells=False)
        yield from self.finish()

    def keep(self, plan: Callable[[], Plan]) -> Task[None]:
        """Take tokens out of the midst of the window; what `Controller.plan_keeping` says.

        Raises
        ------
        DecodeError, CacheError
            As for `evict`.
        """
        yield from self.finish()
        while not (yield from self.carry_out(plan())):
            yield from self.finish()
        self.look_at_cells()

    # -- back -----------------------------------------------------------------------------------

    def will_lose(self, n_waiting: int) -> Task[None]:
        """Something is about to leave, with so many tokens still to be fed."""
        if self.undo:
            yield AskPlace(self.context)
            self.undo.will_lose(n_waiting)

    def go_back(self, before: Snapshot, undo: Undo) -> Task[None]:
        """Undo what a transaction has done since its beginning.

        Parameters
        ----------
        before : Snapshot
            Where the stream stood then.
        undo : Undo
            What was kept of it. Where that does not suffice, the tokens that were visible then are
            evaluated anew before the stream goes on.
        """
        controller = self.controller
        try:
            self.clear_doubt()
            if undo.has_lost or controller.ledger.missing is Missing.ALL:
                yield from self._resume(undo.kept or before, undo.cells)
            came = controller.ledger.next_index - min(undo.lowest, before.n_tokens)
            if came > 0:
                yield from self.truncate(came)
            controller.go_back_to(before)
        except BaseException as error:
            controller.resume(before, with_cells=False)
            if not isinstance(error, StreamsinkError):
                raise

    def _resume(self, snapshot: Snapshot, cells: memoryview | None) -> Task[None]:
        self.controller.resume(snapshot, with_cells=False)
        if cells is not None:
            yield AskPlace(self.context)
            with suppress(CacheError):
                self.context.load(cells, self.controller.ledger.last_end)
                self.controller.resume(snapshot, with_cells=True)

    # -- logits ---------------------------------------------------------------------------------

    def logits(self) -> Task[Logits]:
        """Logits of the newest token, shape (1, n_vocab); a view, good until the next decode.

        Raises
        ------
        UsageError, DecodeError, CacheError
            As for `ready_logits`.
        """
        yield from self.ready_logits()
        return self.context.logits()[-1:]

    def ready_logits(self) -> Task[None]:
        """See to it that the context's last row of logits is that of the newest token.

        Raises
        ------
        UsageError
            No token is left.
        DecodeError, CacheError
            What is missing, or pending, could not be evaluated.
        """
        step = self.step()
        if step and (yield step):
            return
        if not self.controller.n_pending:
            yield from self._make_logits()
        if self.controller.n_pending:
            yield from self.advance()

    def _make_logits(self) -> Task[None]:
        controller = self.controller
        if controller.ledger.missing is Missing.ALL:
            yield from self.finish()
        if controller.state.has_logits:
            return
        if not controller.ledger.n_live:
            raise UsageError("a failed decode left the window empty: feed before going on")
        if self._can_decode_again:
            yield from self.truncate(1)
            return
        # The newest token is of the head, or in a recurrent state: all is read anew.
        controller.settle_on(controller.state.without_cells())
        yield from self.finish()

    @property
    def _can_decode_again(self) -> bool:
        """Whether the newest token can be taken out and decoded again."""
        return self.context.capabilities.takes_back and self.controller.ledger.n_newest > 0

    def lasting_logits(self) -> Logits | None:
        """The newest token's logits, where they could not be computed again; a copy."""
        state = self.controller.state
        if state.n_pending or not state.has_logits or self._can_decode_again:
            return None
        row: Logits = self.context.logits()[-1].copy()
        return row

    def put_logits(self, row: Logits) -> None:
        """Take over the newest token's logits, shape (n_vocab,), with cells from elsewhere."""
        self.context.put_logits(row)
        self.controller.settle_on(self.controller.state.but(has_logits=True))
