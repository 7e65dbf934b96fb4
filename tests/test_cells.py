"""Cells that are not there any more, or cannot be taken out: what a model cannot give back.

A small cache of a sliding window has put newer tokens where older ones were; a recurrent state
holds its newest token for good. Either way the logits are those of a stream that never went there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamsink.core.ledger import Missing
from streamsink.core.policy import SinkPolicy
from streamsink.core.sampling import Sampling
from streamsink.engine.stream import Stream
from streamsink.errors import CacheError, CapabilityError, DecodeError
from streamsink.llama.weights import Weights
from streamsink.model import Model
from tests.zoo import FAMILIES

TOKENS = [int(t) for t in np.random.default_rng(3).integers(4, 290, 1200)]
GREEDY = Sampling(temperature=0)
CLOSE = 1e-3


@pytest.fixture(scope="module")
def sliding(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """Most layers see the last 32 tokens."""
    path = FAMILIES["gemma3"].write(tmp_path_factory.mktemp("cells") / "gemma3.gguf")
    with Model(Weights(path)) as model:
        yield model


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """Some layers are recurrent."""
    path = FAMILIES["lfm2"].write(tmp_path_factory.mktemp("cells") / "lfm2.gguf")
    with Model(Weights(path)) as model:
        yield model


def opened(model: Model, n_ctx: int, n_batch: int = 16, n_discard: int = 1) -> Stream:
    return model.stream(SinkPolicy(4, n_discard), n_ctx, "f32", "f32", n_batch=n_batch)


def feed_in_vain(stream: Stream) -> None:
    with stream.transaction():
        stream.feed(TOKENS[500:640])
        raise DecodeError("injected", -3)


# -- sliding windows ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_fed", "n_back", "n_batch"),
    [(700, 400, 16), (700, 1, 16), (700, 10, 16), (700, 31, 16), (60, 20, 16), (900, 880, 512)],
)
def test_going_back_on_a_sliding_window(
    sliding: Model, n_fed: int, n_back: int, n_batch: int
) -> None:
    with opened(sliding, 1024, n_batch) as stream, opened(sliding, 1024, n_batch) as fresh:
        stream.feed(TOKENS[:n_fed])
        stream.rewind(n_fed - n_back)
        fresh.feed(TOKENS[: n_fed - n_back])
        assert np.abs(stream.logits() - fresh.logits()).max() < CLOSE
        rest = TOKENS[n_fed : n_fed + 60]
        assert np.abs(stream.score(rest) - fresh.score(rest)).max() < CLOSE


def test_going_back_a_little_evaluates_nothing(sliding: Model) -> None:
    """Cells in sight are still there, and are not evaluated again."""
    with opened(sliding, 1024) as stream:
        stream.feed(TOKENS[:700])
        missing = []
        for index in (699, 300):
            stream.rewind(index)
            missing.append(stream._controller.ledger.missing)
        assert missing == [Missing.NOTHING, Missing.ALL]


def test_going_back_where_tokens_have_left(sliding: Model) -> None:
    """A sink among the cells: the least position of the sequence says nothing."""
    with opened(sliding, 64) as stream, opened(sliding, 64) as again:
        for one in (stream, again):
            one.feed(TOKENS[:400])
        stream.rewind(360)
        assert stream._controller.ledger.missing is Missing.ALL
        visible = stream.visible_tokens()
        again.reset()
        again.feed(visible)
        assert np.abs(stream.logits() - again.logits()).max() < CLOSE


def test_a_transaction_on_a_sliding_window(sliding: Model) -> None:
    with opened(sliding, 256) as stream, opened(sliding, 256) as fresh:
        for one in (stream, fresh):
            one.feed(TOKENS[:100])
        with pytest.raises(DecodeError, match="injected"):
            feed_in_vain(stream)
        assert np.abs(stream.logits() - fresh.logits()).max() < CLOSE


# -- recurrent states -----------------------------------------------------------------------------


def generated(stream: Stream, n: int = 6) -> list[int]:
    return [step.token for step in stream.generate(n, sampling=GREEDY, ignore_eos=True)]


@pytest.mark.parametrize("n_fed", [20, 150])
def test_a_fork_of_a_hybrid_goes_on(hybrid: Model, n_fed: int) -> None:
    with opened(hybrid, 64) as stream:
        stream.feed(TOKENS[:n_fed])
        forks = [stream.fork() for _ in range(3)]
        row = stream.logits()
        assert np.abs(forks[0].logits() - row).max() < CLOSE
        scores = forks[1].score(TOKENS[300:310])
        said = generated(forks[2])
        assert np.abs(stream.fork().score(TOKENS[300:310]) - scores).max() < CLOSE
        assert generated(stream) == said
        assert generated(stream.fork()) == generated(stream)  # a token that waits


@pytest.mark.parametrize("n_fed", [20, 150])
def test_a_hybrid_comes_back(hybrid: Model, n_fed: int, tmp_path: Path) -> None:
    path = tmp_path / "hybrid.session"
    with opened(hybrid, 64) as stream:
        stream.feed(TOKENS[:n_fed])
        stream.save(path)
        with hybrid.restore(path) as again:
            assert again.restored is not None
            assert again.restored.n_evaluated == 0
            assert np.array_equal(again.logits(), stream.logits())
            assert generated(again) == generated(stream)
        stream.save(path)
        with hybrid.restore(path) as again:
            assert generated(again) == generated(stream)


def test_a_failed_decode_on_a_hybrid(hybrid: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it took in stays; generate, score and logits go on."""
    import llama_cpp.llama_cpp as llama

    with opened(hybrid, 64) as stream:
        stream.feed(TOKENS[:30])
        foreseen = stream.logits()
        plain = llama.llama_decode
        for code in (1, -1, 2, -3):
            monkeypatch.setattr(llama, "llama_decode", lambda *_, code=code: code)
            with pytest.raises((DecodeError, CacheError)):
                stream.feed(TOKENS[40:43])
            monkeypatch.setattr(llama, "llama_decode", plain)
            assert stream.stats.index == 30
            assert np.abs(stream.logits() - foreseen).max() < CLOSE
        assert np.isfinite(stream.score(TOKENS[40:50])).all()
        assert len(generated(stream)) == 6


