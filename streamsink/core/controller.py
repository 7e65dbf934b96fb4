"""The logic of one stream: what is done next, and where it stands once that is done.

No engine, no lock, no I/O. Whoever has a context carries plans out::

    while not controller.is_done:
        plan = controller.plan(grant)
        controller.begin(plan)
        ...                       # the operations, then the decode
        controller.commit(plan)   # or settle_on(...) what a failure has left

A stream's state is one value, replaced in one assignment. A plan is noted before anything of it is
done, so that wherever its carrying out is cut off, either the state has changed or the plan is
known that left cells in doubt, and how they are brought back (`Controller.in_doubt`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from streamsink.core import lanes, moves
from streamsink.core.capabilities import Capabilities
from streamsink.core.events import Event
from streamsink.core.ledger import Ledger
from streamsink.core.pinned import Pinned
from streamsink.core.plan import Happened, Plan
from streamsink.core.planner import Grant, Planner
from streamsink.core.policy import SinkPolicy
from streamsink.core.run import Run
from streamsink.core.snapshot import Piece, Snapshot
from streamsink.core.state import State
from streamsink.core.tape import Tape

SINGLY = Grant(1, one_by_one=True)
"""What a step of a run has."""

Step: TypeAlias = tuple[int, int, int | None]
"""A step of a run: the token to decode and its position, and that of the one that leaves first."""


class Controller:
    """One stream: its state, and the only place where that changes.

    Parameters
    ----------
    policy : SinkPolicy
        What to keep, what to evict.
    able : Capabilities
        What may be done to the cache.
    n_ctx : int
        Tokens that a token can attend to, itself and the sink included.
    rebase_at : int
        Position at which growing positions are brought back to 0.
    ends_sentence : callable
        Whether a token ends a sentence.
    report : callable, optional
        Called with every `Event`; it may only take note.

    Raises
    ------
    UsageError, CapabilityError
        As for `adopt`.
    """

    def __init__(
        self,
        policy: SinkPolicy,
        able: Capabilities,
        n_ctx: int,
        *,
        rebase_at: int,
        ends_sentence: Callable[[int], bool] = lambda token: False,
        report: Callable[[Event], object] | None = None,
    ) -> None:
        self.n_ctx = n_ctx
        self._planner = Planner(able, n_ctx, rebase_at, ends_sentence)
        self._report = report
        self._tape = Tape()
        self._begun: Plan | None = None
        self._run: Run | None = None
        pinned = Pinned()
        n_keep = pinned.n_keep(policy, Ledger())
        self._state = State(
            policy, pinned, self._planner.choose(policy, n_keep), Ledger(n_keep=n_keep)
        )

    @property
    def rebase_at(self) -> int:
        """Position at which growing positions are brought back to 0."""
        return self._planner.rebase_at

    @rebase_at.setter
    def rebase_at(self, pos: int) -> None:
        self._here()
        self._planner.rebase_at = pos

    # -- what there is --------------------------------------------------------------------------

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
        return self._tape.read(*ranges)

    def pending(self) -> list[int]:
        """Ids of the tokens that are not decoded yet."""
        return self._tape.read(range(self.next_index, self.n_given))

    def live(self) -> list[int]:
        """Ids of all that the model will see: the live tokens, and the pending ones."""
        return [*self._tape.read(*self.ledger.indices), *self.pending()]

    # -- what is given and asked ----------------------------------------------------------------

    def take(self, tokens: Sequence[int]) -> None:
        """Take tokens in: they are pending until a plan has decoded them."""
        run = self._run
        if run:
            self._tape.write(run.n_given, tokens)
            run.n_given += len(tokens)
        else:
            n_given = self._state.n_given
            self._tape.write(n_given, tokens)
            self._state = self._state.but(n_given=n_given + len(tokens))

    def drop(self, index: int) -> None:
        """Let go of the pending tokens from an index on."""
        state = self._here()
        kept = tuple(place for place in state.boundaries if place <= index)
        self._state = state.but(n_given=index, boundaries=kept)

    def begin_turn(self) -> None:
        """Note that a turn begins with the next token that is given."""
        state = self._here()
        self._state = state.but(boundaries=moves.merged(state.boundaries, (state.n_given,)))

    def adopted(self, policy: SinkPolicy, pinned: Pinned, n_keep: int | None = None) -> State:
        """The state under another policy, which acts from the next token on.

        Parameters
        ----------
        policy : SinkPolicy
            It fits ``n_ctx``.
        pinned : Pinned
            What its ``n_keep`` comes to.
        n_keep : int, optional
            That as a number, where it is known already.

        Raises
        ------
        UsageError
            A system block is to be pinned, and nobody said which.
        CapabilityError
            The model cannot stream so.
        """
        state = self.state
        if n_keep is None:
            n_keep = pinned.n_keep(policy, state.ledger)
        choice = self._planner.choose(policy, n_keep)
        return state.but(
            policy=policy, pinned=pinned, choice=choice, ledger=state.ledger.keeping(n_keep)
        )

    def reset(self) -> None:
        """Forget everything but the policy; cells are cleared before the next token."""
        state = self._here()
        pinned = Pinned(n_system=state.pinned.n_system)
        fresh = State(state.policy, pinned, state.choice, Ledger(n_keep=state.ledger.n_keep))
        self._state = fresh.without_cells()

    # -- plans ----------------------------------------------------------------------------------

    def plan(self, grant: Grant) -> Plan:
        """The next step on the way to having all pending tokens decoded; see `is_done`."""
        return self._planner.advance(self._here(), self._tape, grant)

    @property
    def uses_lanes(self) -> bool:
        """Whether the next decode would be the better for lanes, if they work."""
        return self._planner.uses_lanes(self.state)

    def plan_settling(self, n_batch: int) -> Plan | None:
        """The next step on the way to cells that are the ledger's and no others; None there."""
        state = self._here()
        return lanes.take_down(state) if state.lanes else moves.rebuild(state, self._tape, n_batch)

    def plan_eviction(self, n: int, *, protected: int = 0) -> Plan:
        """Take the oldest tokens out of the window, though there is room.

        The oldest ``protected`` tokens stay, though some of them may not be pinned.
        """
        state = self._here()
        n_keep = state.ledger.n_keep
        under = state.but(ledger=state.ledger.keeping(max(n_keep, protected)))
        plan = moves.evict(under, n)
        then = plan.then.but(ledger=plan.then.ledger.keeping(n_keep))
        return Plan(state, then, plan.ops, back=plan.back, told=plan.told)

    def plan_compaction(self) -> Plan | None:
        """Put scattered cells together; None where they are."""
        return moves.compact(self._here())

    def plan_truncation(self, n: int) -> Plan:
        """Take the ``n`` newest tokens, which are in the window, out: they are pending then."""
        return moves.truncate(self._here(), n)

    def plan_splice(
        self, at: int, n: int, tokens: Sequence[int], under: State, *, exact: bool
    ) -> tuple[Plan, int]:
        """Swap ``n`` of the oldest tokens, after the first ``at``, for others.

        Parameters
        ----------
        under : State
            A state under the policy that goes with them (`adopted`).

        Returns
        -------
        Plan
            Thereafter they are missing.
        int
            Index of the first of them.
        """
        _, index = self.ledger.splice(at, n, len(tokens))
        self._tape.write(index, tokens)
        plan = moves.splice(self._here(), at, n, len(tokens), self._planner.able, exact=exact)
        then = plan.then.but(
            policy=under.policy,
            pinned=under.pinned,
            choice=under.choice,
            ledger=plan.then.ledger.keeping(under.ledger.n_keep),
        )
        return Plan(plan.base, then, plan.ops, back=plan.back), index

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
            self._begun = self._planner.advance(run.state, self._tape, SINGLY)
            self._state = self._begun.base
            self._run = None
        plan = self._begun
        return plan if plan is not None and plan.base is self._state else None

    # -- in a run -------------------------------------------------------------------------------

    def begin_step(self) -> Step | None:
        """Begin the next step of a run, which decodes the one pending token: as `begin` does.

        None where that takes a plan.
        """
        run = self._run
        if run is None or run.n_done == run.n_steps:
            state = self._here()
            if state.n_pending != 1:
                return None
            self._tidy()
            run = self._run = self._planner.run(state)
            if run is None:
                return None
        n = run.n_done
        index = run.index + n
        if run.n_given != index + 1:
            return None
        run.n_begun = n + 1
        return self._tape.read_one(index), run.pos + n, run.gone_pos + n if run.evicts else None

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
            ids = tuple(self._tape.read(one.gone))
            self._report(Event("evict", one.gone.start, one.n_tokens, 0.0, ids, one.cut))
        else:
            self._report(Event(one.kind, self.next_index, one.n_tokens, ms))

    def _tidy(self) -> None:
        """Let go of ids that nobody asks for any more."""
        if self._tape.is_full:
            ledger = self.ledger
            self._tape.clean((*ledger.indices, range(ledger.next_index, self.n_given)))

    # -- as plain data --------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """Where the stream stands, its cells aside."""
        state, ledger = self.state, self.ledger
        return Snapshot(
            self.n_ctx,
            state.policy,
            ledger.n_keep,
            ledger.next_index,
            tuple(
                Piece(part.index, part.pos, tuple(self._tape.read(range(part.index, part.stop))))
                for part in ledger.segments
            ),
            tuple(self.pending()),
            state.pinned,
            state.boundaries,
            state.counters,
        )

    def go_back_to(self, snapshot: Snapshot) -> None:
        """Go on as at an earlier moment, all that came since having been truncated.

        What was truncated of before that moment too is pending again.
        """
        self._write(snapshot)
        self.settle_on(
            self.adopted(snapshot.policy, snapshot.pinned, snapshot.n_keep).but(
                n_given=snapshot.index,
                boundaries=snapshot.boundaries,
                counters=snapshot.counters,
            )
        )

    def resume(
        self, snapshot: Snapshot, *, with_cells: bool, policy: SinkPolicy | None = None
    ) -> None:
        """Go on where a stream stood, with its cells in the context or with none.

        Parameters
        ----------
        policy : SinkPolicy, optional
            What it is to act by; by default its own.

        Raises
        ------
        CapabilityError
            That policy is not for this model.
        """
        choice = self._planner.choose(policy or snapshot.policy, snapshot.n_keep)
        self._write(snapshot)
        state = State(
            snapshot.policy,
            snapshot.pinned,
            choice,
            snapshot.ledger,
            snapshot.index,
            snapshot.boundaries,
            snapshot.counters,
        )
        self.settle_on(state if with_cells else state.without_cells())

    def _write(self, snapshot: Snapshot) -> None:
        for piece in snapshot.pieces:
            self._tape.write(piece.index, piece.tokens)
        self._tape.write(snapshot.n_tokens, snapshot.pending)
