"""Faults while streaming: whatever fails, ledger and cache agree, and the stream goes on.

On the fake backend every call of a script meets every fault that it can meet, and a state machine
tries what no script thought of. On llama.cpp the faults are real ones.
"""

# A state machine goes on after a refusal, so it looks at the message itself.
# ruff: noqa: PT017

from __future__ import annotations

import asyncio
import itertools
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any, TypeAlias

import llama_cpp.llama_cpp as llama
import numpy as np
import pexpect
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from streamsink import interrupt
from streamsink.backend import FIRST_LANE, MAIN, SCRATCH, Logits
from streamsink.errors import (
    BusyError,
    DecodeError,
    MemoryBudgetError,
    TornError,
)
from streamsink.interrupt import Exclusive
from streamsink.ledger import Evicted, Missing
from streamsink.model import Model
from streamsink.native.context import NativeContext
from streamsink.native.weights import Weights
from streamsink.policy import SinkPolicy
from streamsink.records import Step
from streamsink.sampling import Sampling
from streamsink.scoring import nll
from streamsink.settings import CacheSettings
from streamsink.stream import Stream
from tests.fake_backend import BOS, FakeBackend, logits_of, value_of
from tests.faulty_backend import CALLS, FAULTS, MET, Fault, FaultyBackend
from tests.test_stream_machine import N_CTX, PlainStream, StreamMachine, policies, texts
from tests.tiny_gguf import SPECIALS

GREEDY = Sampling(temperature=0)


