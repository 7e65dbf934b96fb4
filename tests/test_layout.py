"""How streams are laid out, and states that pass from one layout to another."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamsink.bench import streams as bench
from streamsink.bench.task import Place
from streamsink.core.policy import SinkPolicy
from streamsink.core.sampling import Sampling
from streamsink.engine.engine import Engine
from streamsink.engine.stream import Stream
from streamsink.errors import CacheError, UsageError
from streamsink.gguf.layout import choose_layout
from streamsink.gguf.preflight import UNMEASURED
from streamsink.gguf.settings import CacheSettings
from streamsink.llama import pooled
from streamsink.llama.weights import Weights
from streamsink.model import Model
from tests.tiny_gguf import SPECIALS
from tests.zoo import FAMILIES

FIRST = len(SPECIALS)
TEXT = [FIRST + (7 * at) % 200 for at in range(900)]
GREEDY = Sampling(temperature=0)
F32 = ("f32", "f32")


@pytest.fixture(params=["pools", "unified", "separate"])
def engine(request: pytest.FixtureRequest, model: Model) -> Iterator[Engine]:
    with model.engine(4, 64, *F32, layout=request.param, threads=1) as opened:
        yield opened


def settled(
    name: str, n_streams: int, path: Path, n_bytes: int, **settings: Any
) -> tuple[str, str]:
    weights = Weights(path)
    try:
        return choose_layout(
            name,  # type: ignore[arg-type]
            n_streams,
            512,
            weights.traits,
            CacheSettings(**settings),
            UNMEASURED,
            n_bytes,
        )
    finally:
        weights.close()


def test_auto_takes_what_is_exact_and_fast(tiny_path: Path, tmp_path: Path) -> None:
    assert settled("auto", 4, tiny_path, 0)[0] == "pools"
    assert settled("auto", 1, tiny_path, 0)[0] == "separate"
    yarn = FAMILIES["llama-yarn"].write(tmp_path / "yarn.gguf")
    assert settled("auto", 4, yarn, 10**9)[0] == "unified"
    layout, why = settled("auto", 4, yarn, 1000)
    assert layout == "separate"
    assert "attention over the cells of all" in why
    hybrid = FAMILIES["lfm2"].write(tmp_path / "hybrid.gguf")
    assert settled("auto", 4, hybrid, 10**9)[0] == "separate"
    assert settled("auto", 4, tiny_path, 10**9, cache_type_k="q8_0")[0] == "unified"
    with pytest.raises(UsageError, match="recurrent"):
        settled("pools", 4, hybrid, 0)
    with pytest.raises(UsageError, match="one of auto, pools"):
        settled("heap", 4, tiny_path, 0)


def test_it_is_said(engine: Engine) -> None:
    assert "as asked" in engine.why
    assert engine.why in engine.stream(SinkPolicy(4)).stats.why


@pytest.mark.parametrize("n_last", [0, 24])
def test_pools_are_merged_and_divided(n_last: int) -> None:
    def cache(n_pools: int, pool: int, payload: bytes) -> bytes:
        counts = [n_pools, *[0] * pool]
        after = np.zeros(n_pools - 1 - pool, np.uint32).tobytes()
        return np.array(counts, np.uint32).tobytes() + payload + after

    def state(n_pools: int, pool: int) -> memoryview:
        parts = [b"magicseq", cache(n_pools, pool, b"cells of the first")]
        if n_last:
            parts.append(cache(n_pools, pool, b"second's"))
        return memoryview(b"".join(parts))

    alone = state(1, 0)
    for n_pools, pool in ((1, 0), (4, 0), (4, 2), (4, 3)):
        whole = state(n_pools, pool)
        last = len(cache(n_pools, pool, b"second's")) if n_last else 0
        assert pooled.merged(whole, n_pools, pool, last) == alone
        last = len(cache(1, 0, b"second's")) if n_last else 0
        assert pooled.divided(alone, n_pools, pool, last) == whole
    with pytest.raises(CacheError):
        pooled.merged(state(4, 2), 4, 1, 0)


def said(stream: Stream, n: int) -> list[int]:
    return [step.token for step in stream.generate(n, sampling=GREEDY, ignore_eos=True)]


def test_a_session_passes_between_layouts(engine: Engine, model: Model, tmp_path: Path) -> None:
    """Cells that one wrote are read by the other."""
    file = tmp_path / "one.stream"
    policy = SinkPolicy(4, 3, slack=12)
    others = [engine.stream(policy) for _ in range(3)]
    for at, other in enumerate(others):
        other.feed(TEXT[at : at + 50])
    stream = engine.stream(policy)
    stream.feed(TEXT[:150])
    stream.save(file)
    with model.restore(file, threads=1) as alone:
        assert alone.restored is not None
        assert not alone.restored.why
        assert np.abs(alone.logits() - stream.logits()).max() < 1e-4
        assert said(alone, 30) == said(stream, 30)
        captured = alone.capture()
    back = engine.stream(policy)
    restored = back.restore(captured.stream, captured.cache_key, captured.cells)
    assert not restored.why
    assert said(back, 20) == said(stream, 20)


def test_a_prefix_is_taken_over(engine: Engine, model: Model) -> None:
    prefix = [int(t) for t in np.random.default_rng(6).integers(4, 290, 60)]
    with model.stream(SinkPolicy(-1), engine.n_ctx, "f32", "f32", threads=1) as alone:
        alone.feed(prefix)
        streams = [engine.stream(prefix=prefix) for _ in range(3)]
        assert np.abs(streams[2].logits() - alone.logits()).max() < 1e-4
        for stream in (*streams, alone):
            stream.feed(prefix * 3)
        for stream in streams:
            assert stream.stats.sees == alone.stats.sees
            assert np.abs(stream.logits() - alone.logits()).max() < 1e-3


def test_eight_threads_say_what_they_say_alone(engine: Engine, model: Model) -> None:
    """Though they are more than there are places, and some are cut short in mid-decode."""
    policy = SinkPolicy(4, 2, slack=9)
    texts: dict[int, list[int]] = {}

    def work(at: int) -> None:
        with engine.stream(policy) as stream:
            stream.feed(TEXT[at : at + 40 + at])
            if at % 4 == 3:  # it leaves while the next token is being decoded
                list(islice(stream.generate(None, sampling=GREEDY, ignore_eos=True), 5))
                return
            texts[at] = said(stream, 60)

    threads = [threading.Thread(target=work, args=(at,)) for at in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    placement = engine.stream(policy).stats.placement
    for at, text in texts.items():
        with model.stream(SinkPolicy(4, 2, placement, 9), 64, *F32, threads=1) as alone:
            alone.feed(TEXT[at : at + 40 + at])
            assert said(alone, 60) == text
    assert len(texts) == 6


def test_a_model_closes_its_engines(tiny_path: Path) -> None:
    model = Model(Weights(tiny_path))
    engine = model.engine(2, 64, threads=1)
    stream = engine.stream()
    stream.feed(TEXT[:10])
    model.close()
    stream.close()
    engine.close()


def test_they_are_timed(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "N_SAMPLE", 4)
    monkeypatch.setattr(bench, "N_PROMPT", 100)
    settings = bench.StreamsSettings((1, 3), (64,), samples=2)
    one, three = bench.tasks(settings)
    cache = CacheSettings(threads=1)
    for task in (one, three):
        found = task.run(Place(model, tmp_path, 0, lambda part: None, cache))
        assert found["engine"]["ms_per_token"] > 0
        assert found["speed_q1"] <= found["speed"] <= found["speed_q3"]
        assert (found["first_token"]["beside_s"] is None) == (task is one)
    with pytest.raises(UsageError):
        bench.StreamsSettings((0,))
