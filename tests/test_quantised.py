"""Quantised keys and values, apart and together: how far a stream drifts, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from streamsink import Model, SinkPolicy
from streamsink.core.policy import Placement
from streamsink.errors import CapabilityError, StreamsinkError
from streamsink.gguf.cache_types import CACHE_TYPES
from streamsink.llama.weights import Weights
from tests.reference import Floats
from tests.tiny_gguf import TinyModel

N_CTX, N_KEEP, SLACK = 48, 4, 16
N_TOKENS = 500
TOKENS = [0, *(int(t) for t in np.random.default_rng(5).integers(4, 260, N_TOKENS))]

TOLERANCE = {
    "f32": 1e-4, "f16": 2e-3, "bf16": 0.015, "q8_0": 0.05,
    "q5_1": 0.25, "q5_0": 0.3, "q4_1": 0.5, "q4_0": 0.6, "iq4_nl": 0.5,
}  # fmt: skip
"""Mean difference of a token's score from that with f32 keys and values, in nat: twice what was
measured. The scores themselves have a standard deviation of 2."""
GROWTH = 1.5
"""The last third of a stream drifts by no more than this, of the first third."""
REQUANTISED = ("q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
"""Keys that rotation would quantise again and again to a few bits."""


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """A model with a head of 64 dimensions, so that llama.cpp can shift its quantised keys."""
    path = tmp_path_factory.mktemp("wide") / "wide.gguf"
    with Model(Weights(TinyModel.create(n_head=1, n_head_kv=1).write(path))) as model:
        yield model


def scores(model: Model, type_k: str, type_v: str, placement: Placement, *, force: bool) -> Floats:
    policy = SinkPolicy(N_KEEP, 1, placement, SLACK, force)
    with model.stream(policy, N_CTX, type_k, type_v, n_batch=128) as stream:
        return np.asarray(stream.score(TOKENS))[1:]


@pytest.fixture(scope="module")
def expected(wide_model: Model) -> Floats:
    return scores(wide_model, "f32", "f32", "reanchor", force=False)


@pytest.mark.parametrize("placement", ["reanchor", "rotate"])
@pytest.mark.parametrize("where", ["keys", "values", "both"])
@pytest.mark.parametrize("cache_type", list(CACHE_TYPES))
def test_drift(
    wide_model: Model, expected: Floats, cache_type: str, where: str, placement: Placement
) -> None:
    type_k = "f32" if where == "values" else cache_type
    type_v = "f32" if where == "keys" else cache_type
    if placement == "rotate" and type_k == "bf16":
        with pytest.raises(CapabilityError, match="cannot shift bf16"):
            scores(wide_model, type_k, type_v, placement, force=True)
        return
    approximate = placement == "rotate" and type_k in REQUANTISED
    if approximate:
        with pytest.raises(CapabilityError, match="quantised anew"):
            scores(wide_model, type_k, type_v, placement, force=False)
    drift = np.abs(scores(wide_model, type_k, type_v, placement, force=approximate) - expected)
    assert drift.mean() < TOLERANCE[cache_type]
    first, last = drift[: N_TOKENS // 3].mean(), drift[-N_TOKENS // 3 :].mean()
    if not approximate:
        assert last < GROWTH * first + 1e-4


def test_more_bits_drift_less(wide_model: Model, expected: Floats) -> None:
    drifts = [
        np.abs(scores(wide_model, name, name, "reanchor", force=False) - expected).mean()
        for name in ("f16", "bf16", "q8_0", "q5_0", "q4_0")
    ]
    assert drifts == sorted(drifts)
    assert drifts[-1] > 100 * drifts[0]


SMALL = """
import sys
from pathlib import Path
from tests.test_quantised import try_all
try_all(Path(sys.argv[1]))
"""


def try_all(path: Path) -> None:
    """Every pair of types, with flash attention and without, under both placements.

    Says what is tried before it is: an abort is known by the last line.
    """
    flashes = (None, True, False)
    with Model(Weights(path)) as model:
        for type_k, type_v, flash in product(CACHE_TYPES, CACHE_TYPES, flashes):
            for placement in ("reanchor", "rotate"):
                print(type_k, type_v, flash, placement, end=" ", flush=True)
                try:
                    policy = SinkPolicy(2, 8, placement, 0, force=True)
                    with model.stream(
                        policy, 16, type_k, type_v, flash_attn=flash, n_batch=4
                    ) as stream:
                        stream.feed(TOKENS[:30])
                    print("streamed", flush=True)
                except StreamsinkError as error:
                    print("refused:", error, flush=True)


@pytest.mark.parametrize("n_head", [1, 4])
def test_no_combination_of_types_aborts(tmp_path: Path, n_head: int) -> None:
    path = TinyModel.create(n_head=n_head, n_head_kv=1).write(tmp_path / "model.gguf")
    done = subprocess.run(
        [sys.executable, "-c", SMALL, str(path)], capture_output=True, text=True, timeout=280
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"{lines[-1]}: {done.stderr[-2000:]}"
    assert len(lines) == 2 * 3 * len(CACHE_TYPES) ** 2
    n_streamed = sum("streamed" in line for line in lines)
    assert n_streamed > (len(lines) / 4 if n_head == 1 else 40)
    told = "\n".join(line for line in lines if "refused" in line)
    assert "needs flash attention" in told
    assert ("and q8_0 goes by 32" in told) == (n_head == 4)


@pytest.mark.parametrize("n_batch", [1, 2, 3, 64, 65])
def test_a_batch_of_any_size(tiny_path: Path, n_batch: int) -> None:
    """llama.cpp reserves a row of logits for each sequence, and aborts without room for it."""
    with Model(Weights(tiny_path)) as model:
        streams = [
            model.stream(SinkPolicy(N_KEEP, 1), N_CTX, "f32", "f32", n_batch=n, n_lanes=64)
            for n in (n_batch, 512)
        ]
        one, other = (np.asarray(stream.score(TOKENS[:150]))[1:] for stream in streams)
    assert np.abs(one - other).max() < 1e-3