@pytest.fixture(autouse=True)
def _ctrl_c_interrupts() -> Iterator[None]:
    """As in a terminal; what runs in the background may have been told to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def assert_agreement(stream: Stream, backend: FaultyBackend) -> None:
    """Every live token has its cell, at its position, and nothing else has one."""
    ledger = stream._cache.ledger
    if ledger.missing is Missing.ALL:
        return
    runs = ledger.runs if ledger.missing is Missing.NOTHING else ledger.runs[-1:]
    expected = [(run.pos + at, token) for run in runs for at, token in enumerate(run.tokens)]
    cells = [(cell.pos, cell.token) for cell in backend.stream_cells()]
    if ledger.missing is Missing.HEAD:
        # Of the head nothing is promised but that it will be evaluated anew.
        cells = [cell for cell in cells if cell[0] >= ledger.runs[-1].pos]
    assert cells == expected
    if ledger.missing is Missing.NOTHING and not stream._cache._lanes._ends:
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
        plain_take_back = self.stream._cache.take_back

        def take_back() -> int:
            token = plain_take_back()
            self.retaken = True
            return token

        self.stream._cache.take_back = take_back  # type: ignore[method-assign]

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
        if self.stream._cache.ledger.missing is Missing.ALL and not self.plain.torn:
            # Cells were torn, or a fault met the putting right of another; else nothing is lost.
            assert self.faulty.n_torn > n_torn or len(self.faulty.struck) > n_struck + 1
        self.mirror(tokens)
        return done

    def mirror(self, tokens: Sequence[int]) -> None:
        """Let the list go through what the stream went through: first what is evaluated."""
        ledger, end = self.stream._cache.ledger, self.plain.next_index + len(tokens)
        if self.retaken and ledger.next_index >= self.plain.next_index:
            self.retake()
        self.follow_to(ledger.next_index, tokens, end)
        self.catch_up()
        self.plain.torn = ledger.missing is Missing.ALL
        # Nothing fails now: what is pending goes in.
        if self.stream._pending:
            self.stream.feed(())
        if self.retaken:
            self.retake()
        self.follow_to(self.stream.stats.index, tokens, end)
        self.catch_up()

    def catch_up(self) -> None:
        """What was done before a decode, or some of it, though the decode failed then."""
        ledger, plain = self.stream._cache.ledger, self.plain
        repaired = plain.torn and ledger.missing is Missing.NOTHING
        if ledger.missing is Missing.HEAD or repaired:
            # Whatever the policy is by then, the head will be evaluated anew.
            plain.bring_up(SinkPolicy(placement="reanchor", slack=0))
        elif self.policy.placement == "rotate":
            # No key is harmed by where it is.
            places = [run.pos + at for run in ledger.runs for at in range(len(run))]
            if len(places) == len(plain.live):
                for one, pos in zip(plain.live, places, strict=True):
                    one.pos = pos
                plain.next_pos = ledger.next_pos
        elif ledger.gap < plain.gap:
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
        if self.stream._cache._lanes._ends:
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


# -- llama.cpp itself ---------------------------------------------------------------------------

N_BATCH, N_LANES = 16, 8
FIRST = len(SPECIALS)
TEXT = [FIRST + (7 * at) % 200 for at in range(400)]


@pytest.fixture(scope="module")
def model(tiny_path: Path) -> Iterator[Model]:
    with Model(Weights(tiny_path)) as opened:
        yield opened


@pytest.fixture
def context(model: Model) -> Iterator[NativeContext]:
    settings = CacheSettings("f32", "f32", N_BATCH, N_LANES, threads=1)
    made = NativeContext(model._weights, 48, settings, swa_full=False)
    yield made
    made.close()


def open_stream(
    model: Model, policy: SinkPolicy, n_lanes: int = 1, n_ctx: int = 48
) -> tuple[Stream, NativeContext]:
    options: dict[str, Any] = {"n_lanes": n_lanes, "n_batch": N_BATCH, "threads": 1}
    stream = model.stream(policy, n_ctx, "f32", "f32", **options)
    backend = stream._cache.backend
    assert isinstance(backend, NativeContext)
    return stream, backend


class Abort:
    """An abort callback: it is asked after every node of a graph, and says yes once."""

    def __init__(self, context: NativeContext, after: int = 2**30) -> None:
        self.n_asked = 0
        self.after = after
        self._callback = llama.ggml_abort_callback(self._ask)
        llama.llama_set_abort_callback(context._handle, self._callback, None)

    def _ask(self, _: Any) -> bool:
        self.n_asked += 1
        return self.n_asked == self.after + 1

    def strike_in(self, n_nodes: int) -> None:
        self.after = self.n_asked + n_nodes


def foresees(context: NativeContext, pos: int, seq: int = MAIN) -> Logits:
    """Logits of one more token, which is taken out again."""
    context.decode([FIRST], pos, seq, "last")
    row: Logits = context.logits()[-1].copy()
    context.remove(seq, pos, -1)
    return row


def assert_nothing_else(context: NativeContext, n_live: int) -> None:
    """All cells but so many are free."""
    free, at = context.n_cells - n_live, 0
    while at < free:
        size = min(N_BATCH, free - at)
        context.decode(TEXT[at : at + size], at, SCRATCH, "last")
        at += size
    with pytest.raises(DecodeError) as caught:
        context.decode(TEXT[:1], at, SCRATCH, "last")
    assert caught.value.code == 1
    context.remove(SCRATCH, 0, -1)


def close(a: Logits, b: Logits) -> bool:
    return bool(np.abs(a - b).max() < 1e-3)


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("n_physical", [N_BATCH, 4])
def test_an_aborted_decode_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, model: Model, part: float, n_physical: int
) -> None:
    # llama.cpp keeps the physical batches that came through before the one that was aborted.
    made = llama.llama_init_from_model

    def init(weights: object, params: llama.llama_context_params) -> object:
        params.n_ubatch = n_physical
        return made(weights, params)

    monkeypatch.setattr(llama, "llama_init_from_model", init)
    settings = CacheSettings("f32", "f32", N_BATCH, N_LANES, threads=1)
    context = NativeContext(model._weights, 48, settings, swa_full=False)
    abort = Abort(context)
    context.decode(TEXT[:10], 0, MAIN, "last")
    before = foresees(context, 10)
    n_asked = abort.n_asked
    context.decode(TEXT[10:26], 10, MAIN, "last")
    n_nodes = abort.n_asked - n_asked
    after = foresees(context, 26)
    context.remove(MAIN, 10, -1)

    abort.strike_in(int(part * n_nodes))
    with pytest.raises(DecodeError, match="aborted with 16 tokens") as caught:
        context.decode(TEXT[10:26], 10, MAIN, "last")
    assert caught.value.code == 2
    assert_nothing_else(context, 10)
    assert close(foresees(context, 10), before)
    context.decode(TEXT[10:26], 10, MAIN, "last")
    assert close(foresees(context, 26), after)
    context.close()


@pytest.mark.parametrize("part", [0.0, 0.5])
def test_an_aborted_decode_in_lanes_leaves_nothing(context: NativeContext, part: float) -> None:
    abort = Abort(context)
    context.decode(TEXT[:10], 0, MAIN, "last")
    context.copy(MAIN, FIRST_LANE, 0, -1)
    n_asked = abort.n_asked
    before = foresees(context, 10)
    n_nodes = abort.n_asked - n_asked
    abort.strike_in(int(part * n_nodes))
    with pytest.raises(DecodeError) as caught:
        context.decode_lanes(TEXT[10:14], 10, [FIRST_LANE, FIRST_LANE, MAIN, MAIN], "last")
    assert caught.value.code == 2
    assert close(foresees(context, 10), before)
    assert close(foresees(context, 10, FIRST_LANE), before)
    context.remove(FIRST_LANE, 0, -1)
    assert_nothing_else(context, 10)


@pytest.mark.parametrize(("token", "pos"), [(FIRST, 0), (FIRST, 9), (2**20, 10), (-5, 10)])
def test_a_refused_batch_takes_nothing_with_it(
    context: NativeContext, token: int, pos: int
) -> None:
    context.decode(TEXT[:10], 0, MAIN, "last")
    before = foresees(context, 10)
    with pytest.raises(DecodeError, match="refused") as caught:
        context.decode([token], pos, MAIN, "last")
    assert caught.value.code == -1
    assert close(foresees(context, 10), before)


STREAMS = [
    (SinkPolicy(4, 1, "reanchor", slack=5), 1),
    (SinkPolicy(4, 1, "reanchor", slack=20), N_LANES),
    (SinkPolicy(4, 3, "rotate", slack=9), N_LANES),
    (SinkPolicy(4, "half", "rotate", slack=0), 1),
]


@pytest.mark.parametrize(("policy", "n_lanes"), STREAMS)
def test_a_stream_that_is_aborted_again_and_again(
    model: Model, policy: SinkPolicy, n_lanes: int
) -> None:
    undisturbed, _ = open_stream(model, policy, n_lanes)
    stream, context = open_stream(model, policy, n_lanes)
    abort = Abort(context)
    draw = random.Random(1)
    n_aborted, torn = 0, False
    with undisturbed, stream:
        while (taken := stream.stats.index) < len(TEXT):
            abort.strike_in(draw.randrange(600))
            try:
                stream.feed(TEXT[taken : taken + 40])
            except (DecodeError, TornError) as error:
                n_aborted += 1
                torn |= isinstance(error, TornError)
            assert [*stream.visible_tokens()] == [
                token for start, stop in stream.stats.sees for token in TEXT[start:stop]
            ]
        abort.after = 2**30
        if stream._cache.ledger.missing is not Missing.NOTHING:
            stream.feed(TEXT[:1])
        else:
            undisturbed.feed(TEXT)
            # A shift that was aborted costs the memory of what was evicted, see below.
            assert torn or close(stream.logits(), undisturbed.logits())
    assert n_aborted > 5


def test_an_aborted_shift_is_found_out(model: Model) -> None:
    """llama_decode returns 0, though some layers' keys were not rotated."""
    policy = SinkPolicy(4, 8, "rotate", slack=0)
    stream, context = open_stream(model, policy)
    fresh, _ = open_stream(model, policy)
    abort = Abort(context)
    with stream, fresh:
        stream.feed(TEXT[:48])
        abort.strike_in(1)
        with pytest.raises(TornError, match="K-shift"):
            stream.feed(TEXT[48:50])
        assert stream.stats.index == 48
        seen = stream.visible_tokens()
        stream.feed(TEXT[48:50])
        assert stream.visible_tokens() == [*seen, *TEXT[48:50]]
        fresh.feed(stream.visible_tokens())
        assert close(stream.logits(), fresh.logits())