def test_a_transaction_on_a_hybrid(hybrid: Model) -> None:
    with opened(hybrid, 64) as stream:
        stream.feed(TOKENS[:100])
        visible = stream.visible_tokens()
        with pytest.raises(DecodeError, match="injected"):
            feed_in_vain(stream)
        assert stream.visible_tokens() == visible
        assert np.isfinite(stream.score(TOKENS[100:110])).all()


@pytest.mark.parametrize("policy", [SinkPolicy(4, 60), SinkPolicy(63, 1), SinkPolicy(0, 64)])
def test_a_window_that_would_be_emptied_is_refused_at_once(
    hybrid: Model, policy: SinkPolicy
) -> None:
    with pytest.raises(CapabilityError, match="lower n_discard"):
        hybrid.stream(policy, 64)
    with opened(hybrid, 64) as stream:
        before = stream.policy
        with pytest.raises(CapabilityError, match="lower n_discard"):
            stream.policy = policy
        assert stream.policy == before
    with hybrid.stream(SinkPolicy(4, 59), 64) as stream:
        stream.feed(TOKENS[:300])
        assert len(generated(stream)) == 6


# -- lanes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_ctx", "slack", "run"), [(16, 12, True), (16, 30, False), (48, 4, False)]
)
def test_lanes_on_a_sliding_window(
    sliding: Model, monkeypatch: pytest.MonkeyPatch, n_ctx: int, slack: int, run: bool
) -> None:
    """They run as long as every layer sees all there is, and say what single tokens say."""
    options: dict[str, Any] = {"n_batch": 64, "threads": 1}
    policy = SinkPolicy(4, 1, "reanchor", slack)
    with (
        sliding.stream(policy, n_ctx, "f32", "f32", n_lanes=8, **options) as stream,
        sliding.stream(policy, n_ctx, "f32", "f32", n_lanes=1, **options) as singly,
    ):
        sizes: list[int] = []
        plain = stream._context.decode_lanes

        def counted(tokens: Any, *given: Any) -> None:
            sizes.append(len(tokens))
            plain(tokens, *given)

        monkeypatch.setattr(stream._context, "decode_lanes", counted)
        assert np.nanmax(np.abs(stream.score(TOKENS[:200]) - singly.score(TOKENS[:200]))) < CLOSE
        assert bool(sizes) is run
        assert not run or max(sizes) == 8
        assert stream.stats.sees == singly.stats.sees
