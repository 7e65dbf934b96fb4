"""Perplexity along a stream: what forgetting costs, policy by policy, token by token.

Every token's negative log-likelihood is kept, so that curves, intervals and paired differences come
from one run. All policies read the same tokens.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from streamsink.bench import text
from streamsink.bench.scores import ScoreFile, read_scores
from streamsink.bench.statistics import bootstrap_interval, curve, mean_nll, perplexity
from streamsink.bench.task import Place, Task
from streamsink.core.policy import LARGEST, Discard, Placing, SinkPolicy
from streamsink.engine.scoring import nll
from streamsink.engine.stream import Stream
from streamsink.errors import UsageError
from streamsink.gguf.settings import CacheSettings
from streamsink.system.reading import OnError

Kind: TypeAlias = Literal["dense", "window", "sink", "recompute"]
KINDS: tuple[Kind, ...] = ("dense", "window", "sink", "recompute")

BYTES_PER_TOKEN = 4
"""About as many as English text has; what a task weighs depends on it, and nothing else."""
PIECE = 512
"""Tokens scored in one call; between two of them the progress is told and the file written."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What is read.

    Parameters
    ----------
    names : tuple of str
        Files, ``-`` for standard input; none means the built-in text.
    n_tokens : int or None
        How many tokens of it at most.
    errors : {"strict", "replace"}
        What is done about bytes that are not UTF-8.
    """

    names: tuple[str, ...] = ()
    n_tokens: int | None = None
    errors: OnError = "strict"

    def __post_init__(self) -> None:
        if self.n_tokens is not None and self.n_tokens < 2:
            raise UsageError(f"--tokens {self.n_tokens} is not possible: 2 or more")


@dataclass(frozen=True, slots=True)
class Cell:
    """One measurement of the grid.

    Parameters
    ----------
    policy : {"dense", "window", "sink", "recompute"}
        Nothing evicted, until the trained context ends; eviction without a sink; with one; or, for
        every scored token, the last ``n_ctx`` tokens evaluated anew (the paper's baseline).
    n_ctx : int
        Tokens that a token can attend to, itself included. Ignored by ``dense``.
    n_keep, n_discard, placement, slack
        See `SinkPolicy`; for ``sink``, and but for ``n_keep`` for ``window``.
    cache_type_k, cache_type_v : str
        Types of keys and values.
    batched : bool
        Whether one-token evictions are decoded in lanes; without, token by token, as a check.
    force : bool
        See `SinkPolicy`.
    every : int
        Of ``recompute``: the distance of two tokens that are scored.

    Raises
    ------
    UsageError
        Values that do not fit together.
    """

    policy: Kind
    n_ctx: int
    n_keep: int = 4
    n_discard: Discard = 1
    placement: Placing = "auto"
    slack: int | None = None
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    batched: bool = True
    force: bool = False
    every: int = 64

    def __post_init__(self) -> None:
        if self.policy not in KINDS:
            raise UsageError(f"--policy {self.policy} is not one of {', '.join(KINDS)}")
        if self.every < 1:
            raise UsageError(f"--every {self.every} is not possible: 1 or more")
        if self.n_ctx < 2:
            raise UsageError(f"--ctx {self.n_ctx} is too small to score in: at least 2")
        self.sink_policy.check(self.n_ctx)
        CacheSettings(**self.cache)

    @property
    def sink_policy(self) -> SinkPolicy:
        """The policy of its stream."""
        n_keep = self.n_keep if self.policy == "sink" else 0
        return SinkPolicy(n_keep, self.n_discard, self.placement, self.slack, self.force)

    @property
    def cache(self) -> dict[str, Any]:
        """What its stream's cache has of its own."""
        types = {"cache_type_k": self.cache_type_k, "cache_type_v": self.cache_type_v}
        return types if self.batched else {**types, "n_lanes": 1}

    @property
    def key(self) -> str:
        """What tells it from the others of a grid."""
        if self.policy == "dense":
            parts = ["dense"]
        elif self.policy == "recompute":
            parts = [f"recompute-{self.n_ctx}-every-{self.every}"]
        else:
            parts = [
                f"{self.sink_policy.n_keep}+{self.n_ctx - self.sink_policy.n_keep}",  # type: ignore[operator]
                f"discard-{self.n_discard}",
                f"{self.placement}-slack-{slack_name(self.slack)}",
            ]
        if (self.cache_type_k, self.cache_type_v) != ("f16", "f16"):
            parts.append(f"{self.cache_type_k}-{self.cache_type_v}")
        return "_".join(parts)


def slack_name(slack: int | None) -> str:
    """A slack as ``--slack`` takes it."""
    if slack is None:
        return "auto"
    return "never" if slack >= LARGEST else str(slack)


def grid(
    policies: Sequence[Kind],
    n_ctx: Sequence[int],
    n_keep: Sequence[int],
    n_discard: Sequence[Discard],
    placement: Sequence[Placing],
    slack: Sequence[int | None],
    cache_types: Sequence[str],
    **settings: Any,
) -> list[Cell]:
    """All combinations that differ; a sink of 0 tokens is ``window``.

    Raises
    ------
    UsageError
        One of them is not possible.
    """
    cells: dict[str, Cell] = {}
    for policy, size, discard, place, trail, kind in itertools.product(
        policies, n_ctx, n_discard, placement, slack, cache_types
    ):
        for keep in n_keep if policy == "sink" else [0]:
            cell = Cell(
                policy="window" if policy == "sink" and keep == 0 else policy,
                n_ctx=size,
                n_keep=keep,
                n_discard=discard,
                placement=place,
                slack=trail,
                cache_type_k=kind,
                cache_type_v=kind,
                **settings,
            )
            cells.setdefault(cell.key, cell)
    return list(cells.values())


def tasks(cells: Sequence[Cell], reading: Reading) -> list[Task]:
    """One task for each cell."""
    return [
        Task(
            kind="ppl",
            key=cell.key,
            settings={
                **asdict(cell),
                "text": list(reading.names) or [text.BUILTIN],
                "n_tokens": reading.n_tokens,
                "errors": reading.errors,
            },
            weight=_weight(cell, reading),
            run=partial(measure, cell, reading),
        )
        for cell in cells
    ]


def _weight(cell: Cell, reading: Reading) -> float:
    """Tokens decoded, those that come one by one counted twice."""
    n = reading.n_tokens or text.size(reading.names) / BYTES_PER_TOKEN
    if cell.policy == "recompute":
        return n / cell.every * cell.n_ctx
    single = cell.n_discard == 1 and (cell.policy == "window" or not cell.batched)
    return n * (2 if single else 1)


def measure(cell: Cell, reading: Reading, place: Place) -> dict[str, Any]:
    """Score the text under one policy.

    Returns
    -------
    dict
        ``n_scored`` tokens with a prediction, their mean ``nll`` in nat (None where it is
        infinite), ``perplexity`` with a 95 % interval from ``low`` to ``high`` (None where it
        cannot be told), ``curve``, ``stopped``
        (why before the end of the text, or ''), ``tokens_per_second``, what the stream says of
        itself, ``tokens_sha256`` of the tokens as 32-bit integers, ``nll_file``, and
        ``interrupted``: by Ctrl-C, upon which the rest is about the tokens before.
    """
    path = place.arrays / f"{cell.key}.f32"
    start = time.perf_counter()
    if cell.policy == "recompute":
        told = _recompute(cell, reading, place, path)
    else:
        told = _stream(cell, reading, place, path)
    seconds = time.perf_counter() - start
    scores = read_scores(path)
    mean = mean_nll(scores)
    interval = bootstrap_interval(scores, seed=place.seed)
    index, level = curve(scores)
    return {
        "n_scored": int((~np.isnan(scores)).sum()),
        "nll": _finite(mean),
        "perplexity": _finite(perplexity(mean)),
        "low": _finite(perplexity(interval.low)),
        "high": _finite(perplexity(interval.high)),
        "curve": {"index": index.tolist(), "nll": [_finite(x) for x in level]},
        "tokens_per_second": round(len(scores) / seconds, 1),
        "nll_file": path.name,
        **told,
    }


def _finite(value: float) -> float | None:
    """JSON knows neither NaN nor infinity."""
    return float(value) if math.isfinite(value) else None


def _stream(cell: Cell, reading: Reading, place: Place, path: Path) -> dict[str, Any]:
    n_ctx, limit = cell.n_ctx, reading.n_tokens
    longest = place.model.n_ctx_within(place.cache)
    if cell.policy == "dense":
        n_ctx = limit = min(longest, limit or longest)
    pieces = _Pieces(place, reading, limit)
    stopped, interrupted = "", False
    with place.stream(cell.sink_policy, n_ctx, **cell.cache) as stream, ScoreFile(path) as file:
        try:
            for piece in pieces:
                file.append(stream.score(piece))
        except KeyboardInterrupt:
            stopped, interrupted = "interrupted", True
        stats = stream.stats
    if cell.policy == "dense" and pieces.n_read == longest:
        stopped = f"the trained context of {longest} tokens ends"
    return {
        "tokens_sha256": pieces.sha256,
        "stopped": stopped,
        "interrupted": interrupted,
        "placement": stats.placement,
        "slack": stats.slack,
        "evictions": stats.evictions,
        "reanchors": stats.reanchors,
        "shifts": stats.shifts,
    }


def _recompute(cell: Cell, reading: Reading, place: Place, path: Path) -> dict[str, Any]:
    """Score every so many tokens, each by an evaluation of the whole window before it."""
    policy = SinkPolicy(0)
    recent: deque[int] = deque(maxlen=cell.n_ctx)
    pieces = _Pieces(place, reading, reading.n_tokens)
    cache = {**cell.cache, "n_lanes": 1}
    with place.stream(policy, cell.n_ctx, **cache) as stream, ScoreFile(path) as file:
        for piece in pieces:
            scores = np.full(len(piece), np.nan)
            start = pieces.n_read - len(piece)
            for at, token in enumerate(piece):
                if (start + at) % cell.every == 0 and recent:
                    scores[at] = _anew(stream, list(recent), token)
                recent.append(token)
            file.append(scores)
    return {
        "tokens_sha256": pieces.sha256, "stopped": "", "interrupted": False,
        "placement": "", "slack": 0, "evictions": 0, "reanchors": 0, "shifts": 0,
    }  # fmt: skip


def _anew(stream: Stream, recent: Sequence[int], token: int) -> float:
    stream.reset()
    stream.feed(recent)
    return float(nll(stream.logits()[None], [token])[0])


class _Pieces:
    """The text in pieces of tokens; tells how much of it has been read, and what."""

    def __init__(self, place: Place, reading: Reading, limit: int | None) -> None:
        self._place = place
        self._found = text.tokens(place.model, reading.names, reading.errors, limit)
        self._digest = hashlib.sha256()
        self.n_read = 0

    @property
    def sha256(self) -> str:
        """Of the tokens given so far."""
        return self._digest.hexdigest()

    def __iter__(self) -> Iterator[list[int]]:
        held: list[int] = []
        for found, part in self._found:
            held += found
            n_whole = (self.n_read + len(held)) / part
            while len(held) >= PIECE:
                yield self._take(held[:PIECE])
                del held[:PIECE]
                self._place.progress(self.n_read / n_whole)
        if held:
            yield self._take(held)
        self._place.progress(1.0)

    def _take(self, piece: list[int]) -> list[int]:
        self._digest.update(np.asarray(piece, "<i4").tobytes())
        self.n_read += len(piece)
        return piece
