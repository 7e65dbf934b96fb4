"""One plan carried out on a context, or taken back: what is left is right wherever it ends."""

from __future__ import annotations

import time
from contextlib import suppress

from streamsink.core.controller import Controller
from streamsink.core.ledger import Missing
from streamsink.core.plan import MAIN, SCRATCH, Compact, Plan, Remove, Rows, Shift
from streamsink.core.state import State
from streamsink.engine.context import Context, Outputs
from streamsink.engine.undo import Undo
from streamsink.errors import DecodeError, StreamsinkError, TornError

REFUSED = -1
"""llama_decode's answer to a batch that it does not begin (llama.h)."""


class Carrier:
    """Carries out plans.

    Parameters
    ----------
    context : Context
        What they act on.
    controller : Controller
        Whose they are.

    Attributes
    ----------
    undo : Undo or None
        How to go back to where a transaction began, while one is under way.
    """

    def __init__(self, context: Context, controller: Controller) -> None:
        self.context = context
        self.controller = controller
        self.undo: Undo | None = None
        self._ms = 0.0

    def carry_out(self, plan: Plan, outputs: Outputs = "last") -> None:
        """Do what a plan says, and note that it is done; or take it back.

        Raises
        ------
        DecodeError, CacheError
            What the context says; the stream stands where `Controller.give_up` leads.
        """
        controller, context, rows = self.controller, self.context, plan.rows
        if self.undo and plan.loses:
            self.undo.will_lose(controller.n_pending)
        feeds = rows is not None and rows.is_input
        if not feeds:
            outputs = "last" if plan.then.has_logits else "none"
        started = 0.0 if feeds else time.perf_counter()
        controller.begin(plan)
        n_done = 0
        try:
            for op in plan.ops:
                op.act_on(context)
                n_done += 1
            if rows is None:
                pass
            elif rows.lanes:
                context.decode_lanes(rows.tokens, rows.pos, rows.lanes, outputs)
            else:
                context.decode(rows.tokens, rows.pos, rows.seq, outputs)
        except BaseException as error:
            self._put_right(error, n_done)
            raise
        if not feeds:
            self._ms += (time.perf_counter() - started) * 1e3
        controller.commit(plan, self._ms)
        if feeds or plan.told:
            self._ms = 0.0

    def step(self) -> bool:
        """Decode the one pending token in a step of a run; False where that takes plans.

        Raises
        ------
        DecodeError, CacheError
            As for `carry_out`.
        """
        controller, context = self.controller, self.context
        step = None if self.undo else controller.begin_step()
        if step is None:
            return False
        token, pos, leaves = step
        n_done = 0
        try:
            if leaves is not None:
                context.remove(MAIN, leaves, leaves + 1)
                n_done = 1
            context.decode((token,), pos, MAIN, "last")
        except BaseException as error:
            self._put_right(error, n_done)
            raise
        controller.commit_step()
        return True

    def _put_right(self, error: BaseException, n_done: int) -> None:
        """Put right what is left where so many operations were done, and then something raised."""
        plan = self.controller.in_doubt()
        if plan and isinstance(error, (StreamsinkError, MemoryError)):
            self._take_back(plan, error, n_done)
        else:  # not of the context's, as a signal's: nobody knows how far it came
            self.clear_doubt()

    def clear_doubt(self) -> None:
        """Put right what a plan has left that was cut off."""
        plan = self.controller.in_doubt()
        if not plan:
            return
        with suppress(StreamsinkError):
            if plan.back is not None:
                self._restore(plan, plan.rows)
                return
            is_done = self._is_done(plan)
            if is_done:
                self.controller.commit(plan)
            elif is_done is None:
                self.controller.settle_on(plan.base.without_cells())
            else:
                self.controller.settle_on(plan.base)

    def _take_back(self, plan: Plan, error: Exception, n_done: int) -> None:
        """Put right what a plan has left that failed after so many of its operations.

        What the context refuses has changed nothing, but for what it calls torn.
        """
        controller, base = self.controller, plan.base
        if isinstance(error, TornError) or self._is_refused_for_its_cells(error, base):
            controller.settle_on(base.without_cells())
        elif n_done == 0 and plan.ops:
            controller.settle_on(base)
        else:
            self._restore(plan)

    def _is_refused_for_its_cells(self, error: Exception, base: State) -> bool:
        """Whether llama.cpp refused positions that do not follow the cells that are there."""
        return (
            isinstance(error, DecodeError)
            and error.code == REFUSED
            and base.ledger.missing is Missing.NOTHING
            and self.context.end(MAIN) != base.ledger.last_end
        )

    def _restore(self, plan: Plan, rows: Rows | None = None) -> None:
        """Do what a plan's ``back`` says, with rows taken out that may have been decoded."""
        context, controller = self.context, self.controller
        try:
            if rows:
                Remove(rows.seq, rows.pos, -1).act_on(context)
            for op in plan.back or ():
                op.act_on(context)
        except BaseException:
            controller.settle_on(plan.base.without_cells())
            raise
        controller.give_up(plan)

    def _is_done(self, plan: Plan) -> bool | None:
        """Whether the one operation of a plan has been done that must not be done twice.

        None where the cells do not tell.
        """
        context, (op,) = self.context, plan.ops or (None,)
        if isinstance(op, Compact):
            # All cells are taken out, and all are put back.
            return context.end(MAIN) == plan.base.ledger.last_end or None
        if not isinstance(op, Shift) or context.capabilities.reanchor.level != "exact":
            return None
        # What has moved down begins where nothing stood; what has moved up ends there.
        moved = op.start + op.delta if op.delta < 0 else op.stop - 1 + op.delta
        context.copy(MAIN, SCRATCH, moved, moved + 1)
        is_there = context.end(SCRATCH) == moved + 1
        context.remove(SCRATCH, 0, -1)
        return is_there
