"""A stream of a million tokens: does it stay as fast, as small and as right as it began?

``scripts/long-run`` runs it on any model, `tests.test_long_run` on a tiny one.
"""

from __future__ import annotations

import argparse
import ctypes
import random
import statistics
import struct
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice

import llama_cpp.llama_cpp as llama

from streamsink.core.events import Stats
from streamsink.core.ledger import Missing
from streamsink.core.plan import MAIN
from streamsink.core.policy import PLACEMENTS, Discard, SinkPolicy
from streamsink.engine.base import REBASE_AT
from streamsink.engine.stream import Stream
from streamsink.errors import StreamsinkError
from streamsink.llama.context import NativeContext
from streamsink.model import Model
from streamsink.system.memory import resident_bytes
from streamsink.system.sizes import gib

POINTS = 100
"""How often is looked."""
SAID = 32
"""Tokens generated after each piece that is fed: both ways of a stream are walked."""
PIECE = 256
"""Tokens of a piece, those that are generated included."""
WARM = POINTS // 10
"""Points until the allocator has what it will need, and those whose speed is compared."""
STATE_BYTES = 256 * 2**20
"""Largest state that is asked for where its cells stand; of larger ones only the ends are."""
HEADER = struct.Struct("<IiII")
"""A magic number, a sequence, how many streams, how many cells."""
CELL = struct.Struct("<iIi")
"""A position, how many sequences, and the one."""


@dataclass(frozen=True)
class Point:
    """What was seen at one moment.

    Attributes
    ----------
    n_tokens : int
        Tokens of the stream so far.
    seconds : float
        Time spent on them, the looking not included.
    resident_bytes : int
        Memory of the process.
    """

    n_tokens: int
    seconds: float
    resident_bytes: int


@dataclass
class Report:
    """What a long run came to.

    Attributes
    ----------
    points : list of Point
        One every hundredth part of the way.
    drift : list of str
        Where ledger and cache, or ledger and stream, disagreed; or a position left its bounds.
    most_position : int
        Largest position seen.
    stats : Stats
        The stream in numbers at its end.
    pairs : list of float
        Speed of each piece of the last tenth as a multiple of that of the same piece, right after
        it, in the first tenth of another stream: the machine itself changes its speed in an hour.
    """

    points: list[Point] = field(default_factory=list)
    drift: list[str] = field(default_factory=list)
    most_position: int = 0
    stats: Stats | None = None
    pairs: list[float] = field(default_factory=list)

    @property
    def growth_bytes(self) -> int:
        """How much memory was taken after the first tenth."""
        sizes = [point.resident_bytes for point in self.points[WARM:]]
        return max(sizes) - sizes[0]

    def rate(self, start: int, stop: int) -> float:
        """Tokens a second between two points."""
        first, last = self.points[start], self.points[stop]
        return (last.n_tokens - first.n_tokens) / (last.seconds - first.seconds)

    @property
    def rates(self) -> tuple[float, float]:
        """Tokens a second in the first and in the last tenth; the first fills the context."""
        return self.rate(0, WARM), self.rate(-WARM - 1, -1)


class Record:
    """What went into a stream, as far as a stream may still see it."""

    def __init__(self, n_keep: int, n_ctx: int) -> None:
        self.n_tokens = 0
        self.sink: list[int] = []
        self._n_keep = n_keep
        self._latest: deque[int] = deque(maxlen=n_ctx)

    def add(self, tokens: list[int]) -> None:
        """Take note of the next tokens."""
        self.sink += tokens[: self._n_keep - len(self.sink)]
        self._latest.extend(tokens)
        self.n_tokens += len(tokens)

    def seen(self, sees: tuple[tuple[int, int], ...]) -> list[int]:
        """Tokens of these index ranges."""
        begin = self.n_tokens - len(self._latest)
        return [
            token
            for start, stop in sees
            for token in (
                *self.sink[start : min(stop, begin)],
                *islice(self._latest, max(0, start - begin), max(0, stop - begin)),
            )
        ]


