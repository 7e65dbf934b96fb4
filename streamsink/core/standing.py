"""Where one stream stands, and what becomes of a plan: carried out, given up, or cut off.

A stream's state is one value, replaced in one assignment; in a run (`streamsink.core.run`) the
number of steps stands for it. A plan or a step is noted before anything of it is done, so that
wherever its carrying out is cut off, either the state has changed or it is known what left cells in
doubt, and how they are brought back (`Standing.in_doubt`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from streamsink.core.events import Event
from streamsink.core.ledger import Ledger
from streamsink.core.plan import Happened, Plan
from streamsink.core.planner import Grant, Planner
from streamsink.core.run import Run
from streamsink.core.state import State

SINGLY = Grant(1, one_by_one=True)
"""What a step of a run has."""

Step: TypeAlias = tuple[int, int, int | None]
"""A step of a run: the token to decode and its position, and that of the one that leaves first."""


class Standing:
    """One stream's state, and the only place where that changes.

    Parameters
    ----------
    planner : Planner
        What comes next.
    state : State
        Where the stream begins.
    report : callable, optional
        Called with every `Event`; it may only take note.
    """

    def __init__(
        self, planner: Planner, state: State, report: Callable[[Event], object] | None = None
    ) -> None:
        self._planner = planner
        self._state = state
        self._report = report
        self._begun: Plan | None = None
        self._run: Run | None = None

    @property
    def state(self) -> State:
        """Where the stream stands."""
        run = self._run
        return run.state if run else self._state

    @property
    def ledger(self) -> Ledger:
        """Which token sits where."""
        return self.state.ledger

    @property
    def n_given(self) -> int:
        """Tokens taken in so far."""
        run = self._run
        return run.n_given if run else self._state.n_given

    @property
    def next_index(self) -> int:
        """Index of the next token to be decoded."""
        run = self._run
        return run.index + run.n_done if run else self._state.ledger.next_index

    @property
    def n_pending(self) -> int:
        """Tokens taken in and not decoded yet."""
        return self.n_given - self.next_index

    @property
    def is_done(self) -> bool:
        """Whether nothing is pending, and no lane stands."""
        return not self.n_pending and not self.state.lanes

    @property
    def is_empty(self) -> bool:
        """Whether no token is live, and none has been."""
        return not (self.n_given or self.ledger.n_live)

    def ids(self, *ranges: range) -> list[int]:
        """Ids of live tokens, by their indices."""
        return self._state.tape.read(*ranges)

    def pending(self) -> list[int]:
        """Ids of the tokens that are not decoded yet."""
        return self._state.tape.read(range(self.next_index, self.n_given))

    def live(self) -> list[int]:
        """Ids of all that the model will see: the live tokens, and the pending ones."""
        return [*self._state.tape.read(*self.ledger.indices), *self.pending()]

    # -- where it stands ------------------------------------------------------------------------

    def begin(self, plan: Plan) -> None:
        """Note that a plan is being carried out: from here on the cells are in doubt."""
        self._begun = plan

    def commit(self, plan: Plan, ms: float = 0.0) -> None:
        """Note that a plan has been carried out. The ledger moves here, and in `commit_step`."""
        self._state = plan.then
        if plan.told:
            self._tell(plan.told, ms)

    def give_up(self, plan: Plan) -> None:
        """Note that a plan was not carried out, and that what it left has been put right."""
        instead = plan.otherwise() if plan.otherwise else plan
        self._state = instead.then.but(has_logits=False) if plan.rows else instead.then
        self._tell(instead.told, 0.0)

    def settle_on(self, state: State) -> None:
        """Note where the stream stands, no plan being carried out."""
        self._here()
        self._state = state
        self._begun = None

    def in_doubt(self) -> Plan | None:
        """A plan that was begun, and neither committed nor settled: it was cut off."""
        run = self._run
        if run:
            if run.n_begun == run.n_done:
                return None
            # Planning is a pure function: this is the plan that the step stood in for.
            self._begun = self._planner.advance(run.state, SINGLY)
            self._state = self._begun.base
            self._run = None
        plan = self._begun
        return plan if plan is not None and plan.base is self._state else None

    # -- in a run -------------------------------------------------------------------------------

    def finds_run(self) -> bool:
        """Find out whether the one pending token can be decoded in a step of a run."""
        run = self._run
        if run is None or run.n_done == run.n_steps:
            state = self._here()
            if state.n_pending != 1:
                return False
            self._tidy()
            run = self._run = self._planner.run(state)
        return run is not None and run.n_given == run.index + run.n_done + 1

    def begin_step(self) -> Step:
        """Begin the next step of a run, which decodes the one pending token: as `begin` does."""
        run = self._run
        assert run
        n = run.n_done
        run.n_begun = n + 1
        return (
            self._state.tape.read_one(run.index + n),
            run.pos + n,
            run.gone_pos + n if run.evicts else None,
        )

    def commit_step(self) -> None:
        """Note that a step has been carried out."""
        run = self._run
        assert run
        n = run.n_done
        run.n_done = n + 1
        if run.evicts and self._report:
            index = run.gone_index + n
            self._tell_of(Happened("evict", 1, range(index, index + 1)), 0.0)

    def _here(self) -> State:
        """Where the stream stands, a run being left: what comes next takes a plan."""
        run = self._run
        if run:
            self._state = run.state
            self._run = None
        return self._state

    def _tell(self, told: tuple[Happened, ...], ms: float) -> None:
        if self._report:
            for one in told:
                self._tell_of(one, ms)
        self._tidy()

    def _tell_of(self, one: Happened, ms: float) -> None:
        assert self._report
        if one.gone:
            ids = tuple(self._state.tape.read(one.gone))
            self._report(Event("evict", one.gone.start, one.n_tokens, 0.0, ids, one.cut))
        else:
            self._report(Event(one.kind, self.next_index, one.n_tokens, ms))

    def _tidy(self) -> None:
        """Let go of ids that nobody asks for any more."""
        if self._state.tape.is_full:
            ledger = self.ledger
            self._state.tape.clean((*ledger.indices, range(ledger.next_index, self.n_given)))