def test_cells_are_not_moved_while_a_shift_waits(model: Model) -> None:
    # Cells are moved together where spare ones lie beyond a step of 256.
    settings = CacheSettings("f32", "f32", N_BATCH, N_LANES, threads=1)
    context = NativeContext(model._weights, 256, settings, swa_full=False)
    assert context._compact_buffer is not None
    context.decode(TEXT[:12], 0, MAIN, "last")
    context.remove(MAIN, 2, 6)
    context.shift(MAIN, 6, 12, -4)
    context.decode([FIRST], 8, MAIN, "last")
    context.remove(MAIN, 8, -1)
    expected = foresees(context, 8)
    context.clear()

    context.decode(TEXT[:12], 0, MAIN, "last")
    context.remove(MAIN, 2, 6)
    context.shift(MAIN, 6, 12, -4)
    context.compact(MAIN)
    assert close(foresees(context, 8), expected)
    context.close()


def test_cells_that_do_not_go_back_in(monkeypatch: pytest.MonkeyPatch, model: Model) -> None:
    policy = SinkPolicy(4, 1, "reanchor", slack=20)
    stream, context = open_stream(model, policy, N_LANES, n_ctx=256)
    fresh, _ = open_stream(model, policy, n_ctx=256)
    with stream, fresh:
        stream.feed(TEXT[:360])
        assert stream._cache._scattered
        assert context._compact_buffer is not None
        monkeypatch.setattr(llama, "llama_state_seq_set_data", lambda *_: 0)
        with pytest.raises(TornError, match="could not put"):
            stream.feed(TEXT[360:361])
        fresh.feed(stream.visible_tokens())
        fresh.feed(TEXT[360:361])
        stream.feed(TEXT[360:361])
        assert close(stream.logits(), fresh.logits())


