"""Faults while streaming: whatever fails, ledger and cache agree, and the stream goes on.

Every call of a script meets every fault that it can meet, and a state machine tries what no script
thought of. For real faults of llama.cpp see `tests.test_native_faults`.
"""

# A state machine goes on after a refusal, so it looks at the message itself.
# ruff: noqa: PT017

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from streamsink.core.events import Evicted
from streamsink.core.ledger import Missing
from streamsink.core.plan import MAIN
from streamsink.core.policy import SinkPolicy
from streamsink.core.sampling import Sampling
from streamsink.engine.context import Logits
from streamsink.engine.scoring import nll
from streamsink.engine.stream import Stream
from streamsink.engine.task import Task
from streamsink.errors import (
    TornError,
)
from tests.fake_backend import BOS, FakeBackend, logits_of, value_of
from tests.faulty_backend import CALLS, FAULTS, MET, Fault, FaultyBackend
from tests.test_stream_machine import N_CTX, PlainStream, StreamMachine, policies, texts

pytestmark = pytest.mark.usefixtures("ctrl_c_interrupts")

GREEDY = Sampling(temperature=0)


def assert_agreement(stream: Stream, backend: FaultyBackend) -> None:
    """Every live token has its cell, at its position, and nothing else has one."""
    ledger = stream._controller.ledger
    if ledger.missing is Missing.ALL:
        return
    parts = ledger.segments if ledger.missing is Missing.NOTHING else ledger.segments[-1:]
    expected = [
        (part.pos + at, token)
        for part in parts
        for at, token in enumerate(stream._controller.ids(range(part.index, part.stop)))
    ]
    cells = [(cell.pos, cell.token) for cell in backend.stream_cells()]
    if ledger.missing is Missing.HEAD:
        # Of the head nothing is promised but that it will be evaluated anew.
        cells = [cell for cell in cells if cell[0] >= ledger.segments[-1].pos]
    assert cells == expected
    if ledger.missing is Missing.NOTHING and not stream._controller.state.lanes:
        assert all(cell.sequences == {MAIN} for cell in backend.fake.cells)


# -- a script, every call of it, every fault ----------------------------------------------------


@dataclass
class Played:
    """What a script came to."""

    backend: FaultyBackend
    tokens: list[int] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)
    gone: list[Evicted] = field(default_factory=list)
    evicted: int = 0
    cells: list[tuple[int, int, int]] = field(default_factory=list)
    foreseen: list[float] = field(default_factory=list)

    def meet(self, stream: Stream, error: BaseException) -> None:
        """Something went wrong: it is one thing, it says what, and nothing is torn apart."""
        self.errors.append(error)
        assert isinstance(error, (KeyboardInterrupt, MemoryError)) or str(error)
        assert_agreement(stream, self.backend)

    def feed(self, stream: Stream, tokens: Sequence[int], take: str = "feed") -> None:
        """Take all of it in, whatever happens on the way: the index says what was taken."""
        begun = stream.stats.index
        taken = 0
        while taken < len(tokens):
            try:
                getattr(stream, take)(tokens[taken:])
            except MET as error:
                self.meet(stream, error)
            taken = stream.stats.index - begun
            assert stream.visible_tokens()[-1:] == [*self.tokens, *tokens[:taken]][-1:]
            # What a failed call has taken in is not scored again.
            take = "feed"
        self.tokens += tokens

    def generate(self, stream: Stream, n: int) -> None:
        """Go on by so many tokens; what was yielded is in the stream, and nothing else."""
        said = 0
        while said < n:
            try:
                for step in stream.generate(n - said, sampling=GREEDY, ignore_eos=True):
                    assert step.index == len(self.tokens)
                    self.tokens.append(step.token)
                    said += 1
            except MET as error:
                self.meet(stream, error)
            assert stream.stats.index == len(self.tokens)

    def reset(self, stream: Stream) -> None:
        """Begin anew, also where that fails."""
        try:
            stream.reset()
        except MET as error:
            self.meet(stream, error)
        assert (stream.stats.index, stream.visible_tokens()) == (0, [])
        self.tokens.clear()
        self.gone.clear()


def walk(stream: Stream, played: Played) -> None:
    """A prompt, batches of evictions, single tokens, a head in pieces, positions that grow."""
    text = [(7 * at) % 250 for at in range(60)]
    played.feed(stream, text[:14])
    played.generate(stream, 3)
    stream.change(n_keep=5)
    played.feed(stream, text[14:37], "score")
    played.generate(stream, 2)
    stream.change(n_keep=2)
    played.feed(stream, text[37:47])
    played.feed(stream, text[47:48])


