"""What `streamsink.engine.context.Context` promises, held against llama.cpp and against the fake.

Where the fake is stricter than llama.cpp nothing is lost; where it is laxer, a test of the stream
on it proves nothing. So each rule that the stream relies on, or has to obey, is tried on both.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from streamsink.core.capabilities import Capabilities, Verdict
from streamsink.core.plan import FIRST_LANE, MAIN, SCRATCH
from streamsink.core.sampling import Sampling
from streamsink.engine.context import Context, Logits
from streamsink.errors import CapabilityError, DecodeError
from streamsink.gguf.settings import CacheSettings
from streamsink.llama.context import NativeContext
from streamsink.llama.weights import Weights
from tests.fake_backend import Abort, FakeBackend
from tests.tiny_gguf import SPECIALS

N_LANES, N_BATCH = 8, 16
FIRST = len(SPECIALS)
TEXT = [FIRST + (7 * at) % 200 for at in range(300)]


@pytest.fixture(scope="module")
def weights(tiny_path: Path) -> Iterator[Weights]:
    opened = Weights(tiny_path)
    yield opened
    opened.close()


@pytest.fixture(params=["fake", "native"])
def backend(request: pytest.FixtureRequest) -> Iterator[Context]:
    made: Context
    if request.param == "fake":
        made = FakeBackend(64, N_LANES, N_BATCH)
    else:
        settings = CacheSettings("f32", "f32", N_BATCH, N_LANES, threads=1)
        made = NativeContext(request.getfixturevalue("weights"), 48, settings, swa_full=False)
    yield made
    made.close()


def last_row(backend: Context) -> Logits:
    row: Logits = backend.logits()[-1].copy()
    return row


def foresees(backend: Context, seq: int, pos: int) -> Logits:
    """Logits of one more token, which is taken out again."""
    backend.decode([FIRST], pos, seq, "last")
    row = last_row(backend)
    backend.remove(seq, pos, -1)
    return row


def same(a: Logits, b: Logits) -> bool:
    return bool(np.abs(a - b).max() < 1e-4)


def test_what_a_token_sees_is_its_sequence(backend: Context) -> None:
    backend.decode(TEXT[:10], 0, MAIN, "last")
    alone = foresees(backend, MAIN, 10)
    backend.decode(TEXT[50:60], 0, SCRATCH, "last")
    assert same(foresees(backend, MAIN, 10), alone)
    assert not same(foresees(backend, SCRATCH, 10), alone)


def test_rows_are_those_asked_for(backend: Context) -> None:
    backend.decode(TEXT[:6], 0, MAIN, "all")
    rows = backend.logits().copy()
    assert rows.shape == (6, backend.tokenizer.n_tokens)
    backend.remove(MAIN, 5, -1)
    backend.decode(TEXT[5:6], 5, MAIN, "last")
    assert backend.logits().shape == (1, backend.tokenizer.n_tokens)
    assert same(last_row(backend), rows[-1])
    assert not same(rows[0], rows[1])


def test_only_distances_count(backend: Context) -> None:
    backend.decode(TEXT[:10], 0, MAIN, "last")
    near = last_row(backend)
    backend.decode(TEXT[:10], 700, SCRATCH, "last")
    assert same(last_row(backend), near)


@pytest.mark.parametrize("pos", [9, 11, 0])
def test_a_sequence_goes_on_where_it_ends(backend: Context, pos: int) -> None:
    backend.decode(TEXT[:10], 0, MAIN, "last")
    before = foresees(backend, MAIN, 10)
    with pytest.raises(DecodeError) as caught:
        backend.decode(TEXT[:1], pos, MAIN, "last")
    assert caught.value.code == -1
    # llama.cpp's caller has to see to it that a refused batch takes nothing with it.
    if pos == 11:
        assert same(foresees(backend, MAIN, 10), before)


def test_a_full_cache_refuses_and_changes_nothing(backend: Context) -> None:
    at = 0
    while at + N_BATCH < backend.n_cells:
        backend.decode(TEXT[at : at + N_BATCH], at, MAIN, "last")
        at += N_BATCH
    before = foresees(backend, MAIN, at)
    backend.decode(TEXT[:1], at, MAIN, "last")
    with pytest.raises(DecodeError) as caught:
        backend.decode(TEXT[:N_BATCH], at + 1, MAIN, "last")
    assert caught.value.code == 1
    backend.remove(MAIN, at, -1)
    assert same(foresees(backend, MAIN, at), before)


def test_a_hole_is_seen_as_a_distance(backend: Context) -> None:
    backend.decode(TEXT[:12], 0, MAIN, "last")
    whole = foresees(backend, MAIN, 12)
    backend.remove(MAIN, 3, 7)
    hole = foresees(backend, MAIN, 12)
    assert not same(hole, whole)
    backend.shift(MAIN, 7, 12, -4)
    assert not same(foresees(backend, MAIN, 8), hole)


def test_a_shift_of_everything_changes_nothing(backend: Context) -> None:
    backend.decode(TEXT[:12], 20, MAIN, "last")
    before = foresees(backend, MAIN, 32)
    backend.shift(MAIN, 20, 32, -20)
    assert same(foresees(backend, MAIN, 12), before)
    backend.shift(MAIN, 0, 12, 5)
    assert same(foresees(backend, MAIN, 17), before)


def test_a_copy_is_the_same_cells(backend: Context) -> None:
    backend.decode(TEXT[:12], 0, MAIN, "last")
    before = foresees(backend, MAIN, 12)
    backend.copy(MAIN, SCRATCH, 0, -1)
    backend.remove(MAIN, 0, -1)
    assert same(foresees(backend, SCRATCH, 12), before)
    backend.copy(SCRATCH, MAIN, 4, 12)
    backend.remove(SCRATCH, 0, -1)
    assert not same(foresees(backend, MAIN, 12), before)
    backend.remove(MAIN, 0, -1)
    # Were a cell left anywhere, there would be no room for as many tokens as there are cells.
    for at in range(0, backend.n_cells, N_BATCH):
        backend.decode(TEXT[at : at + N_BATCH], at, MAIN, "last")


def test_a_sink_evaluated_beside_the_stream_is_the_sink(backend: Context) -> None:
    backend.decode(TEXT[:12], 0, MAIN, "last")
    backend.remove(MAIN, 4, 8)
    backend.shift(MAIN, 8, 12, -4)
    rotated = foresees(backend, MAIN, 8)
    backend.clear()
    backend.decode(TEXT[:12], 0, MAIN, "last")
    backend.remove(MAIN, 0, 8)
    backend.decode(TEXT[:4], 4, SCRATCH, "last")
    backend.copy(SCRATCH, MAIN, 4, -1)
    backend.remove(SCRATCH, 0, -1)
    assert same(foresees(backend, MAIN, 12), rotated)


def test_a_lane_sees_its_own_and_writes_to_all_later(backend: Context) -> None:
    assert backend.n_lanes == N_LANES
    backend.decode(TEXT[:12], 0, MAIN, "last")
    expected = []
    fuller, emptier = FIRST_LANE + 1, FIRST_LANE
    for lane, hole in ((fuller, 0), (emptier, 1), (MAIN, 2)):
        if lane != MAIN:
            backend.copy(MAIN, lane, 0, 4)
            backend.copy(MAIN, lane, 4 + hole, -1)
    backend.remove(MAIN, 4, 6)
    backend.decode_lanes(TEXT[12:15], 12, [fuller, emptier, MAIN], "all")
    laned = backend.logits().copy()
    after = foresees(backend, MAIN, 15)
    backend.clear()
    backend.decode(TEXT[:12], 0, MAIN, "last")
    for hole in range(3):
        if hole:
            backend.remove(MAIN, 3 + hole, 4 + hole)
        backend.decode(TEXT[12 + hole : 13 + hole], 12 + hole, MAIN, "last")
        expected.append(last_row(backend))
    assert all(same(a, b) for a, b in zip(laned, expected, strict=True))
    assert same(foresees(backend, MAIN, 15), after)


def test_an_emptied_lane_is_refused(backend: Context) -> None:
    backend.decode(TEXT[:6], 0, MAIN, "last")
    backend.copy(MAIN, FIRST_LANE, 0, 4)
    with pytest.raises(DecodeError) as caught:
        backend.decode_lanes(TEXT[6:8], 6, [FIRST_LANE, MAIN], "last")
    assert caught.value.code == -1


def test_compacting_changes_nothing(backend: Context) -> None:
    backend.decode(TEXT[:N_BATCH], 0, MAIN, "last")
    backend.decode(TEXT[N_BATCH : N_BATCH + 10], N_BATCH, MAIN, "last")
    backend.remove(MAIN, 4, 20)
    before = foresees(backend, MAIN, 26)
    backend.compact(MAIN)
    assert same(foresees(backend, MAIN, 26), before)
    backend.shift(MAIN, 20, 26, -16)
    shifted = foresees(backend, MAIN, 10)
    backend.compact(MAIN)
    assert same(foresees(backend, MAIN, 10), shifted)


def test_clear_forgets(backend: Context) -> None:
    first = foresees(backend, MAIN, 0)
    backend.decode(TEXT[:12], 0, MAIN, "last")
    backend.clear()
    assert same(foresees(backend, MAIN, 0), first)


def test_greedy_sampling_takes_the_likeliest(backend: Context) -> None:
    backend.decode(TEXT[:12], 0, MAIN, "last")
    chain = backend.sampler(Sampling(temperature=0), ())
    assert backend.sample(chain, 12) == int(last_row(backend).argmax())
    chain.close()


@pytest.mark.parametrize("size", [0, N_BATCH + 1])
def test_batches_that_would_abort(backend: Context, size: int) -> None:
    with pytest.raises((Exception, Abort)):
        backend.decode(TEXT[:size], 0, MAIN, "last")
    assert foresees(backend, MAIN, 0).shape == (backend.tokenizer.n_tokens,)


def test_a_shift_that_would_abort_is_refused(
    weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    able = Capabilities(1000, rotate=Verdict("impossible", "positions are M-RoPE's"))
    monkeypatch.setattr("streamsink.llama.context.capabilities", lambda *_, **__: able)
    settings = CacheSettings(n_batch=N_BATCH, n_lanes=1, threads=1)
    context = NativeContext(weights, 48, settings, swa_full=False)
    context.decode(TEXT[:12], 0, MAIN, "last")
    with pytest.raises(CapabilityError, match="M-RoPE"):
        context.shift(MAIN, 0, 12, 5)
    context.close()
    context.close()