def test_no_free_cell(model: Model) -> None:
    policy = SinkPolicy(4, 1, "reanchor", slack=5)
    undisturbed, _ = open_stream(model, policy)
    stream, context = open_stream(model, policy)
    with undisturbed, stream:
        stream.feed(TEXT[:20])
        at = 0
        while at < context.n_cells - 20 - N_BATCH:
            context.decode(TEXT[:N_BATCH], at, SCRATCH, "last")
            at += N_BATCH
        with pytest.raises(DecodeError, match="no free cells for") as caught:
            stream.feed(TEXT[20:60])
        assert caught.value.code == 1
        taken = stream.stats.index
        assert 20 <= taken < 60
        context.remove(SCRATCH, 0, -1)
        stream.feed(TEXT[taken:60])
        undisturbed.feed(TEXT[:60])
        assert close(stream.logits(), undisturbed.logits())


def test_an_aborted_trial_of_lanes_is_repeated(context: NativeContext) -> None:
    abort = Abort(context)
    abort.strike_in(100)
    with pytest.raises(DecodeError) as caught:
        _ = context.n_lanes
    assert caught.value.code == 2
    assert_nothing_else(context, 0)
    assert context.n_lanes == N_LANES


def test_a_context_beyond_all_memory(model: Model) -> None:
    with pytest.raises(MemoryBudgetError, match=r"16777216 tokens takes .* lower --ctx"):
        model.stream(SinkPolicy(4), 2**24, n_lanes=1)


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is Linux's")
def test_a_context_that_llama_cpp_finds_no_memory_for(tiny_path: Path) -> None:
    """Where less is to be had than the machine seems to have: a container, a ulimit."""
    said = run_python(
        f"""
        import resource
        from streamsink.errors import ModelError
        from streamsink.model import Model
        from streamsink.native import context
        from streamsink.native.weights import Weights
        from pathlib import Path

        model = Model(Weights(Path({str(tiny_path)!r})))
        context._check_memory = lambda *_, **__: None
        size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + 2**28, -1))
        for n_ctx in (2**20, 2**24):
            try:
                model.stream(n_ctx=n_ctx, n_lanes=1)
            except ModelError as error:
                print(error)
        with model.stream(n_ctx=64, n_lanes=1, n_batch=16) as stream:
            print(stream.feed("It goes on."), "tokens")
        """
    )
    lines = said.splitlines()
    assert len(lines) == 3, said
    assert all("llama.cpp cannot make a context of" in line for line in lines[:2]), said
    assert all("lower --ctx" in line for line in lines[:2]), said
    assert lines[2].endswith("tokens"), said