def begin_again(stream: Stream, played: Played) -> None:
    """A full stream, emptied, and filled by others."""
    played.feed(stream, list(range(20)))
    played.generate(stream, 1)
    played.reset(stream)
    played.feed(stream, list(range(100, 116)))
    played.generate(stream, 2)


Script: TypeAlias = Callable[[Stream, Played], None]
SCRIPTS: tuple[Script, ...] = (walk, begin_again)
SETTINGS = [
    (SinkPolicy(2, 1, "rotate", slack=0), 1),
    (SinkPolicy(2, 3, "rotate", slack=5), 8),
    (SinkPolicy(2, 1, "reanchor", slack=0), 1),
    (SinkPolicy(2, 1, "reanchor", slack=5), 8),
    (SinkPolicy(2, 3, "reanchor", slack=9), 8),
    (SinkPolicy(1, 1, "rotate", slack=30), 8),
]
"""Policies and lanes."""


def play(
    script: Script, policy: SinkPolicy, n_lanes: int, faults: Sequence[tuple[int, Fault]] = ()
) -> Played:
    """Follow a script, with faults at some calls of it."""
    played = Played(FaultyBackend(FakeBackend(N_CTX + n_lanes - 1, n_lanes, 8)))
    for at, fault in faults:
        played.backend.strike_in(at, fault)
    with Stream(played.backend, policy, N_CTX, on_evict=played.gone.append, rebase_at=60) as stream:
        script(stream, played)
        # Whatever was put off until the next token is due now.
        played.feed(stream, [1])
        assert_agreement(stream, played.backend)
        played.evicted = stream.stats.evicted
        cells = played.backend.stream_cells()
        played.cells = [(cell.pos - cells[0].pos, cell.token, cell.value) for cell in cells]
        played.foreseen = stream.logits().tolist()
    return played


@pytest.mark.parametrize(("policy", "n_lanes"), SETTINGS)
@pytest.mark.parametrize("script", SCRIPTS)
def test_every_fault_at_every_call(script: Script, policy: SinkPolicy, n_lanes: int) -> None:
    flawless = play(script, policy, n_lanes)
    assert not flawless.errors
    for at, call in enumerate(flawless.backend.calls):
        for fault in FAULTS:
            if call not in fault.calls:
                continue
            played = play(script, policy, n_lanes, [(at, fault)])
            where = f"{fault} at call {at}, {call}"
            assert played.backend.struck == [fault], where
            assert len(played.errors) == 1, where
            if played.backend.n_torn:
                # What the window remembered of evicted tokens is gone: the model says other things.
                assert isinstance(played.errors[0], TornError), where
                assert len(played.tokens) == len(flawless.tokens), where
                continue
            assert played.tokens == flawless.tokens, where
            assert played.cells == flawless.cells, where
            assert played.foreseen == flawless.foreseen, where
            assert flat(played.gone) == flat(flawless.gone), where
            assert played.evicted == flawless.evicted, where


def test_a_fault_while_another_is_put_right() -> None:
    """Lanes are taken down and evictions taken back, and that fails too."""
    aborted, no_change = (
        next(fault for fault in FAULTS if fault.name == name) for name in ("aborted", "no-change")
    )
    setting = (SinkPolicy(2, 1, "reanchor", slack=5), 8)
    flawless = play(walk, *setting)
    n_both = 0
    for at, call in enumerate(flawless.backend.calls):
        if call != "decode_lanes":
            continue
        for later in range(1, 10):
            played = play(walk, *setting, [(at, aborted), (at + later, no_change)])
            n_both += len(played.backend.struck) == 2
            assert len(played.tokens) == len(flawless.tokens)
    assert n_both > 10


def flat(gone: Sequence[Evicted]) -> list[tuple[int, int]]:
    """Evicted tokens one by one."""
    return [(one.index + at, token) for one in gone for at, token in enumerate(one.tokens)]


def test_the_scripts_make_every_call() -> None:
    made = {
        call
        for script, setting in itertools.product(SCRIPTS, SETTINGS)
        for call in play(script, *setting).backend.calls
    }
    assert made == set(CALLS)
    assert {call for fault in FAULTS for call in fault.calls} == set(CALLS)


# -- any operation, any fault -------------------------------------------------------------------

Strikes: TypeAlias = list[tuple[int, Fault]]
strikes: st.SearchStrategy[Strikes] = st.lists(
    st.tuples(st.integers(0, 40), st.sampled_from(FAULTS)), max_size=2
)


