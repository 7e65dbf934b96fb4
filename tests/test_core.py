"""The core alone, without context or engine: its plans are carried out on paper.

A sequence is a dict from position to index here. Whatever is done to a stream, each token that a
plan decodes must see what a plain list says: the pinned tokens and the newest others.
"""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from streamsink.core.capabilities import Capabilities, Verdict
from streamsink.core.controller import Controller
from streamsink.core.events import Event
from streamsink.core.ledger import Missing
from streamsink.core.plan import MAIN, SCRATCH, Plan, Rows
from streamsink.core.planner import Grant, Planner
from streamsink.core.policy import SinkPolicy
from streamsink.core.standing import SINGLY

N_CTX, N_SPARE, N_BATCH = 10, 5, 6
NEVER = Verdict("impossible", "not here")


class Paper:
    """Cells as llama.cpp has them: which index stands at which position of which sequence."""

    def __init__(self) -> None:
        self.seqs: dict[int, dict[int, int]] = {}

    def of(self, seq: int) -> dict[int, int]:
        return self.seqs.setdefault(seq, {})

    def remove(self, seq: int, start: int, stop: int) -> None:
        for pos in [at for at in self.of(seq) if at >= start and (stop < 0 or at < stop)]:
            del self.of(seq)[pos]

    def copy(self, source: int, target: int, start: int, stop: int) -> None:
        found = {at: i for at, i in self.of(source).items() if at >= start}
        self.of(target).update({at: i for at, i in found.items() if stop < 0 or at < stop})

    def shift(self, seq: int, start: int, stop: int, delta: int) -> None:
        moved = {at: i for at, i in self.of(seq).items() if start <= at < stop}
        for at in moved:
            del self.of(seq)[at]
        assert not {at + delta for at in moved} & set(self.of(seq)), "two cells at one position"
        self.of(seq).update({at + delta: index for at, index in moved.items()})
        assert min(self.of(seq), default=0) >= 0

    def compact(self, seq: int) -> None:
        assert not any(cells for other, cells in self.seqs.items() if other != seq)

    def clear(self) -> None:
        self.seqs.clear()


class Failed(Exception):
    """A decode that is made to fail."""


policies = st.builds(
    SinkPolicy,
    n_keep=st.integers(0, 5) | st.just(N_CTX - 1),
    n_discard=st.sampled_from([1, 2, 3, "half"]),
    placement=st.sampled_from(["rotate", "reanchor"]),
    slack=st.integers(0, 9),
)
abilities = st.sampled_from([Capabilities(1000), Capabilities(1000, rotate=NEVER)])