def run_python(code: str) -> str:
    """What a program says that comes to a good end."""
    program = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_ctrl_c_in_the_midst_of_a_prompt(tiny_path: Path) -> None:
    code = f"""
        from pathlib import Path
        from streamsink.model import Model
        from streamsink.native.weights import Weights
        from streamsink.policy import SinkPolicy

        text = [4 + 7 * at % 200 for at in range(400_000)]
        model = Model(Weights(Path({str(tiny_path)!r})))
        options = dict(cache_type_k="f32", cache_type_v="f32", n_batch=32, n_lanes=1, threads=1)
        stream, other = (model.stream(SinkPolicy(4), 64, **options) for _ in range(2))
        print("begun", flush=True)
        try:
            stream.feed(text)
        except KeyboardInterrupt:
            taken = stream.stats.index
            print("taken", taken, flush=True)
            stream.feed(text[taken : taken + 100])
            seen = stream.stats.sees, stream.visible_tokens()
            other.feed(text[: taken + 100])
            assert seen == (other.stats.sees, other.visible_tokens())
            print("off by", abs(stream.logits() - other.logits()).max())
    """
    child = pexpect.spawn(
        sys.executable, ["-c", textwrap.dedent(code)], timeout=120, encoding="utf-8"
    )
    child.expect("begun")
    time.sleep(0.5)
    child.sendintr()
    child.expect(r"taken (\d+)")
    assert child.match
    assert 0 < int(child.match[1]) < 400_000
    child.expect(r"off by ([\d.e-]+)")
    assert child.match
    assert float(child.match[1]) < 1e-3
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


# -- Ctrl-C and threads -------------------------------------------------------------------------


def lines_within(section: Exclusive, act: Callable[[], object], nth: int) -> bool:
    """Enter and leave a section, and act at the nth line that is executed for it; whether it is."""
    n_lines = -1

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal n_lines
        if frame.f_code.co_filename != interrupt.__file__:
            return None
        n_lines += event == "line"
        if event == "line" and n_lines == nth:
            act()
        return trace

    sys.settrace(trace)
    try:
        with section:
            pass
    finally:
        sys.settrace(None)
    return n_lines >= nth


def test_ctrl_c_on_the_threshold() -> None:
    """Whichever line it meets, it is neither lost nor does it leave the section shut."""
    handler = signal.getsignal(signal.SIGINT)
    for nth in itertools.count():
        lock = threading.Lock()
        interrupted = reached = False
        try:
            reached = lines_within(Exclusive(lock), lambda: signal.raise_signal(signal.SIGINT), nth)
        except KeyboardInterrupt:
            interrupted = True
        assert not lock.locked(), nth
        assert signal.getsignal(signal.SIGINT) == handler, nth
        if not interrupted:
            assert not reached, nth
            break
    assert nth > 20


class Gate(FakeBackend):
    """A backend that stops within a chosen call until it is let go."""

    def __init__(self, call: str) -> None:
        super().__init__(N_CTX)
        self.inside = threading.Event()
        self.go = threading.Event()
        self.shut = False
        plain = getattr(self, call)

        def wait(*arguments: Any) -> Any:
            if self.shut:
                self.inside.set()
                assert self.go.wait(10)
            return plain(*arguments)

        setattr(self, call, wait)


def grown(stream: Stream) -> None:
    stream.policy = SinkPolicy(3)


def awaited(stream: Stream) -> list[Step]:
    async def steps() -> list[Step]:
        return [step async for step in stream.agenerate(2, sampling=GREEDY)]

    return asyncio.run(steps())


