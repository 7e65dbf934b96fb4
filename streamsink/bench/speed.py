"""What streaming costs, against decoding without eviction on the same cache at the same fill."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from streamsink.bench.full_stream import BATCH, N_REPIN, FullStream, Sample
from streamsink.bench.task import Place, Task
from streamsink.core.policy import Discard, Placement, SinkPolicy
from streamsink.errors import UsageError

Block: TypeAlias = Callable[[FullStream], Sample]

LEAST_CTX = 256
"""Smallest context: all variants fit, and one batch is a small part of it."""
SHORT = 3
"""Samples of what takes a second or two, for one of what takes longer."""

PLAIN = "plain decode"
BARE = "bare decode and sample"
BATCHES = {
    "last": f"plain batch of {BATCH} on a full cache",
    "all": f"plain batch of {BATCH} on a full cache, all logits",
}
SMALLER = "the same up to a full cache"
EVALUATED = "evaluating them bare"
ANEW = "evaluating what is visible"


@dataclass(frozen=True, slots=True)
class SpeedSettings:
    """What is timed.

    Parameters
    ----------
    n_ctx : tuple of int
        Contexts, each full.
    n_discard : tuple of int or "half"
        Evictions.
    samples : int
        Samples of each.

    Raises
    ------
    UsageError
        A context too small to measure in, or an eviction too large for it.
    """

    n_ctx: tuple[int, ...] = (2048,)
    n_discard: tuple[Discard, ...] = (1, 8, 64, "half")
    samples: int = 3

    def __post_init__(self) -> None:
        for n_ctx in self.n_ctx:
            if n_ctx < LEAST_CTX:
                raise UsageError(f"--ctx {n_ctx} is too small to measure in: at least {LEAST_CTX}")
            for n_discard in self.n_discard:
                SinkPolicy(n_discard=n_discard).check(n_ctx)
        if self.samples < 1:
            raise UsageError(f"--samples {self.samples} is not possible: 1 or more")


def tasks(settings: SpeedSettings) -> list[Task]:
    """One task for each context and variant; those of a context share one full stream."""
    shelf = _Shelf()
    return [task for n_ctx in settings.n_ctx for task in _tasks(n_ctx, settings, shelf)]


def _tasks(n_ctx: int, settings: SpeedSettings, shelf: _Shelf) -> list[Task]:
    found: list[Task] = []

    def add(
        what: str, baseline: str, n_samples: int, weight: float, block: Block, **about: Any
    ) -> None:
        found.append(
            Task(
                kind="speed",
                key=f"ctx-{n_ctx}_{what.replace(', ', '_').replace(' ', '-')}",
                settings={"n_ctx": n_ctx, "what": what, "samples": n_samples, **about},
                weight=weight * n_samples,
                run=partial(_measure, shelf, n_ctx, what, baseline, n_samples, block),
            )
        )

    places: tuple[Placement, ...] = ("rotate", "reanchor")
    for n in settings.n_discard:
        for place in places:
            what = f"stream, discard {n}, {place}"
            # Half of a window is a long cycle, and one eviction in it weighs little.
            n_samples, weight = (1, n_ctx) if n == "half" else (settings.samples, 700)
            for slack in (None, 0) if n == 1 else (None,):
                add(
                    what if slack is None else f"{what}, slack {slack}",
                    PLAIN,
                    n_samples,
                    weight if slack is None else 80,
                    partial(_decoding, SinkPolicy(n_discard=n, placement=place, slack=slack)),
                    n_discard=n,
                    placement=place,
                    slack=slack,
                )
    n_short, last, every = SHORT * settings.samples, BATCHES["last"], BATCHES["all"]
    add("feed, discard 1, token by token", last, n_short, 120, FullStream.feeding_singly)
    add("feed, discard 1, batched", last, n_short, 500, FullStream.feeding)
    add("score, discard 1, batched", every, n_short, 550, FullStream.scoring)
    add(last, SMALLER, n_short, 20, FullStream.batching)
    add("generate, no eviction", BARE, n_short, 200, FullStream.generating)
    add("window evaluated anew for each token", PLAIN, 1, 0.5 * n_ctx, FullStream.recomputing)
    anew = 0.5 * n_ctx  # weight of an evaluation of the whole window, as above
    if n_ctx >= 2 * N_REPIN:
        add(f"re-pin of {N_REPIN} tokens", EVALUATED, n_short, 100, FullStream.repinning)
    for what, block in (
        ("fork", FullStream.forking),
        ("save", FullStream.saving),
        ("restore", FullStream.restoring),
    ):
        add(what, ANEW, settings.samples, anew, block)
    return found


def _decoding(policy: SinkPolicy, full: FullStream) -> Sample:
    return full.decoding(policy)


class _Shelf:
    """Holds the full stream in use: filling one takes seconds, keeping two takes memory."""

    def __init__(self) -> None:
        self._held: tuple[int, FullStream] | None = None

    def full_stream(self, place: Place, n_ctx: int) -> FullStream:
        if self._held and self._held[0] != n_ctx:
            self._held[1].stream.close()
            self._held = None
        if not self._held:
            self._held = (
                n_ctx,
                FullStream(place.stream(SinkPolicy(), n_ctx), place.seed, place.model),
            )
        return self._held[1]


def _measure(
    shelf: _Shelf,
    n_ctx: int,
    what: str,
    baseline: str,
    n_samples: int,
    block: Block,
    place: Place,
) -> dict[str, Any]:
    """Take the samples of one variant.

    Returns
    -------
    dict
        ``ms_per_token`` with quartiles over the samples; ``speed``, the time of the ``baseline`` by
        the time of this in each sample, with quartiles; ``p50``, ``p90``, ``p99`` and ``worst`` of
        single calls in ms; ``ms_per_eviction`` and ``share_in_evictions``, what the stream takes
        beyond its baseline (None where nothing is evicted).
    """
    full = shelf.full_stream(place, n_ctx)
    samples: list[Sample] = []
    for done in range(n_samples):
        samples.append(block(full))
        place.progress((done + 1) / n_samples)
    ms = np.array([sum(sample.ms) / sample.n_tokens for sample in samples])
    plain = np.array([sample.baseline_ms for sample in samples])
    calls = np.concatenate([sample.ms for sample in samples])
    n_evictions = sum(sample.n_evictions for sample in samples)
    extra = sum(sum(sample.ms) - sample.baseline_ms * sample.n_tokens for sample in samples)
    ms_q1, median, ms_q3 = _quartiles(ms)
    speed_q1, speed, speed_q3 = _quartiles(plain / ms)
    stats = full.stream.stats
    return {
        "name": what,
        "ms_per_token": median,
        "ms_q1": ms_q1,
        "ms_q3": ms_q3,
        "baseline": baseline,
        "baseline_ms": float(np.median(plain)),
        "speed": speed,
        "speed_q1": speed_q1,
        "speed_q3": speed_q3,
        "p50": float(np.median(calls)),
        "p90": float(np.percentile(calls, 90)),
        "p99": float(np.percentile(calls, 99)),
        "worst": float(calls.max()),
        "ms_per_eviction": extra / n_evictions if n_evictions else None,
        "share_in_evictions": extra / float(calls.sum()) if n_evictions else None,
        "n_samples": n_samples,
        "n_tokens": samples[0].n_tokens,
        "placement": stats.placement,
        "slack": stats.slack,
        "auto": full.auto,
        "n_cells": full.stream.n_cells,
    }


def _quartiles(values: NDArray[np.float64]) -> tuple[float, float, float]:
    q1, median, q3 = np.percentile(values, (25, 50, 75))
    return float(q1), float(median), float(q3)