class CoreMachine(RuleBasedStateMachine):
    """A stream on paper, beside a list of what it should see."""

    @initialize(policy=policies, n_lanes=st.sampled_from([1, 4]), able=abilities)
    def open(self, policy: SinkPolicy, n_lanes: int, able: Capabilities) -> None:
        self.able = able
        self.events: list[Event] = []
        self.core = Controller(self.planner(), self.fit(policy), self.events.append)
        self.n_lanes = n_lanes
        self.paper = Paper()
        self.live: list[int] = []
        self.evicted: list[int] = []
        self.next_index = 0

    def planner(self) -> Planner:
        return Planner(self.able, N_CTX, rebase_at=60)

    def fit(self, policy: SinkPolicy) -> SinkPolicy:
        if self.able.rotate is NEVER:
            return SinkPolicy(policy.n_keep, policy.n_discard, "reanchor", policy.slack)
        return policy

    # -- carrying out ---------------------------------------------------------------------------

    def grant(self, n_given: int) -> Grant:
        return Grant(N_BATCH, N_SPARE, self.n_lanes, one_by_one=n_given == 1)

    def carry_out(self, plan: Plan, *, fails: bool = False) -> None:
        """As an engine does; a plan that fails does so at its decode."""
        self.core.begin(plan)
        for op in plan.ops:
            op.act_on(self.paper)
        if plan.rows and fails:
            for op in plan.back or ():
                op.act_on(self.paper)
            self.core.give_up(plan)
            raise Failed
        if plan.rows:
            self.decode(plan, plan.rows)
        self.core.commit(plan)

    def decode(self, plan: Plan, rows: Rows) -> None:
        base = plan.base.ledger
        for at, token in enumerate(rows.tokens):
            pos, seen = rows.pos + at, rows.lanes[at] if rows.lanes else rows.seq
            if rows.is_input:
                index = base.next_index + at
                self.comes(index)
                sees = sorted(self.paper.of(seen).items())
                assert [one for _, one in sees] == self.live[:-1], "it sees what it should not"
                lag = pos - len(sees) - (sees[0][0] if sees else pos)
                assert lag <= plan.base.choice.slack, "the sink is too far behind"
            else:
                missing = base.indices if base.missing is Missing.ALL else base.indices[:-1]
                index = [one for part in missing for one in part][base.n_ready + at]
            assert token == token_of(index)
            cells = self.paper.of(seen)
            assert not cells or max(cells) == pos - 1, "positions that do not go on"
            for seq in range(seen, MAIN - 1, -1) if rows.lanes else (seen,):
                self.paper.of(seq)[pos] = index

    def comes(self, index: int) -> None:
        """The plain list takes a token, and evicts for it what the policy says."""
        ledger, policy = self.core.ledger, self.core.state.policy
        assert index == self.next_index
        if len(self.live) == N_CTX:
            n_pinned = min(ledger.n_keep, len(self.live))
            window = N_CTX - n_pinned
            n = policy.n_discard if isinstance(policy.n_discard, int) else 0
            n = max(1, min(n or window // 2, window))
            self.evicted += self.live[n_pinned : n_pinned + n]
            del self.live[n_pinned : n_pinned + n]
        self.live.append(index)
        self.next_index += 1

    # -- what is done ---------------------------------------------------------------------------

    @rule(n=st.integers(1, 25), cut_at=st.none() | st.integers(0, 25), part=st.integers(0, 2))
    def feed_singly(self, n: int, cut_at: int | None, part: int) -> None:
        """Token by token, as far as it goes without a plan for each; one step is cut off."""
        for done in range(n):
            index = self.core.n_given
            self.core.take([token_of(index)])
            assert self.core.n_pending == 1
            before = self.core.state
            expected = self.core._planner.advance(before, SINGLY)
            if not self.core.finds_run():
                self.core.drop(index)
                self.feed(1, None)
                continue
            token, pos, gone = self.core.begin_step()
            assert self.core.state == before
            plan = self.core.in_doubt() if done == cut_at else None
            assert plan is None or plain(plan) == plain(expected)
            if gone is not None and (plan is None or part > 0):
                self.paper.remove(MAIN, gone, gone + 1)
            if plan is None:
                assert expected.rows == Rows([token], pos)
                self.decode(expected, Rows([token], pos))
                self.core.commit_step()
                assert self.core.state == expected.then
                assert self.core.in_doubt() is None
                continue
            if part > 1:
                self.paper.of(MAIN)[pos] = index
            self.paper.remove(MAIN, pos, -1)
            for op in plan.back or ():
                op.act_on(self.paper)
            self.core.give_up(plan)
            self.forget_what_left()
            self.core.drop(index)

    def forget_what_left(self) -> None:
        """What has left to make room for a decode that failed has left; nothing else happened."""
        gone = len(told(self.events)) - len(self.evicted)
        if gone:
            n_pinned = self.core.ledger.n_pinned
            self.evicted += self.live[n_pinned : n_pinned + gone]
            del self.live[n_pinned : n_pinned + gone]

    @rule(n=st.just(1) | st.integers(1, 25), fails_at=st.none() | st.just(0) | st.integers(1, 6))
    def feed(self, n: int, fails_at: int | None) -> None:
        first = self.core.state.n_given
        self.core.take([token_of(index) for index in range(first, first + n)])
        n_given = self.core.state.n_pending
        n_decodes = 0
        while not self.core.is_done:
            plan = self.core.plan(self.grant(n_given))
            fails = plan.rows is not None and n_decodes == fails_at
            n_decodes += plan.rows is not None
            try:
                self.carry_out(plan, fails=fails)
            except Failed:
                self.forget_what_left()

    def settle(self) -> None:
        while plan := self.core.plan_settling(N_BATCH):
            self.carry_out(plan)

    @precondition(lambda self: self.core.ledger.n_newest)
    @rule(data=st.data())
    def rewind(self, data: Any) -> None:
        ledger = self.core.ledger
        n = data.draw(st.integers(1, ledger.n_newest))
        self.settle()
        self.carry_out(self.core.plan_truncation(n))
        assert self.core.state.n_pending == n
        self.core.drop(ledger.next_index - n)
        del self.live[len(self.live) - n :]
        self.next_index -= n

    @precondition(lambda self: self.core.ledger.n_window > 1)
    @rule(data=st.data())
    def evict(self, data: Any) -> None:
        self.settle()
        n = data.draw(st.integers(1, self.core.ledger.n_window - 1))
        self.carry_out(self.core.plan_eviction(n))
        n_pinned = self.core.ledger.n_pinned
        self.evicted += self.live[n_pinned : n_pinned + n]
        del self.live[n_pinned : n_pinned + n]

    @precondition(lambda self: self.core.ledger.n_live > 6)
    @rule(n_new=st.integers(0, 3), exact=st.booleans())
    def swap_the_prefix(self, n_new: int, exact: bool) -> None:
        core = self.core
        self.settle()
        n = min(2, core.ledger.n_pinned)
        over = max(0, core.ledger.n_live - n + n_new - N_CTX)
        if over:
            self.carry_out(core.plan_eviction(over, protected=n))
            first = max(core.ledger.n_pinned, n)
            self.evicted += self.live[first : first + over]
            del self.live[first : first + over]
        lowest = min(0, *(part.start for part in core.ledger.indices))
        tokens = [token_of(lowest - n_new + at) for at in range(n_new)]
        plan, index = core.plan_splice(0, n, tokens, core.state, exact=exact)
        self.carry_out(plan)
        self.live[:n] = range(index, index + n_new)
        self.settle()

    @rule(policy=policies)
    def change(self, policy: SinkPolicy) -> None:
        self.core.settle_on(self.core.adopted(self.fit(policy), self.core.state.pinned))

    @rule()
    def lose_the_cells(self) -> None:
        self.core.settle_on(self.core.state.without_cells())
        self.paper.of(MAIN)[3] = -99
        self.paper.of(SCRATCH)[7] = -99

    @rule()
    def move_house(self) -> None:
        """The same stream goes on elsewhere, its cells with it."""
        self.settle()
        other = Controller(self.planner(), SinkPolicy(0), self.events.append)
        other.resume(self.core.snapshot(), with_cells=True, policy=self.core.state.policy)
        assert other.snapshot() == self.core.snapshot()
        self.core = other

    # -- what holds -----------------------------------------------------------------------------

    @invariant()
    def same(self) -> None:
        if not hasattr(self, "core"):
            return
        core, ledger = self.core, self.core.ledger
        assert [one for part in ledger.indices for one in part] == self.live
        assert core.live() == [token_of(index) for index in self.live]
        assert told(self.events) == self.evicted
        assert core.state.counters.evicted == len(self.evicted)
        assert ledger.n_live <= N_CTX
        if ledger.missing is Missing.NOTHING:
            cells = sorted(self.paper.of(MAIN).items())
            expected = [
                (part.pos + at, part.index + at) for part in ledger.segments for at in range(part.n)
            ]
            assert cells == expected
            if not core.state.lanes:
                assert not any(cells for seq, cells in self.paper.seqs.items() if seq != MAIN)


def plain(plan: Plan) -> Any:
    """What a plan says, without the function in it."""
    return plan.base, plan.then, plan.ops, plan.rows, plan.back, plan.told


def token_of(index: int) -> int:
    return 1000 + index


def told(events: list[Event]) -> list[int]:
    """Indices that events said were evicted, their ids held against them."""
    gone = [event for event in events if event.kind == "evict"]
    indices = [event.index + at for event in gone for at in range(event.n_tokens)]
    assert [token for event in gone for token in event.tokens] == list(map(token_of, indices))
    return indices


CoreMachine.TestCase.settings = settings(
    max_examples=500,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestCore = CoreMachine.TestCase