OPERATIONS: dict[str, Callable[[Stream], object]] = {
    "feed": lambda stream: stream.feed("more"),
    "score": lambda stream: stream.score("more"),
    "generate": lambda stream: list(stream.generate(2, sampling=GREEDY)),
    "agenerate": awaited,
    "fork": Stream.fork,
    "repin": lambda stream: stream.repin("other"),
    "pin": lambda stream: stream.pin(3, 6),
    "unpin": Stream.unpin,
    "begin_turn": Stream.begin_turn,
    "logits": Stream.logits,
    "stats": lambda stream: stream.stats,
    "visible": Stream.visible,
    "visible_tokens": Stream.visible_tokens,
    "policy": grown,
    "change": lambda stream: stream.change(n_discard=2),
    "pin_system": lambda stream: stream.pin_system(3),
    "reset": Stream.reset,
    "close": Stream.close,
}


def carry_out(name: str, stream: Stream, results: list[object]) -> None:
    results.append(OPERATIONS[name](stream))


UNCHANGING = {"n_cells", "bos", "pins", "text", "tokenize"}


def test_no_operation_is_forgotten() -> None:
    public = {name for name in vars(Stream) if not name.startswith("_")}
    assert public == {*OPERATIONS, *UNCHANGING}


@pytest.mark.parametrize("second", OPERATIONS)
@pytest.mark.parametrize(
    ("first", "call"),
    [("feed", "decode"), ("score", "remove"), ("generate", "sample"), ("reset", "clear")],
)
def test_a_second_thread_is_told_so_and_the_first_goes_on(
    first: str, call: str, second: str
) -> None:
    ends: list[object] = []
    for disturbed in (False, True):
        backend = Gate(call)
        stream = Stream(backend, SinkPolicy(2), N_CTX)
        stream.feed("to begin with")
        backend.shut = disturbed
        results: list[object] = []
        thread = threading.Thread(target=carry_out, args=(first, stream, results))
        thread.start()
        if disturbed:
            assert backend.inside.wait(10)
            with pytest.raises(BusyError, match="in the midst of another call"):
                OPERATIONS[second](stream)
            for name in UNCHANGING:
                getattr(stream, name)
            backend.go.set()
        thread.join(10)
        assert len(results) == 1
        cells = [(cell.token, cell.pos, cell.value) for cell in backend.cells]
        ends.append((repr(results), cells, replace(stream.stats, feed_rate=0, rate=0)))
        stream.feed("it goes on")
    assert ends[0] == ends[1]


def test_a_generation_between_two_steps_is_not_busy() -> None:
    backend = FakeBackend(N_CTX)
    with Stream(backend, SinkPolicy(2), N_CTX) as stream:
        stream.feed("to begin with")
        steps = stream.generate(5, sampling=GREEDY, ignore_eos=True)
        said = [next(steps).token]
        threads = [
            threading.Thread(target=stream.feed, args=("more",)),
            threading.Thread(target=lambda: said.append(next(steps).token)),
        ]
        for thread in threads:
            thread.start()
            thread.join(10)
        assert stream.visible_tokens()[-6:] == [said[0], *b"more", said[1]]


def test_what_is_told_of_a_full_stream_can_be_asked_for() -> None:
    """The section is free again when callbacks are called."""
    seen: list[int] = []
    with Stream(
        FakeBackend(N_CTX),
        SinkPolicy(2),
        N_CTX,
        on_evict=lambda gone: seen.append(stream.stats.evicted),
    ) as stream:
        stream.feed(list(range(N_CTX + 2)))
    assert seen == [2, 2]


def test_a_token_that_nobody_has_seen_is_not_in_the_stream() -> None:
    """A callback fails on the way out of the step that sampled it."""

    def fail(gone: Evicted) -> None:
        raise RuntimeError("the disk is full")

    with Stream(FakeBackend(N_CTX), SinkPolicy(2), N_CTX, on_evict=fail) as stream:
        stream.feed(list(range(N_CTX)))
        steps = stream.generate(5, sampling=GREEDY, ignore_eos=True)
        said = [next(steps).token]
        with pytest.raises(RuntimeError, match="disk"):
            next(steps)
        assert stream.visible_tokens()[-1:] == said
        assert stream.stats.index == N_CTX + 1


def test_a_closed_stream_still_tells_what_it_was() -> None:
    stream = Stream(FakeBackend(N_CTX), SinkPolicy(2), N_CTX)
    stream.feed([1, 2, 3])
    stream.close()
    assert (stream.stats.index, stream.visible_tokens()) == (3, [1, 2, 3])
