"""Plans carried out on a context, or taken back: what is left is right wherever that ends."""

from __future__ import annotations

import time
from contextlib import suppress

from streamsink.core.controller import Controller
from streamsink.core.ledger import Missing
from streamsink.core.plan import MAIN, SCRATCH, Compact, Plan, Remove, Rows, Shift
from streamsink.core.state import State
from streamsink.engine.context import Context, Outputs, Part
from streamsink.engine.task import AskPlace, Task
from streamsink.engine.undo import Undo
from streamsink.errors import DecodeError, StreamsinkError, TornError

REFUSED = -1
"""llama_decode's answer to a batch that it does not begin (llama.h)."""


class Carrier:
    """What carrying out a stream's plans has in common.

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
    ms : float
        What was spent since the last tokens were fed, in milliseconds.
    """

    def __init__(self, context: Context, controller: Controller) -> None:
        self.context = context
        self.controller = controller
        self.undo: Undo | None = None
        self.ms = 0.0
        self._next = NextToken(self)

    def carry_out(self, plan: Plan, outputs: Outputs = "last") -> Task[bool]:
        """Have a plan carried out; whether it was, rather than that another one is to be made.

        Raises
        ------
        DecodeError, CacheError
            What the context says; the stream stands where `Controller.give_up` leads.
        """
        if self.undo and plan.loses:
            yield AskPlace(self.context)
            if self.controller.state is not plan.base:  # the cells have been elsewhere meanwhile
                return False
            self.undo.will_lose(self.controller.n_pending)
        done: bool = yield CarryOut(self, plan, outputs)
        return done

    def step(self) -> NextToken | None:
        """Decoding the one pending token in a step of a run; None where that takes plans."""
        return self._next if not self.undo and self.controller.finds_run() else None

    def put_right(self, error: BaseException, n_done: int) -> None:
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


class CarryOut:
    """A plan to be carried out: the `Work` of most steps."""

    __slots__ = ("_carrier", "_n_done", "_outputs", "_plan", "_started")

    def __init__(self, carrier: Carrier, plan: Plan, outputs: Outputs) -> None:
        self._carrier = carrier
        self._plan = plan
        rows = plan.rows
        if rows is not None and not rows.is_input:
            outputs = "last" if plan.then.has_logits else "none"
        self._outputs = outputs
        self._n_done = 0
        self._started = 0.0

    @property
    def context(self) -> Context:
        """Whose cells it acts on."""
        return self._carrier.context

    @property
    def _feeds(self) -> bool:
        rows = self._plan.rows
        return rows is not None and rows.is_input

    @property
    def n_tokens(self) -> int:
        """Tokens that are to be decoded."""
        rows = self._plan.rows
        return len(rows.tokens) if rows else 0

    def begin(self) -> Part | None:
        """Note that the plan is under way, do its operations, return its rows."""
        carrier, plan = self._carrier, self._plan
        if not self._feeds:
            self._started = time.perf_counter()
        carrier.controller.begin(plan)
        for op in plan.ops:
            op.act_on(carrier.context)
            self._n_done += 1
        return None if plan.rows is None else Part(plan.rows, self._outputs)

    def commit(self) -> None:
        """Note that the plan is done."""
        carrier, plan = self._carrier, self._plan
        if not self._feeds:
            carrier.ms += (time.perf_counter() - self._started) * 1e3
        carrier.controller.commit(plan, carrier.ms)
        if self._feeds or plan.told:
            carrier.ms = 0.0

    def put_right(self, error: BaseException) -> None:
        """Take back what is there of the plan."""
        self._carrier.put_right(error, self._n_done)


class NextToken:
    """A step of a run: the `Work` of nearly all steps where tokens come one by one."""

    __slots__ = ("_carrier", "_n_done")

    def __init__(self, carrier: Carrier) -> None:
        self._carrier = carrier
        self._n_done = 0

    @property
    def context(self) -> Context:
        """Whose cells it acts on."""
        return self._carrier.context

    @property
    def n_tokens(self) -> int:
        """One token is decoded."""
        return 1

    def begin(self) -> Part:
        """Note that the step is under way, let the token leave that leaves, return the next one."""
        self._n_done = 0
        carrier = self._carrier
        token, pos, leaves = carrier.controller.begin_step()
        if leaves is not None:
            carrier.context.remove(MAIN, leaves, leaves + 1)
            self._n_done = 1
        return Part(Rows((token,), pos), "last")

    def commit(self) -> None:
        """Note that the step is done."""
        self._carrier.controller.commit_step()

    def put_right(self, error: BaseException) -> None:
        """Take back what is there of the step."""
        self._carrier.put_right(error, self._n_done)
