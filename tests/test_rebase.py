"""A stream whose positions grow too large is brought back, with a K-shift and without."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from streamsink import Model, SinkPolicy
from streamsink.core.plan import MAIN
from streamsink.engine.base import REBASE_AT
from streamsink.engine.stream import Stream
from streamsink.llama.weights import Weights
from tests.zoo import FAMILIES, N_VOCAB

N_CTX, N_KEEP, SLACK = 40, 4, 16
TOKENS = [int(t) for t in np.random.default_rng(7).integers(4, N_VOCAB, 400)]
SHIFTING = ["llama", "qwen3", "deepseek2", "mpt"]
NOT_SHIFTING = ["llama-yarn", "phi3", "qwen2vl", "gpt-oss", "smollm3"]


def opened(model: Model) -> Stream:
    policy = SinkPolicy(N_KEEP, 1, "reanchor", SLACK)
    return model.stream(policy, N_CTX, "f32", "f32", n_batch=16, n_lanes=1)


def model_of(name: str, folder: Path) -> Model:
    return Model(Weights(FAMILIES[name].write(folder / f"{name}.gguf")))


@pytest.mark.parametrize("name", SHIFTING)
def test_at_the_limit_nothing_changes(name: str, tmp_path: Path) -> None:
    with model_of(name, tmp_path) as model:
        with opened(model) as plain:
            expected = np.asarray(plain.score(TOKENS))
            assert plain.stats.rebases == 0
        with opened(model) as stream:
            begun = np.asarray(stream.score(TOKENS[:30]))
            start = REBASE_AT - 100
            stream._context.shift(MAIN, 0, -1, start)
            state = stream._controller.state
            stream._controller.settle_on(state.but(ledger=state.ledger.shifted(start)))
            went_on = np.asarray(stream.score(TOKENS[30:]))
            assert stream.stats.rebases == 1
            assert stream.stats.positions[1] < 400
    found = np.concatenate([begun, went_on])[1:]
    difference = np.abs(found - expected[1:])
    # Before it the positions are large: RoPE's angles are 32-bit floats. Behind it they are not.
    assert difference.max() < 0.05
    assert difference[-100:].max() < 2e-3


@pytest.mark.parametrize("name", NOT_SHIFTING)
def test_without_a_k_shift_the_live_tokens_are_evaluated_again(name: str, tmp_path: Path) -> None:
    with model_of(name, tmp_path) as model, opened(model) as stream:
        stream._controller.rebase_at = 60
        at = 0
        seen: list[int] = []
        while not stream.stats.rebases:
            seen = stream.visible_tokens()
            stream.feed(TOKENS[at : at + 1])
            at += 1
        assert at > N_CTX
        assert stream.stats.positions[1] <= N_CTX + 1
        with opened(model) as fresh:
            fresh.feed(seen)
            fresh.feed(TOKENS[at - 1 : at])
            assert fresh.visible_tokens() == stream.visible_tokens()
            assert np.abs(fresh.logits() - stream.logits()).max() < 1e-3
            rest = TOKENS[at : at + 100]
            went_on, expected = (np.asarray(one.score(rest)) for one in (stream, fresh))
        assert np.abs(went_on - expected)[1:].max() < 1e-3
