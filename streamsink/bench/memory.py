"""Memory along a stream: flat, or where it grows."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from typing import Any

from streamsink.bench.task import Place, Task
from streamsink.core.policy import SinkPolicy
from streamsink.errors import UsageError
from streamsink.system.memory import resident_bytes

POINTS = 100
"""How often memory is looked at."""
ROUTE = 32
"""Tokens generated after each piece that is fed: both ways of a stream are walked."""


@dataclass(frozen=True, slots=True)
class MemorySettings:
    """What is watched.

    Parameters
    ----------
    n_ctx : int
        Context of the stream.
    n_tokens : int
        Tokens that it takes in.
    """

    n_ctx: int = 512
    n_tokens: int = 100_000

    def __post_init__(self) -> None:
        SinkPolicy().check(self.n_ctx)
        if self.n_tokens < 2 * self.n_ctx:
            raise UsageError(
                f"--tokens {self.n_tokens} is too short a stream for --ctx {self.n_ctx}: "
                f"at least {2 * self.n_ctx}"
            )


def tasks(settings: MemorySettings) -> list[Task]:
    """One task."""
    key = f"ctx-{settings.n_ctx}"
    return [
        Task("memory", key, asdict(settings), float(settings.n_tokens), partial(watch, settings))
    ]


def watch(settings: MemorySettings, place: Place) -> dict[str, Any]:
    """Feed and generate by turns, and look at the memory of the process.

    Returns
    -------
    dict
        ``kv_bytes_computed`` from the model's shape for the tokens that are live, and
        ``kv_bytes_allocated`` for the cells there are; ``points`` with ``n_tokens``,
        ``resident_bytes`` and ``device_bytes`` (None without a device); ``growth_bytes`` from the
        first full context to the end, and ``grew_at``, the token count of its largest step.
    """
    draw = random.Random(place.seed)
    model = place.model
    step = max(ROUTE + 1, settings.n_tokens // POINTS)
    points: list[dict[str, Any]] = []
    before = resident_bytes()
    with place.stream(SinkPolicy(), settings.n_ctx) as stream:
        cell = model.cell_bytes(place.cache.cache_type_k, place.cache.cache_type_v)
        n_cells = stream.n_cells
        while (taken := stream.stats.index) < settings.n_tokens:
            stream.feed([draw.randrange(model.n_vocab) for _ in range(step - ROUTE)])
            for _ in stream.generate(ROUTE, ignore_eos=True):
                pass
            points.append(
                {
                    "n_tokens": stream.stats.index,
                    "resident_bytes": resident_bytes(),
                    "device_bytes": model.device_bytes(),
                }
            )
            place.progress(taken / settings.n_tokens)
    full = [point for point in points if point["n_tokens"] >= settings.n_ctx]
    sizes = [point["resident_bytes"] for point in full]
    steps = [later - sooner for sooner, later in pairwise(sizes)]
    return {
        "kv_bytes_computed": round(settings.n_ctx * cell),
        "kv_bytes_allocated": round(n_cells * cell),
        "resident_bytes_before": before,
        "points": points,
        "growth_bytes": sizes[-1] - sizes[0],
        "grew_at": full[steps.index(max(steps)) + 1]["n_tokens"] if steps and max(steps) else None,
    }
