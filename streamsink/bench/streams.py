"""Many streams at once: in one engine, in contexts of their own, and one by itself.

Each sample lets all streams generate a piece of a cycle of evictions, first in one engine, then in
separate contexts which one thread decodes in turn, then one stream alone: so all three meet the
same machine. Wall time is what a user waits; CPU time stands beside it, for other programs need the
cores too.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from streamsink.bench.task import Place, Task
from streamsink.core.policy import SinkPolicy
from streamsink.core.sampling import Sampling
from streamsink.engine.engine import Engine
from streamsink.engine.stream import Stream
from streamsink.errors import UsageError
from streamsink.gguf.layout import MOST_STREAMS

N_SAMPLE = 128
"""Tokens that each stream generates in a sample; four samples are a cycle of the usual slack."""
N_PROMPT = 1000
"""Tokens of a prompt that comes while the others generate."""
POLICY = SinkPolicy(4, 1)


class Took(NamedTuple):
    """Seconds of a piece of work, and tokens that came of it."""

    wall: float
    cpu: float
    n_tokens: int


@dataclass(frozen=True, slots=True)
class StreamsSettings:
    """What is timed.

    Parameters
    ----------
    n_streams : tuple of int
        Streams at once.
    n_ctx : tuple of int
        Context of each.
    samples : int
        Samples of each.

    Raises
    ------
    UsageError
        A number out of range.
    """

    n_streams: tuple[int, ...] = (1, 4, 8)
    n_ctx: tuple[int, ...] = (512,)
    samples: int = 4

    def __post_init__(self) -> None:
        for n in self.n_streams:
            if not 1 <= n <= MOST_STREAMS:
                raise UsageError(f"--streams {n} is not possible: 1 to {MOST_STREAMS}")
        for n_ctx in self.n_ctx:
            POLICY.check(n_ctx)
        if self.samples < 1:
            raise UsageError(f"--samples {self.samples} is not possible: 1 or more")


def tasks(settings: StreamsSettings) -> list[Task]:
    """One task for each number of streams and each context."""
    return [
        Task(
            kind="streams",
            key=f"streams-{n}_ctx-{n_ctx}",
            settings={"n_streams": n, "n_ctx": n_ctx, "samples": settings.samples},
            weight=float(n * n_ctx * (settings.samples + 2)),
            run=partial(_measure, n, n_ctx, settings.samples),
        )
        for n_ctx in settings.n_ctx
        for n in settings.n_streams
    ]


def _measure(n: int, n_ctx: int, n_samples: int, place: Place) -> dict[str, Any]:
    """Take the samples of one number of streams.

    Returns
    -------
    dict
        For ``engine``, ``contexts`` and ``one``: ``ms_per_token`` over all samples and streams with
        quartiles, ``cpu_ms_per_token``; ``speed``, the time of the contexts by that of the engine
        in each sample, with quartiles; ``first_token``, see `_first_token`; ``layout`` and ``why``.
    """
    with ExitStack() as stack:
        engine = stack.enter_context(_engine(place, n, n_ctx, "auto"))
        contexts = stack.enter_context(_engine(place, n, n_ctx, "separate"))
        one = stack.enter_context(place.stream(POLICY, n_ctx))
        sets: dict[str, list[Stream]] = {
            "engine": _filled([engine.stream(POLICY) for _ in range(n)], place),
            "contexts": _filled([contexts.stream(POLICY) for _ in range(n)], place),
            "one": _filled([one], place),
        }
        took: dict[str, list[Took]] = {name: [] for name in sets}
        for done in range(n_samples):
            for name, streams in sets.items():
                took[name].append(_together(streams, N_SAMPLE, place.seed))
            place.progress((done + 1) / (n_samples + 1))
        stats = sets["engine"][0].stats
        first = _first_token(engine, sets["engine"][: n - 1], place)
    ratios = [
        (a.wall / a.n_tokens) / (b.wall / b.n_tokens)
        for a, b in zip(took["contexts"], took["engine"], strict=True)
    ]
    return {
        **{name: _summary(samples) for name, samples in took.items()},
        "speed": float(np.median(ratios)),
        "speed_q1": float(np.percentile(ratios, 25)),
        "speed_q3": float(np.percentile(ratios, 75)),
        "first_token": first,
        "why": engine.why,
        "placement": stats.placement,
        "slack": stats.slack,
        "n_samples": n_samples,
        "n_tokens": N_SAMPLE,
    }


def _engine(place: Place, n: int, n_ctx: int, layout: Any) -> Engine:
    return place.model.engine(n, n_ctx, layout=layout, **asdict(place.cache))


def _filled(streams: Sequence[Stream], place: Place) -> list[Stream]:
    """Streams with full caches, each with other tokens, at another place of its cycle."""
    for at, stream in enumerate(streams):
        stream.feed(_tokens(stream.n_ctx + 37 * at, place.seed + at, place))
    _together(streams, 8, place.seed)
    return [*streams]


def _tokens(n: int, seed: int, place: Place) -> list[int]:
    drawn = random.Random(seed)
    return [drawn.randrange(place.model.n_vocab // 2) for _ in range(n)]


def _together(streams: Sequence[Stream], n: int, seed: int) -> Took:
    """Let all streams generate at once, each in a thread of its own."""
    wall, cpu = time.perf_counter(), time.process_time()
    if len(streams) == 1:
        _generate(streams[0], n, seed)
    else:
        _at_once([partial(_generate, stream, n, seed) for stream in streams])
    took = time.perf_counter() - wall, time.process_time() - cpu
    return Took(*took, n * len(streams))


def _generate(stream: Stream, n: int, seed: int) -> None:
    for _ in stream.generate(n, sampling=Sampling(seed=seed), ignore_eos=True):
        pass


def _at_once(calls: Sequence[Callable[[], object]]) -> None:
    """Make calls, each in a thread of its own; the first error of theirs is raised."""
    with _threads(calls) as under_way:
        for call in under_way:
            call.result()


@contextmanager
def _threads(calls: Sequence[Callable[[], object]]) -> Iterator[list[Future[object]]]:
    """Calls under way. Whoever leaves with an error does not wait: closing an engine ends them."""
    pool = ThreadPoolExecutor(max(1, len(calls)))
    try:
        yield [pool.submit(call) for call in calls]
    finally:
        pool.shutdown(wait=False)


def _first_token(engine: Engine, others: Sequence[Stream], place: Place) -> dict[str, Any]:
    """A new prompt while the others generate, and while nobody does.

    Returns
    -------
    dict
        ``alone_s`` and ``beside_s``, seconds to the first token; ``rate_before`` and
        ``rate_beside``, tokens a second of the others together.
    """
    prompt = _tokens(N_PROMPT, place.seed - 1, place)

    def seconds() -> float:
        with engine.stream(POLICY) as stream:
            start = time.perf_counter()
            stream.feed(prompt)
            _generate(stream, 1, place.seed)
            return time.perf_counter() - start

    alone = seconds()
    if not others:
        return {"alone_s": alone, "beside_s": None, "rate_before": None, "rate_beside": None}
    before = _together(others, N_SAMPLE // 2, place.seed)
    is_over = threading.Event()
    counts = [0] * len(others)

    def listen(at: int) -> None:
        sampling = Sampling(seed=place.seed)
        for _ in others[at].generate(None, sampling=sampling, ignore_eos=True):
            counts[at] += 1
            if is_over.is_set():
                return

    with _threads([partial(listen, at) for at in range(len(others))]) as under_way:
        try:
            while not all(counts) and not any(call.done() for call in under_way):
                time.sleep(0.01)
            n_before = sum(counts)
            beside = seconds()
            n_beside = sum(counts) - n_before
        finally:
            is_over.set()
        for call in under_way:
            call.result()
    return {
        "alone_s": alone,
        "beside_s": beside,
        "rate_before": before.n_tokens / before.wall,
        "rate_beside": n_beside / beside,
    }


def _summary(samples: Sequence[Took]) -> dict[str, float]:
    each = [1e3 * one.wall / one.n_tokens for one in samples]
    n_tokens = sum(one.n_tokens for one in samples)
    return {
        "ms_per_token": 1e3 * sum(one.wall for one in samples) / n_tokens,
        "ms_q1": float(np.percentile(each, 25)),
        "ms_q3": float(np.percentile(each, 75)),
        "cpu_ms_per_token": 1e3 * sum(one.cpu for one in samples) / n_tokens,
    }
