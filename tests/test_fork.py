"""Many streams on one model: forks, threads, an event loop."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from streamsink.core.policy import Placement, SinkPolicy
from streamsink.core.sampling import Sampling
from streamsink.engine.stream import Stream
from streamsink.errors import CacheError, ClosedError
from streamsink.llama.sampler import seed_at
from streamsink.llama.weights import Weights
from streamsink.model import Model
from tests.fake_backend import FakeBackend
from tests.reference import Floats
from tests.zoo import FAMILIES, N_VOCAB

N_CTX, N_KEEP = 48, 4
TOKENS = [int(t) for t in np.random.default_rng(3).integers(4, 290, 400)]
HOT = Sampling(temperature=1.5, seed=7, repeat_penalty=1.2, repeat_last_n=16)


def opened(model: Model, placement: Placement = "reanchor", n_discard: int = 1) -> Stream:
    policy = SinkPolicy(N_KEEP, n_discard, placement, 16)
    return model.stream(policy, N_CTX, "f32", "f32", n_batch=64)


def scores(stream: Stream, tokens: list[int]) -> Floats:
    return np.asarray(stream.score(tokens))


# -- forks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("placement", ["rotate", "reanchor"])
@pytest.mark.parametrize("n_fed", [1, 20, N_CTX, 60, 150])
def test_a_fork_goes_on_alike(model: Model, placement: Placement, n_fed: int) -> None:
    with opened(model, placement) as stream:
        stream.feed(TOKENS[:n_fed])
        with stream.fork() as other:
            assert other.stats.index == stream.stats.index
            assert other.visible_tokens() == stream.visible_tokens()
            assert other.policy == stream.policy
            assert np.abs(other.logits() - stream.logits()).max() < 1e-3
            rest = TOKENS[n_fed : n_fed + 120]
            assert np.abs(scores(other, rest) - scores(stream, rest)).max() < 1e-3
            assert other.stats.evicted == stream.stats.evicted


def test_forks_are_independent(model: Model) -> None:
    with opened(model) as stream, opened(model) as lonely:
        for one in (stream, lonely):
            one.feed(TOKENS[:100])
        with stream.fork() as other:
            other.feed(TOKENS[200:300])
            other.change(n_keep=8, n_discard=4)
            other.feed(TOKENS[300:350])
        assert stream.policy.n_discard == 1
        rest = TOKENS[100:200]
        assert np.abs(scores(stream, rest) - scores(lonely, rest)).max() < 1e-3
        assert stream.stats.sees == lonely.stats.sees
        assert stream.stats.positions == lonely.stats.positions


def test_a_fork_of_a_fork_of_an_empty_stream(model: Model) -> None:
    with opened(model) as stream, stream.fork() as child, child.fork() as grandchild:
        assert grandchild.stats.index == 0
        found = scores(grandchild, TOKENS[:60])
        assert np.abs(found - scores(stream, TOKENS[:60]))[1:].max() < 1e-3


def test_the_sampler_goes_on_alike(model: Model) -> None:
    """In the midst of a generation: the same draws, the same repetitions penalised."""
    with opened(model) as stream:
        stream.feed(TOKENS[:30])
        steps = stream.generate(60, sampling=HOT, ignore_eos=True)
        for _ in range(25):
            next(steps)
        with stream.fork() as other:
            theirs = [s.token for s in other.generate(30, sampling=HOT, ignore_eos=True)]
        ours = [next(steps).token for _ in range(30)]
    assert theirs == ours


def test_interrupted_generations_draw_as_one_does(model: Model) -> None:
    with opened(model) as whole, opened(model) as parts:
        for stream in (whole, parts):
            stream.feed(TOKENS[:30])
        expected = [s.token for s in whole.generate(60, sampling=HOT, ignore_eos=True)]
        found = [
            step.token
            for n in (1, 7, 22, 30)
            for step in parts.generate(n, sampling=HOT, ignore_eos=True)
        ]
    assert found == expected


def test_draws_of_neighbours_are_as_those_of_strangers() -> None:
    """A token's draw is the first of a Mersenne twister with a seed of its own, as in llama.cpp."""
    draws = np.array(
        [np.random.RandomState(seed_at(5, index)).random_sample() for index in range(20_000)]
    )
    edges = np.linspace(0, 1, 51)
    counts = np.histogram(draws, edges)[0]
    chi_squared = ((counts - 400) ** 2 / 400).sum()
    assert chi_squared < 85  # 49 degrees of freedom: once in a thousand
    for lag in (1, 2, 7):
        assert abs(np.corrcoef(draws[:-lag], draws[lag:])[0, 1]) < 0.025
    seeds = {seed_at(seed, index) for seed in range(100) for index in range(1000)}
    assert len(seeds) > 99_990


def test_events_of_a_fork_are_its_own(model: Model) -> None:
    seen: list[int] = []
    forked: list[int] = []
    policy = SinkPolicy(N_KEEP, 1)
    with model.stream(policy, N_CTX, on_evict=lambda gone: seen.append(gone.index)) as stream:
        stream.feed(TOKENS[:60])
        n = len(seen)
        with stream.fork(on_evict=lambda gone: forked.append(gone.index)) as other:
            other.feed(TOKENS[60:90])
        assert len(seen) == n
        assert forked


