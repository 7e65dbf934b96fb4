"""Real faults: llama.cpp is made to abort, to refuse and to run out of cells and memory."""

from __future__ import annotations

import random
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as llama
import numpy as np
import pexpect
import pytest

from streamsink.core.ledger import Missing
from streamsink.core.plan import FIRST_LANE, MAIN, SCRATCH
from streamsink.core.policy import SinkPolicy
from streamsink.engine.context import Logits
from streamsink.engine.stream import Stream
from streamsink.errors import (
    DecodeError,
    MemoryBudgetError,
    TornError,
)
from streamsink.gguf.settings import CacheSettings
from streamsink.llama.context import NativeContext
from streamsink.model import Model
from tests.tiny_gguf import SPECIALS

pytestmark = pytest.mark.usefixtures("ctrl_c_interrupts")

N_BATCH, N_LANES = 16, 8
FIRST = len(SPECIALS)
TEXT = [FIRST + (7 * at) % 200 for at in range(400)]


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
    backend = stream._context
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
        if stream._controller.ledger.missing is not Missing.NOTHING:
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
    assert context._n_compact_bytes
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
        assert stream._controller.state.is_scattered
        assert context._n_compact_bytes
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
    with pytest.raises(MemoryBudgetError, match=r"16777216 tokens takes .* lower n_ctx"):
        model.stream(SinkPolicy(4), 2**24, n_lanes=1)


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is Linux's")
def test_a_context_that_llama_cpp_finds_no_memory_for(tiny_path: Path) -> None:
    """Where less is to be had than the machine seems to have: a container, a ulimit."""
    said = run_python(
        f"""
        import resource
        from streamsink.errors import ModelError
        from streamsink.model import Model
        from streamsink.llama import making
        from streamsink.llama.weights import Weights
        from pathlib import Path

        model = Model(Weights(Path({str(tiny_path)!r})))
        making.require_memory = lambda *_, **__: None
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
    assert all("lower n_ctx" in line for line in lines[:2]), said
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
        from streamsink.llama.weights import Weights
        from streamsink.core.policy import SinkPolicy

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
