"""Cells brought to where the ledger has them: what is missing evaluated, lanes taken down."""

from __future__ import annotations

from collections.abc import Callable

from streamsink.core.controller import Controller
from streamsink.core.ledger import Missing
from streamsink.engine.carrier import Carrier
from streamsink.engine.context import Context
from streamsink.engine.task import AskAside, Task, answered
from streamsink.errors import UsageError


class Settling(Carrier):
    """What brings a stream to rest, and back.

    Parameters
    ----------
    context : Context
        The stream's own.
    controller : Controller
        The stream's logic.

    Attributes
    ----------
    pause : callable
        Called between two decodes of a long input, when nothing is half done; it may raise. Set by
        whoever runs the stream's tasks.
    """

    def __init__(self, context: Context, controller: Controller) -> None:
        super().__init__(context, controller)
        self.pause: Callable[[], object] = lambda: None

    def finish(self) -> Task[None]:
        """Bring back what is missing, all lanes taken down."""
        first = True
        yield from self.seek_room()
        while plan := self.controller.plan_settling(self.context.n_batch):
            if not first:
                self.pause_if_possible()
            yield from self.carry_out(plan)
            yield from self.seek_room()
            first = False

    def seek_room(self) -> Task[None]:
        """Go where a head that is missing can be evaluated, or evaluate all anew."""
        is_missing = self.controller.ledger.missing is Missing.HEAD
        if is_missing and not (yield AskAside(self.context)):
            self.lose_cells()

    def take_down_lanes(self) -> Task[None]:
        """Have no lanes stand."""
        if self.controller.state.lanes:
            plan = self.controller.plan_settling(self.context.n_batch)
            assert plan
            yield from self.carry_out(plan)

    def compact(self) -> Task[None]:
        """Put together what lanes have scattered, as is done before tokens come one by one."""
        yield from self.take_down_lanes()
        plan = self.controller.plan_compaction()
        if plan:
            yield from self.carry_out(plan)

    def pause_if_possible(self) -> None:
        """Let signals act where nothing is half done, or where what is done can be undone."""
        if self.undo is None or self.undo.is_possible:
            self.pause()

    # -- back -----------------------------------------------------------------------------------

    def truncate(self, n: int) -> Task[None]:
        """Take the newest tokens out of cells and ledger: they are pending then.

        Raises
        ------
        UsageError
            The window has fewer.
        CacheError
            They cannot be taken back: a recurrent state holds them.
        """
        controller = self.controller
        n_newest = controller.ledger.n_newest
        if n > n_newest:
            raise UsageError(f"{n} tokens cannot be taken back: {n_newest} are in the window")
        yield from self.take_down_lanes()
        yield from self.carry_out(controller.plan_truncation(n))
        if self.undo:
            self.undo.goes_back_to(controller.ledger.next_index)
        self.look_at_cells()

    def look_at_cells(self) -> None:
        """See that all live tokens have cells.

        A small cache of a sliding window has put newer tokens where older ones were.
        """
        controller = self.controller
        ledger = controller.ledger
        stands = ledger.n_live and ledger.missing is not Missing.ALL
        if stands and not self.context.is_whole(ledger.spans):
            controller.settle_on(controller.state.without_cells())

    # -- elsewhere ------------------------------------------------------------------------------

    @property
    def n_pending(self) -> int:
        """Tokens taken in and not decoded yet."""
        return self.controller.n_pending

    def prepare_move(self) -> None:
        """Leave no cells but those of `MAIN`: these are about to be taken elsewhere."""
        for request in self.take_down_lanes():
            answered(request)
        state = self.controller.state
        if state.ledger.missing is Missing.HEAD and state.ledger.n_ready:
            # What stands in `SCRATCH` of the head stays behind.
            self.controller.settle_on(state.but(ledger=state.ledger.lacking(Missing.HEAD)))

    def lose_cells(self) -> None:
        """Note that all cells are gone: the tokens are evaluated anew before the stream goes on."""
        self.controller.settle_on(self.controller.state.without_cells())