def test_a_closed_stream_has_no_forks(model: Model) -> None:
    stream = opened(model)
    stream.close()
    with pytest.raises(ClosedError):
        stream.fork()


def test_closing_the_model_closes_forks(tiny_path: Path) -> None:
    model = Model(Weights(tiny_path))
    stream = opened(model)
    stream.feed(TOKENS[:20])
    other = stream.fork()
    stream.close()
    other.feed(TOKENS[20:40])
    model.close()
    with pytest.raises(ClosedError):
        other.feed(TOKENS[:5])


def test_a_fork_that_fails_leaves_the_stream(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(model) as stream:
        stream.feed(TOKENS[:60])
        with monkeypatch.context() as patch:
            patch.setattr("llama_cpp.llama_cpp.llama_state_seq_set_data", lambda *_: 0)
            with pytest.raises(CacheError, match="cannot take"):
                stream.fork()
        assert np.isfinite(scores(stream, TOKENS[60:100])).all()


@pytest.mark.parametrize("name", ["gemma3", "qwen2vl", "mpt", "deepseek2", "llama-yarn"])
def test_forks_of_other_families(name: str, tmp_path: Path) -> None:
    tokens = [token % (N_VOCAB - 4) + 4 for token in TOKENS]
    path = FAMILIES[name].write(tmp_path / f"{name}.gguf")
    with Model(Weights(path)) as model, opened(model) as stream:
        stream.feed(tokens[:100])
        with stream.fork() as other:
            rest = tokens[100:180]
            assert np.abs(scores(other, rest) - scores(stream, rest)).max() < 1e-3


def test_a_fork_brings_back_what_is_missing() -> None:
    backend = FakeBackend(n_cells=64, n_batch=8)
    with Stream(backend, SinkPolicy(4, 1, "reanchor", 0), 24) as stream:
        stream.feed(list(range(24)))
        backend.fail_at = {backend.n_decodes}
        with pytest.raises(Exception, match="injected"):
            stream.feed([7])
        with stream.fork() as other:
            assert other.visible_tokens() == stream.visible_tokens()
            for one in (stream, other):
                one.feed([9, 11])
            assert (other.logits() == stream.logits()).all()


# -- threads and event loops --------------------------------------------------------------------


def test_eight_streams_from_eight_threads(model: Model) -> None:
    def work(seed: int) -> Floats:
        rng = np.random.default_rng(seed)
        tokens = [int(token) for token in rng.integers(4, 290, 200)]
        policy = SinkPolicy(N_KEEP, 1, "reanchor", 16)
        with model.stream(policy, N_CTX, "f32", "f32", threads=1) as stream:
            found = scores(stream, tokens)
            said = [s.token for s in stream.generate(20, sampling=HOT, ignore_eos=True)]
        return np.array([*found[1:], *said])

    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(work, range(8)))
    for seed, found in enumerate(together):
        assert np.abs(found - work(seed)).max() < 1e-3


def test_the_interpreter_is_free_while_llama_cpp_works(model: Model) -> None:
    ticks, done = [0], threading.Event()

    def tick() -> None:
        while not done.is_set():
            ticks[0] += 1
            time.sleep(0.0005)

    thread = threading.Thread(target=tick)
    with model.stream(SinkPolicy(N_KEEP, "half"), 2048, n_batch=2048, threads=1) as stream:
        thread.start()
        stream.feed(TOKENS * 5)  # one decode of 2,000 tokens
        done.set()
        thread.join()
    assert ticks[0] > 5


def test_an_event_loop_goes_on_meanwhile(model: Model) -> None:
    async def both() -> tuple[list[int], list[int], int]:
        ticks = 0

        async def say(stream: Stream) -> list[int]:
            steps = stream.agenerate(40, sampling=HOT, ignore_eos=True)
            return [step.token async for step in steps]

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticking = asyncio.create_task(tick())
        with opened(model) as one, opened(model) as other:
            for stream in (one, other):
                stream.feed(TOKENS[:30])
            said = await asyncio.gather(say(one), say(other))
        ticking.cancel()
        return said[0], said[1], ticks

    one, other, ticks = asyncio.run(both())
    with opened(model) as stream:
        stream.feed(TOKENS[:30])
        expected = [s.token for s in stream.generate(40, sampling=HOT, ignore_eos=True)]
    assert one == other == expected
    assert ticks > 80, "the loop ran between the steps"


def test_a_cancelled_generation_holds_what_was_yielded(model: Model) -> None:
    async def cancelled(stream: Stream) -> list[int]:
        said: list[int] = []

        async def say() -> None:
            async for step in stream.agenerate(None, sampling=HOT, ignore_eos=True):
                said.append(step.token)

        task = asyncio.create_task(say())
        while len(said) < 10:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return said

    with opened(model) as stream:
        stream.feed(TOKENS[:30])
        said = asyncio.run(cancelled(stream))
        assert stream.visible_tokens() == [*TOKENS[:30], *said][-stream.stats.index :]
        stream.feed(TOKENS[30:50])


def test_an_error_reaches_the_loop(model: Model) -> None:
    async def fails() -> None:
        async for _ in opened(model).agenerate(sampling=Sampling(grammar="no grammar")):
            pass

    with pytest.raises(Exception, match="not GBNF"):
        asyncio.run(fails())