class Cells:
    """Where the cells of a stream stand, by llama.cpp's own account."""

    def __init__(self, context: NativeContext) -> None:
        self._context = context
        self._memory = llama.llama_get_memory(context._handle)
        self._buffer: ctypes.Array[ctypes.c_uint8] | None = None

    def ends(self) -> tuple[int, int]:
        """Smallest and largest position."""
        return (
            llama.llama_memory_seq_pos_min(self._memory, MAIN),
            llama.llama_memory_seq_pos_max(self._memory, MAIN),
        )

    def positions(self) -> list[int] | None:
        """All positions in order; None where the state that tells them is too large."""
        handle = self._context._handle
        n_bytes = llama.llama_state_seq_get_size(handle, MAIN)
        if n_bytes > STATE_BYTES:
            return None
        if self._buffer is None or len(self._buffer) < n_bytes:
            self._buffer = (ctypes.c_uint8 * (n_bytes + n_bytes // 8))()
        llama.llama_state_seq_get_data(handle, self._buffer, len(self._buffer), MAIN)
        # Its header ends with the number of cells (llama-context.cpp: state_seq_get_data,
        # llama-kv-cache.cpp: state_write); then come position and sequence of each cell.
        _, _, _, n_cells = HEADER.unpack_from(self._buffer)
        end = HEADER.size + CELL.size * n_cells
        return sorted(pos for pos, _, _ in CELL.iter_unpack(bytes(self._buffer[HEADER.size : end])))


def drift_of(stream: Stream, record: Record, cells: Cells, most: int) -> list[str]:
    """Everything that is not as it should be."""
    stats, ledger = stream.stats, stream._controller.ledger
    expected = [part.pos + at for part in ledger.segments for at in range(part.n)]
    positions = cells.positions()
    n_live = stats.pinned + stats.window
    checks = {
        "a token is not in the stream": stats.index == record.n_tokens,
        "a visible token is another": stream.visible_tokens() == record.seen(stats.sees),
        "more than n_ctx tokens are live": n_live <= stream.n_ctx,
        "tokens went unnoticed": stats.evicted + n_live == stats.index,
        "the gap is larger than the slack": stats.gap <= stats.slack,
        "cells are missing": ledger.missing is Missing.NOTHING,
        "a position is out of bounds": 0 <= stats.positions[0] < stats.positions[1] <= most,
        "the ends of ledger and cache differ": cells.ends() == (expected[0], expected[-1]),
        "positions of ledger and cache differ": positions in (None, expected),
    }
    return [f"at {stats.index:,}: {what}: {stats}" for what, holds in checks.items() if not holds]


def walk(stream: Stream, tokens: list[int]) -> tuple[list[int], float]:
    """Feed and generate: the tokens generated, and the seconds that it took."""
    start = time.perf_counter()
    stream.feed(tokens)
    said = [step.token for step in stream.generate(SAID, ignore_eos=True)]
    return said, time.perf_counter() - start


def run(
    stream: Stream,
    n_vocab: int,
    n_tokens: int,
    tell: Callable[[Point], object] = lambda _: None,
    *,
    young: Stream | None = None,
) -> Report:
    """Feed and generate by turns, and look a hundred times whether all is well.

    A young stream of the same kind begins its life beside the last tenth.
    """
    context = stream._context
    assert isinstance(context, NativeContext)
    assert isinstance(stream.policy.n_keep, int)
    record = Record(stream.policy.n_keep, stream.n_ctx)
    cells, report = Cells(context), Report()
    span = stream.n_ctx + stream.stats.slack + context.n_batch
    most = max(REBASE_AT, 2 * span) + span
    draw, seconds, due = random.Random(1), 0.0, 0
    if young:  # takes its memory now
        young.feed([draw.randrange(n_vocab) for _ in range(2 * young.n_ctx)])
        young.reset()
    while record.n_tokens < n_tokens:
        tokens = [draw.randrange(n_vocab) for _ in range(PIECE - SAID)]
        said, took = walk(stream, tokens)
        seconds += took
        record.add([*tokens, *said])
        if young and record.n_tokens > n_tokens - n_tokens // 10:
            was_full = young.stats.evictions > 0
            took_young = walk(young, tokens)[1]
            if was_full:
                report.pairs.append(took_young / took)
        report.most_position = max(report.most_position, stream.stats.positions[1])
        if record.n_tokens < due and record.n_tokens < n_tokens:
            continue
        due += n_tokens // POINTS
        stream.visible()  # the newest token is evaluated now
        report.drift += drift_of(stream, record, cells, most)
        report.points.append(Point(record.n_tokens, seconds, resident_bytes()))
        tell(report.points[-1])
    report.stats = stream.stats
    return report


def in_pairs(pairs: list[float]) -> list[str]:
    """The last tenth against the first of another stream, for people."""
    if len(pairs) < 2:
        return []
    low, middle, high = statistics.quantiles(pairs, n=4)
    return [
        f"in pairs        {middle:.3f} of a young stream's speed in the last tenth: the median of "
        f"{len(pairs):,} pieces, half of them {low:.3f} to {high:.3f}"
    ]


def told(report: Report) -> str:
    """A report for people."""
    stats = report.stats
    assert stats
    first, last = report.rates
    sizes = ", ".join(gib(point.resident_bytes) for point in report.points[:: POINTS // 10])
    lines = [
        f"tokens          {stats.index:,}, the model sees {stats.sees}",
        f"placement       {stats.placement}, slack {stats.slack}: {stats.why}",
        f"evictions       {stats.evictions:,} of {stats.evicted:,} tokens",
        f"moves           {stats.reanchors:,} re-anchors, {stats.shifts:,} rotations, "
        f"{stats.rebases:,} rebases",
        f"positions       up to {report.most_position:,}",
        f"memory          {sizes}",
        f"growth          {report.growth_bytes / 2**20:.2f} MiB after the first tenth",
        f"tokens/s        {first:,.0f} in the first tenth, {last:,.0f} in the last: "
        f"{last / first:.3f}",
        *in_pairs(report.pairs),
        f"ledger, cache   {len(report.points)} looks, {len(report.drift)} disagreements",
    ]
    return "\n".join([*lines, *report.drift[:10]])


def main() -> int:
    """Run it as a program; 1 where ledger and cache disagreed."""
    parser = argparse.ArgumentParser(prog="scripts/long-run", description=__doc__)
    parser.add_argument("model", nargs="?", default="", help="name or .gguf file")
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--ctx", type=int, default=512)
    parser.add_argument("--keep", type=int, default=4)
    parser.add_argument("--discard", default="1", help="tokens evicted at once, or: half")
    parser.add_argument("--placement", choices=PLACEMENTS, default="auto")
    parser.add_argument("--slack", type=int, help="positions the sink may trail")
    asked = parser.parse_args()

    def tell(point: Point) -> None:
        rate = point.n_tokens / point.seconds
        size = gib(point.resident_bytes)
        print(f"{point.n_tokens:>12,} tokens, {rate:,.0f} a second, {size}", file=sys.stderr)

    discard: Discard = "half" if asked.discard == "half" else int(asked.discard)
    try:
        policy = SinkPolicy(asked.keep, discard, asked.placement, asked.slack)
        with (
            Model.open(asked.model) as model,
            model.stream(policy, asked.ctx) as stream,
            model.stream(policy, asked.ctx) as young,
        ):
            report = run(stream, model.n_vocab, asked.tokens, tell, young=young)
    except StreamsinkError as error:
        print(f"long-run: {error}", file=sys.stderr)
        return error.exit_code
    print(told(report))
    return 1 if report.drift else 0


if __name__ == "__main__":
    sys.exit(main())