class TornPlainStream(PlainStream):
    """A list that may have to be evaluated anew, and that remembers what foresaw each token."""

    def __init__(self) -> None:
        super().__init__()
        self.torn = False
        self.foreseen: list[int | None] = []

    def take(self, token: int, policy: SinkPolicy, n_keep: int) -> None:
        self.foreseen.append(self.live[-1].value if self.live else None)
        super().take(token, policy, n_keep)

    def bring_up(self, policy: SinkPolicy) -> None:
        if self.torn:
            self.torn = False
            for at, one in enumerate(self.live):
                one.pos = at
                one.value = value_of(one.token, [(at - o.pos, o.value) for o in self.live[:at]])
            self.next_pos = len(self.live)
        super().bring_up(policy)

    @property
    def gap(self) -> int:
        return self.next_pos - self.live[0].pos - len(self.live) if self.live else 0


class FaultMachine(StreamMachine):
    """Every operation with up to two faults in it, followed by a list that knows of none."""

    @initialize(policy=policies, n_lanes=st.sampled_from([1, 2, 8]), n_batch=st.integers(4, 16))
    def open(self, policy: SinkPolicy, n_lanes: int, n_batch: int) -> None:
        super().open(policy, n_lanes, n_batch)
        self.faulty = FaultyBackend(self.backend)
        self.stream = Stream(self.faulty, policy, N_CTX, on_evict=self.gone.append, rebase_at=80)
        self.plain: TornPlainStream = TornPlainStream()
        self.retaken = False
        driver = self.stream._driver
        plain_truncate, plain_logits = driver.truncate, driver._make_logits

        def truncate(n: int) -> Task[None]:
            yield from plain_truncate(n)
            self.retaken = True

        def make_logits() -> Task[None]:
            state = driver.controller.state
            is_whole = state.ledger.missing is Missing.NOTHING and not state.has_logits
            if is_whole and state.ledger.n_live and not state.ledger.n_newest:
                # They are those of the head, which is read anew for it.
                self.plain.torn = True
                self.plain.bring_up(self.policy)
            yield from plain_logits()

        driver.truncate = truncate  # type: ignore[method-assign]
        driver._make_logits = make_logits  # type: ignore[method-assign]

    def undergo(
        self, operation: Callable[[], object], tokens: Sequence[int], strikes: Strikes
    ) -> bool:
        """Carry out an operation and follow it; whether it came to its end."""
        for n_calls, fault in strikes:
            self.faulty.strike_in(n_calls, fault)
        n_struck, n_torn = len(self.faulty.struck), self.faulty.n_torn
        done = False
        try:
            operation()
            done = True
        except MET as error:
            struck = len(self.faulty.struck) > n_struck
            assert struck or "window empty" in str(error), error
        self.faulty.due.clear()
        assert not done or len(self.faulty.struck) == n_struck, "a fault was kept secret"
        if self.stream._controller.ledger.missing is Missing.ALL and not self.plain.torn:
            # Cells were torn, or a fault met the putting right of another, or the newest token is
            # of the head, whose logits only an evaluation of all gives; else nothing is lost.
            is_put_right = len(self.faulty.struck) > n_struck + 1
            assert self.faulty.n_torn > n_torn or is_put_right or not self.stream.stats.window
        self.mirror(tokens)
        return done

    def mirror(self, tokens: Sequence[int]) -> None:
        """Let the list go through what the stream went through: first what is evaluated."""
        ledger, end = self.stream._controller.ledger, self.plain.next_index + len(tokens)
        if self.retaken and ledger.next_index >= self.plain.next_index:
            self.retake()
        self.follow_to(ledger.next_index, tokens, end)
        self.catch_up()
        self.plain.torn = ledger.missing is Missing.ALL
        # Nothing fails now: what is pending goes in.
        if self.stream._controller.state.n_pending:
            self.stream.feed(())
        if self.retaken:
            self.retake()
        self.follow_to(self.stream.stats.index, tokens, end)
        self.catch_up()

    def catch_up(self) -> None:
        """What was done before a decode, or some of it, though the decode failed then."""
        ledger, plain = self.stream._controller.ledger, self.plain
        repaired = plain.torn and ledger.missing is Missing.NOTHING
        if ledger.missing is Missing.HEAD or repaired:
            # Whatever the policy is by then, the head will be evaluated anew.
            plain.bring_up(SinkPolicy(placement="reanchor", slack=0))
        elif self.policy.placement == "rotate":
            # No key is harmed by where it is.
            places = [part.pos + at for part in ledger.segments for at in range(part.n)]
            if len(places) == len(plain.live):
                for one, pos in zip(plain.live, places, strict=True):
                    one.pos = pos
                plain.next_pos = ledger.next_pos
        elif ledger.sink_lag < plain.gap:
            plain.bring_up(replace(self.policy, slack=0))

    def retake(self) -> None:
        self.plain.take_again(self.policy)
        self.retaken = False

    def follow_to(self, index: int, tokens: Sequence[int], end: int) -> None:
        """Take what was taken; then what went to make room for a token that is still to come."""
        for token in tokens[len(tokens) - end + self.plain.next_index :]:
            if self.plain.next_index >= index:
                break
            self.plain.take(token, self.policy, self.n_keep())
        more = self.stream.stats.evicted - len(self.plain.evicted)
        if more:
            self.plain.bring_up(self.policy)
            self.plain.evict(more, min(self.n_keep(), len(self.plain.live)))

    @rule(tokens=texts, strikes=strikes)
    def feed(self, tokens: list[int], strikes: Strikes) -> None:
        before = self.plain.next_index
        done = self.undergo(lambda: self.stream.feed(tokens), tokens, strikes)
        assert not done or self.plain.next_index == before + len(tokens)

    @rule(tokens=texts, strikes=strikes)
    def score(self, tokens: list[int], strikes: Strikes) -> None:
        scores = np.zeros(0)

        def operation() -> None:
            nonlocal scores
            scores = self.stream.score(tokens)

        if self.undergo(operation, tokens, strikes):
            assert len(scores) == len(tokens)
            foreseen = self.plain.foreseen[len(self.plain.foreseen) - len(tokens) :]
            for score, token, value in zip(scores, tokens, foreseen, strict=True):
                if value is None:
                    assert np.isnan(score)
                else:
                    assert np.isclose(score, nll(logits_of(value)[None], [token])[0])

    @rule(n=st.integers(0, 20), strikes=strikes)
    def generate(self, n: int, strikes: Strikes) -> None:
        taken = [] if self.plain.next_index else [BOS]
        first = self.plain.next_index + len(taken)
        said: list[int] = []

        def operation() -> None:
            for step in self.stream.generate(n, sampling=GREEDY, ignore_eos=True):
                assert step.index == first + len(said)
                said.append(step.token)
                taken.append(step.token)

        done = self.undergo(operation, taken, strikes)
        assert not done or len(said) == n
        # What was yielded is in the stream, and nothing else.
        assert self.stream.stats.index in (first + len(said), 0)

    @rule(policy=policies)
    def change(self, policy: SinkPolicy) -> None:
        super().change(policy)

    @rule(strikes=strikes)
    def reset(self, strikes: Strikes) -> None:
        self.plain = TornPlainStream()
        self.plain.torn = True  # where clearing fails, the cells are still there
        self.undergo(self.stream.reset, (), strikes)
        self.gone.clear()

    @precondition(lambda self: self.plain.live)
    @rule(strikes=strikes)
    def look(self, strikes: Strikes) -> None:
        row: Logits = np.zeros(0, np.float32)

        def operation() -> None:
            nonlocal row
            row = self.stream.logits()

        if self.undergo(operation, (), strikes):
            assert (row == logits_of(self.plain.live[-1].value)).all()

    @invariant()
    def same(self) -> None:
        if not hasattr(self, "faulty"):
            return
        cells = self.backend.cells
        if self.stream._controller.state.lanes:
            # Those that a failure left standing may hold tokens that have left the stream.
            self.backend.cells = [cell for cell in cells if MAIN in cell.sequences]
        super().same()
        self.backend.cells = cells


