"""Going back: what is taken back was never there; what was evicted does not come back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from streamsink.core.policy import Placement, SinkPolicy
from streamsink.core.sampling import Sampling
from streamsink.engine.stream import Stream
from streamsink.errors import CacheError, UsageError
from streamsink.llama.weights import Weights
from streamsink.model import Model
from tests.fake_backend import FakeBackend
from tests.zoo import FAMILIES

N_CTX = 48
TOKENS = [int(t) for t in np.random.default_rng(8).integers(4, 290, 400)]


def opened(model: Model, placement: Placement, n_discard: int = 20) -> Stream:
    return model.stream(SinkPolicy(4, n_discard, placement, 16), N_CTX, "f32", "f32")


@pytest.mark.parametrize("placement", ["rotate", "reanchor"])
@pytest.mark.parametrize("n_fed", [1, 3, 30, 52, 113])
def test_what_is_taken_back_was_never_there(model: Model, placement: Placement, n_fed: int) -> None:
    """The tokens find room, so that nothing is evicted for them."""
    with opened(model, placement) as stream, opened(model, placement) as other:
        for one in (stream, other):
            one.feed(TOKENS[:n_fed])
        evicted = stream.stats.evicted
        stream.feed(TOKENS[200:212])
        list(stream.generate(3, sampling=Sampling(seed=1), ignore_eos=True))
        assert stream.stats.evicted == evicted
        stream.rewind(n_fed)
        assert stream.stats.sees == other.stats.sees
        assert stream.stats.positions == other.stats.positions
        assert np.abs(stream.logits() - other.logits()).max() < 1e-4
        rest = TOKENS[n_fed : n_fed + 100]
        assert np.abs(stream.score(rest) - other.score(rest)).max() < 1e-3


def test_a_token_that_waits_is_taken_back(model: Model) -> None:
    with opened(model, "reanchor") as stream:
        stream.feed(TOKENS[:20])
        steps = list(stream.generate(5, sampling=Sampling(seed=1), ignore_eos=True))
        stream.rewind(steps[3].index)
        assert stream.visible_tokens() == [*TOKENS[:20], *(step.token for step in steps[:3])]
        again = list(stream.generate(2, sampling=Sampling(seed=1), ignore_eos=True))
        assert [step.token for step in again] == [step.token for step in steps[3:]]


def test_all_the_way_back_is_an_empty_stream(model: Model) -> None:
    with opened(model, "reanchor") as stream, opened(model, "reanchor") as other:
        stream.feed(TOKENS[:20])
        stream.rewind(0)
        assert stream.stats.index == 0
        for one in (stream, other):
            one.feed(TOKENS[20:90])
        assert stream.stats.sees == other.stats.sees
        assert np.abs(stream.logits() - other.logits()).max() < 1e-4


def test_what_was_evicted_does_not_come_back(model: Model) -> None:
    with opened(model, "reanchor", 1) as stream:
        stream.feed(TOKENS[:100])
        first = stream.stats.sees[1][0]
        for index in (0, 2, first - 1, 101):
            with pytest.raises(UsageError, match=rf"{first} to 100 are possible"):
                stream.rewind(index)
        stream.rewind(first + 1)
        assert stream.visible_tokens() == [*TOKENS[:4], TOKENS[first]]
        stream.feed(TOKENS[:90])


def test_turns_that_were_taken_back_begin_nowhere() -> None:
    with Stream(FakeBackend(40), SinkPolicy(2, "turn"), 24) as stream:
        stream.feed(range(10))
        stream.begin_turn()
        stream.feed(range(10, 14))
        stream.rewind(8)
        stream.feed(range(100, 118))  # a turn would leave at 10, where none begins any more
        assert stream.stats.sees != ((0, 2), (10, 26))


def test_a_recurrent_state_cannot_go_back(tmp_path: Path) -> None:
    path = FAMILIES["lfm2"].write(tmp_path / "lfm2.gguf")
    with Model(Weights(path)) as model, model.stream(SinkPolicy(4), 64) as stream:
        stream.feed(range(4, 30))
        before = stream.visible_tokens()
        with pytest.raises(CacheError):
            stream.rewind(20)
        assert stream.visible_tokens() == before
        stream.feed([9, 8])
