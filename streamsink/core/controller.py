"""The logic of one stream: what is done next, and where it stands once that is done.

No engine, no lock, no I/O. Whoever has a context carries plans out::

    while not controller.is_done:
        plan = controller.plan(grant)
        controller.begin(plan)
        ...                       # the operations, then the decode
        controller.commit(plan)   # or settle_on(...) what a failure has left
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence

from streamsink.core import lanes, moves
from streamsink.core.events import Event
from streamsink.core.ledger import Ledger, Segment
from streamsink.core.matching import Passage
from streamsink.core.pinned import Pinned
from streamsink.core.plan import Plan
from streamsink.core.planner import Grant, Planner
from streamsink.core.policy import SinkPolicy
from streamsink.core.snapshot import Piece, Snapshot
from streamsink.core.standing import Standing
from streamsink.core.state import State
from streamsink.core.tape import Tape, packed


class Controller(Standing):
    """One stream: what it is given, what is asked of it, and the plans for that.

    Parameters
    ----------
    planner : Planner
        What comes next.
    policy : SinkPolicy
        What to keep, what to evict.
    report : callable, optional
        Called with every `Event`; it may only take note.

    Raises
    ------
    UsageError, CapabilityError
        As for `adopted`.
    """

    def __init__(
        self,
        planner: Planner,
        policy: SinkPolicy,
        report: Callable[[Event], object] | None = None,
    ) -> None:
        pinned = Pinned()
        n_keep = pinned.n_keep(policy, Ledger())
        choice = planner.choose(policy, n_keep)
        super().__init__(
            planner, State(policy, pinned, choice, Tape(), Ledger(n_keep=n_keep)), report
        )

    @property
    def n_ctx(self) -> int:
        """Tokens that a token can attend to, itself and the sink included."""
        return self._planner.n_ctx

    @property
    def rebase_at(self) -> int:
        """Position at which growing positions are brought back to 0."""
        return self._planner.rebase_at

    @rebase_at.setter
    def rebase_at(self, pos: int) -> None:
        self._here()
        self._planner.rebase_at = pos

    # -- what is given and asked ----------------------------------------------------------------

    def take(self, tokens: Sequence[int]) -> None:
        """Take tokens in: they are pending until a plan has decoded them."""
        run = self._run
        if run:
            self._state.tape.write(run.n_given, tokens)
            run.n_given += len(tokens)
        else:
            n_given = self._state.n_given
            self._state.tape.write(n_given, tokens)
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
        fresh = State(
            state.policy, pinned, state.choice, Tape(), Ledger(n_keep=state.ledger.n_keep)
        )
        self._state = fresh.without_cells()

    # -- plans ----------------------------------------------------------------------------------

    def plan(self, grant: Grant) -> Plan:
        """The next step on the way to having all pending tokens decoded; see `is_done`."""
        return self._planner.advance(self._here(), grant)

    @property
    def uses_lanes(self) -> bool:
        """Whether the next decode would be the better for lanes, if they work."""
        return self._planner.uses_lanes(self.state)

    def plan_settling(self, n_batch: int) -> Plan | None:
        """The next step on the way to cells that are the ledger's and no others; None there."""
        state = self._here()
        return lanes.take_down(state) if state.lanes else moves.rebuild(state, n_batch)

    @property
    def has_arrived(self) -> bool:
        """Whether something that is held has come to the front of the window."""
        return bool(self.state.pinned.held) and not self._planner.n_free(self.state)

    def join(self) -> None:
        """Pin what is held and has arrived: it stands right behind what is pinned already."""
        pinned = self.state.pinned.joined()
        self.settle_on(self.adopted(self.state.policy, pinned))

    def n_free(self, protected: int = 0) -> int:
        """How many tokens may leave before something that is held would."""
        return self._planner.n_free(self.state, protected)

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
        self._state.tape.write(index, tokens)
        plan = moves.splice(self._here(), at, n, len(tokens), self._planner.able, exact=exact)
        then = plan.then.but(
            policy=under.policy,
            pinned=under.pinned,
            choice=under.choice,
            ledger=plan.then.ledger.keeping(under.ledger.n_keep),
        )
        return Plan(plan.base, then, plan.ops, back=plan.back), index

    def forgotten(self, index: int) -> tuple[array[int], int]:
        """Ids of the tokens before an index that cannot be seen, and how many before are unknown.

        Those of a prefix that was swapped are among them, though they were never forgotten.
        """
        state = self.state
        past = state.tape.newest(index)
        before = (part for part in state.ledger.indices if part.start < index)
        seen = max(0, *(min(part.stop, index) for part in before), 0)
        n_seen = max(0, seen - (index - len(past)))
        return past[n_seen:], max(0, index - len(past) - seen)

    def plan_keeping(
        self,
        history: Sequence[int],
        n_head: int,
        kept: Sequence[Passage],
        start: int,
        *,
        same_prefix: bool,
        anew: bool,
    ) -> Plan:
        """Keep passages of a history alone, and number all tokens as the history does.

        Parameters
        ----------
        history : sequence of int
            Its ids as far as the stream is to hold it.
        n_head : int
            The oldest live tokens that stay, the pinned ones among them.
        kept, start, anew
            As for `moves.keep`.
        same_prefix : bool
            Whether the history begins with the pinned prefix.
        """
        state = self._here()
        pinned, ledger = state.pinned, state.ledger
        n_prefix = ledger.n_pinned - pinned.n_spans
        tape = Tape.of(history, n_head)
        head: list[Segment] = []
        n, index = 0, 0
        apart = min(0, *(part.index for part in ledger.segments)) - n_prefix
        for part in ledger.divided(n_head)[0]:
            if n_prefix <= n < ledger.n_pinned:  # a span, which repeats what stands elsewhere
                new = part.index
            elif n < n_prefix and not same_prefix:
                new = apart + n
            else:
                new, index = index, index + part.n
            head.append(Segment(new, part.pos, part.n))
            if new < 0:
                tape.write(new, state.tape.read(range(part.index, part.stop)))
            n += part.n
        return moves.keep(state, head, kept, start, tape, anew=anew)

    def number_prefix(self, n: int) -> None:
        """Number the ``n`` oldest tokens, which have come last, as those that begin the stream."""
        state = self._here()
        self.settle_on(state.but(ledger=state.ledger.numbered(n, 0)))

    # -- as plain data --------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """Where the stream stands, its cells aside."""
        state, ledger = self.state, self.ledger
        tape = state.tape
        return Snapshot(
            self.n_ctx,
            state.policy,
            ledger.n_keep,
            ledger.next_index,
            tuple(
                Piece(part.index, part.pos, tuple(tape.read(range(part.index, part.stop))))
                for part in ledger.segments
            ),
            tuple(self.pending()),
            state.pinned,
            state.boundaries,
            state.counters,
            packed(tape.newest(ledger.segments[-1].index if ledger.segments else 0)),
        )

    def go_back_to(self, snapshot: Snapshot) -> None:
        """Go on as at an earlier moment, all that came since having been truncated.

        What was truncated of before that moment too is pending again.
        """
        self.settle_on(
            self.adopted(snapshot.policy, snapshot.pinned, snapshot.n_keep).but(
                tape=snapshot.tape(),
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
        state = State(
            snapshot.policy,
            snapshot.pinned,
            choice,
            snapshot.tape(),
            snapshot.ledger,
            snapshot.index,
            snapshot.boundaries,
            snapshot.counters,
        )
        self.settle_on(state if with_cells else state.without_cells())