FaultMachine.TestCase.settings = settings(
    max_examples=200,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestFaultMachine = FaultMachine.TestCase


def test_what_the_sink_lets_go_leaves_the_lanes_too() -> None:
    machine = FaultMachine()
    machine.open(SinkPolicy(7, 1, "rotate", 0), 2, 4)
    machine.feed(list(range(13)), [])
    machine.change(SinkPolicy(1, 1, "rotate", 30))
    machine.feed(list(range(20, 40)), [])
    machine.same()


def test_cells_are_moved_together_once_nothing_is_missing() -> None:
    """The second piece of a long sink fails: the first stands in a sequence of its own."""
    aborted = next(fault for fault in FAULTS if fault.name == "aborted")
    for n_calls in range(120):
        machine = FaultMachine()
        machine.open(SinkPolicy(7, 1, "reanchor", 5), 8, 4)
        machine.feed(list(range(30)), [(n_calls, aborted)])
        machine.feed([1], [])
        machine.same()
    assert "compact" in machine.faulty.calls


@pytest.mark.parametrize("apart", [1, 2, 3])
def test_a_call_that_fails_and_fails_to_tidy_up(apart: int) -> None:
    no_memory = next(fault for fault in FAULTS if fault.name == "no-memory")
    n_both = 0
    for n_calls in range(250):
        machine = FaultMachine()
        machine.open(SinkPolicy(2, 1, "reanchor", 30), 8, 8)
        machine.feed(list(range(14)), [])
        machine.feed(list(range(20, 44)), [(n_calls, no_memory), (n_calls + apart, no_memory)])
        n_both += len(machine.faulty.struck) == 2
        if n_calls % 2:
            machine.look([])
        machine.feed(list(range(50, 70)), [])
        machine.same()
    assert n_both > 10
