"""The pinned prefix is swapped in mid-stream; the window stays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from streamsink.core.events import Event
from streamsink.core.policy import Placement, SinkPolicy
from streamsink.engine.stream import Stream
from streamsink.errors import DecodeError, UsageError
from streamsink.llama.weights import Weights
from streamsink.model import Model
from tests.fake_backend import FakeBackend
from tests.reference import Floats
from tests.tiny_gguf import TinyModel
from tests.zoo import FAMILIES, N_VOCAB

N_CTX, N_KEEP = 48, 6
RNG = np.random.default_rng(11)
TOKENS = [int(t) for t in RNG.integers(4, 290, 400)]
PREFIXES = {n: [int(t) for t in RNG.integers(4, 290, n)] for n in (1, 3, 6, 20, 40)}
CLOSE = 1e-3


@pytest.fixture(scope="module")
def shallow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """One layer: its keys and values remember nothing but their own token."""
    path = tmp_path_factory.mktemp("shallow") / "shallow.gguf"
    with Model(Weights(TinyModel.create(n_layer=1).write(path))) as model:
        yield model


def opened(
    model: Model, n_keep: int = N_KEEP, placement: Placement = "reanchor", slack: int = 16
) -> Stream:
    policy = SinkPolicy(n_keep, 1, placement, slack)
    return model.stream(policy, N_CTX, "f32", "f32", n_batch=64)


def window_of(stream: Stream) -> list[int]:
    return stream.visible_tokens()[stream.stats.pinned :]


def scores(stream: Stream, tokens: list[int]) -> Floats:
    return np.asarray(stream.score(tokens))


@pytest.mark.parametrize("placement", ["rotate", "reanchor"])
@pytest.mark.parametrize("slack", [0, 16])
@pytest.mark.parametrize("n_fed", [7, 30, N_CTX, 150])
@pytest.mark.parametrize("n_new", [1, 3, 6, 20, 40])
def test_without_memory_it_is_a_stream_that_began_so(
    shallow: Model, placement: Placement, slack: int, n_fed: int, n_new: int
) -> None:
    new = PREFIXES[n_new]
    with opened(shallow, N_KEEP, placement, slack) as stream:
        stream.feed(TOKENS[:n_fed])
        done = stream.repin(new)
        window = window_of(stream)
        assert stream.visible_tokens()[:n_new] == new
        assert window == TOKENS[:n_fed][-len(window) :]
        assert stream.policy.n_keep == n_new == done.n_tokens
        assert stream.stats.index == n_fed
        with opened(shallow, n_new, placement, slack) as fresh:
            fresh.feed([*new, *window])
            assert np.abs(fresh.logits() - stream.logits()).max() < CLOSE
            rest = TOKENS[n_fed : n_fed + 100]
            assert np.abs(scores(stream, rest) - scores(fresh, rest)).max() < CLOSE
            assert stream.visible_tokens() == fresh.visible_tokens()


@pytest.mark.parametrize("n_fed", [20, 150])
def test_exact_leaves_nothing_of_the_old_prefix(model: Model, n_fed: int) -> None:
    new = PREFIXES[20]
    with opened(model) as stream, opened(model, 20) as fresh:
        stream.feed(TOKENS[:n_fed])
        done = stream.repin(new, exact=True)
        assert done.n_evaluated == len(stream.visible_tokens())
        fresh.feed([*new, *window_of(stream)])
        assert np.abs(fresh.logits() - stream.logits()).max() < CLOSE


def test_the_same_prefix_changes_nothing(model: Model) -> None:
    with opened(model, slack=0) as stream, opened(model, slack=0) as plain:
        for one in (stream, plain):
            one.feed(TOKENS[:150])
        done = stream.repin(TOKENS[:N_KEEP])
        assert (done.n_evaluated, done.n_evicted) == (N_KEEP, 0)
        rest = TOKENS[150:250]
        assert np.abs(scores(stream, rest) - scores(plain, rest)).max() < CLOSE


def test_there_and_back_again(model: Model) -> None:
    with opened(model, slack=0) as stream, opened(model, slack=0) as plain:
        for one in (stream, plain):
            one.feed(TOKENS[:150])
        stream.repin(PREFIXES[3])
        assert np.abs(stream.logits() - plain.logits()).max() > 0.1
        stream.repin(TOKENS[:N_KEEP])
        assert np.abs(stream.logits() - plain.logits()).max() < CLOSE


def test_room_is_made_and_told(model: Model) -> None:
    gone: list[int] = []
    events: list[Event] = []
    policy = SinkPolicy(N_KEEP, 1, "reanchor", 16)
    with model.stream(
        policy, N_CTX, on_evict=lambda e: gone.extend(e.tokens), on_event=events.append
    ) as stream:
        stream.feed(TOKENS[:N_CTX])
        done = stream.repin(PREFIXES[20])
        assert gone == TOKENS[N_KEEP : N_KEEP + 14]
        assert done.n_evicted == 14
        assert done.n_evaluated == 20
        assert done.ms > 0
        assert [e.kind for e in events if e.kind != "evict"] == ["repin"]
        assert stream.stats.sees[0] == (-20, 0)
        parts = stream.visible()
        assert [part.pinned for part in parts] == [True, False]
        assert list(parts[0].tokens) == PREFIXES[20]


def test_text_gets_a_bos(model: Model) -> None:
    with opened(model) as stream:
        stream.feed("Call me Ishmael. " * 10)
        stream.repin("The whale")
        assert stream.visible_tokens()[0] == model.bos
        assert stream.visible_tokens()[1] != model.bos


@pytest.mark.parametrize("new", [[5] * N_CTX, [5] * 1000, [-1], [10**6]])
def test_a_prefix_that_cannot_be_changes_nothing(model: Model, new: list[int]) -> None:
    with opened(model) as stream:
        stream.feed(TOKENS[:100])
        before = stream.policy, stream.visible_tokens(), stream.stats.sees
        with pytest.raises(UsageError):
            stream.repin(new)
        assert (stream.policy, stream.visible_tokens(), stream.stats.sees) == before


def test_an_empty_stream_has_no_prefix(model: Model) -> None:
    with opened(model) as stream, pytest.raises(UsageError, match="feed it first"):
        stream.repin([5])


@pytest.mark.parametrize("name", ["llama-yarn", "qwen2vl", "gemma3", "mpt", "mistral3", "lfm2"])
@pytest.mark.parametrize("n_fed", [20, 100])
def test_other_families(name: str, n_fed: int, tmp_path: Path) -> None:
    path = FAMILIES[name].write(tmp_path / f"{name}.gguf")
    tokens = [token % (N_VOCAB - 4) + 4 for token in TOKENS]
    new = [token % (N_VOCAB - 4) + 4 for token in PREFIXES[20]]
    policy = SinkPolicy(N_KEEP, 1)
    with Model(Weights(path)) as model, model.stream(policy, N_CTX, "f32", "f32") as stream:
        stream.feed(tokens[:n_fed])
        stream.repin(new, exact=True)
        with model.stream(SinkPolicy(20, 1), N_CTX, "f32", "f32") as fresh:
            fresh.feed([*new, *window_of(stream)])
            rest = tokens[n_fed : n_fed + 60]
            assert np.abs(scores(stream, rest) - scores(fresh, rest))[1:].max() < 5e-3
        stream.repin(new[:10])
        assert np.isfinite(scores(stream, tokens[200:260])).all()


def test_a_failure_is_made_up_for() -> None:
    backend = FakeBackend(n_cells=64, n_batch=8)
    with Stream(backend, SinkPolicy(4, 1, "reanchor", 0), 24) as stream:
        stream.feed(list(range(40)))
        window = window_of(stream)
        backend.fail_at = {backend.n_decodes}
        with pytest.raises(DecodeError, match="injected"):
            stream.repin([70, 71, 72])
        assert stream.visible_tokens() == [70, 71, 72, *window]
        assert stream.policy.n_keep == 3
        stream.feed([99])
        assert len(backend.cells) == len(stream.visible_tokens())
        assert [c.token for c in sorted(backend.cells, key=lambda c: c.pos)] == (
            stream.visible_tokens()
        )


def test_the_whole_prompt_includes_a_prefix_that_was_swapped(model: Model) -> None:
    with opened(model, -1) as stream:
        stream.feed(TOKENS[:10])
        stream.feed(TOKENS[10:60])
        stream.repin(PREFIXES[20])
        stream.change(n_keep=-1)
        assert stream.stats.pinned == 20
        stream.feed(TOKENS[60:150])
        assert stream.visible_tokens()[:20] == PREFIXES[20]


# -- spans --------------------------------------------------------------------------------------


def test_a_span_stays_for_good(shallow: Model) -> None:
    with opened(shallow, slack=0) as stream:
        stream.feed(TOKENS[:60])
        span = TOKENS[50:55]
        done = stream.pin(50, 55)
        assert done.n_tokens == N_KEEP + 5
        assert stream.pins == (tuple(span),)
        stream.feed(TOKENS[60:200])
        head = stream.visible_tokens()[: N_KEEP + 5]
        assert head == [*TOKENS[:N_KEEP], *span]
        with opened(shallow, N_KEEP + 5, slack=0) as fresh:
            fresh.feed([*head, *window_of(stream)])
            assert np.abs(fresh.logits() - stream.logits()).max() < CLOSE


def test_spans_are_released_in_turn(model: Model) -> None:
    with opened(model) as stream:
        stream.feed(TOKENS[:60])
        stream.pin(40, 43)
        stream.pin(50, 52)
        assert stream.pins == (tuple(TOKENS[40:43]), tuple(TOKENS[50:52]))
        stream.repin(PREFIXES[3])
        prefix = [*PREFIXES[3], *TOKENS[40:43], *TOKENS[50:52]]
        assert stream.visible_tokens()[: len(prefix)] == prefix
        with stream.fork() as other:
            other.unpin()
            assert other.visible_tokens()[:6] == prefix[:6]
            assert other.stats.pinned == 6
        stream.unpin()
        stream.unpin()
        assert stream.visible_tokens()[:3] == PREFIXES[3]
        assert stream.stats.pinned == 3
        with pytest.raises(UsageError, match="nothing is pinned beside"):
            stream.unpin()


def test_what_is_forgotten_cannot_be_pinned(model: Model) -> None:
    with opened(model) as stream:
        stream.feed(TOKENS[:150])
        for start, stop in ((20, 40), (0, N_KEEP), (150, 160), (9, 8)):
            with pytest.raises(UsageError, match="in the window"):
                stream.pin(start, stop)
        done = stream.pin(100, 110)
        seen = stream.stats.sees[-1][0]
        assert done.n_tokens - N_KEEP <= 10
        assert seen >= 100


def test_another_keep_makes_pins_a_prefix(model: Model) -> None:
    with opened(model) as stream:
        stream.feed(TOKENS[:60])
        stream.pin(50, 55)
        stream.change(n_keep=N_KEEP + 2)
        assert stream.pins == ()
        stream.feed(TOKENS[60:150])
        assert stream.visible_tokens()[: N_KEEP + 2] == [*TOKENS[:N_KEEP], *TOKENS[50:52]]


def test_a_span_too_large(model: Model) -> None:
    with opened(model) as stream:
        stream.feed(TOKENS[:60])
        before = stream.visible_tokens()
        with pytest.raises(UsageError, match="leaves no window"):
            stream.pin(0, 60)
        assert stream.visible_tokens() == before
        assert stream.pins == ()
