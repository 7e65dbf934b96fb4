"""What a run is to measure, as data: it is written into the run's folder, and read to go on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from streamsink.bench import busy, memory, ppl, recall, speed, streams
from streamsink.bench.busy import BusySettings
from streamsink.bench.memory import MemorySettings
from streamsink.bench.ppl import Cell, Reading
from streamsink.bench.recall_settings import RecallSettings
from streamsink.bench.speed import SpeedSettings
from streamsink.bench.streams import StreamsSettings
from streamsink.bench.task import Setup, Task
from streamsink.errors import UsageError
from streamsink.gguf.settings import CacheSettings


@dataclass(frozen=True, slots=True)
class Plan:
    """The benchmarks of a run; what is None or empty is left out.

    Parameters
    ----------
    setup : Setup
        What holds for all of them.
    speed : SpeedSettings or None
    streams : StreamsSettings or None
    busy : BusySettings or None
    cells : tuple of Cell
        The grid of perplexities.
    reading : Reading
        The text that they read.
    recall : RecallSettings or None
    memory : MemorySettings or None
    """

    setup: Setup = field(default_factory=Setup)
    speed: SpeedSettings | None = None
    cells: tuple[Cell, ...] = ()
    reading: Reading = field(default_factory=Reading)
    recall: RecallSettings | None = None
    memory: MemorySettings | None = None
    streams: StreamsSettings | None = None
    busy: BusySettings | None = None

    def tasks(self) -> list[Task]:
        """All measurements, in the order in which they are made."""
        unusual = self.setup.unusual()
        return [replace(task, settings=unusual | task.settings) for task in self._tasks()]

    def _tasks(self) -> Iterator[Task]:
        if self.speed:
            yield from speed.tasks(self.speed)
        if self.streams:
            yield from streams.tasks(self.streams)
        if self.busy:
            yield from busy.tasks(self.busy)
        yield from ppl.tasks(self.cells, self.reading)
        if self.recall:
            yield from recall.tasks(self.recall)
        if self.memory:
            yield from memory.tasks(self.memory)

    def as_dict(self) -> dict[str, Any]:
        """The plan as plain JSON data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Plan:
        """Read back what `as_dict` gave.

        Raises
        ------
        UsageError
            It is no plan.
        """
        try:
            cells = tuple(Cell(**cell) for cell in data["cells"])
            reading = Reading(**_tuples(data["reading"]))
            return cls(
                setup=Setup(data["setup"]["n_gpu_layers"], CacheSettings(**data["setup"]["cache"])),
                speed=SpeedSettings(**_tuples(data["speed"])) if data["speed"] else None,
                cells=cells,
                reading=reading,
                recall=RecallSettings(**_tuples(data["recall"])) if data["recall"] else None,
                memory=MemorySettings(**data["memory"]) if data["memory"] else None,
                streams=StreamsSettings(**_tuples(data["streams"]))
                if data.get("streams")
                else None,
                busy=BusySettings(**_tuples(data["busy"])) if data.get("busy") else None,
            )
        except (KeyError, TypeError) as error:
            raise UsageError(f"--resume: the run's plan cannot be read: {error}") from None


def _tuples(data: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(v) if isinstance(v, list) else v for name, v in data.items()}


def quick(n_ctx: int, reading: Reading, setup: Setup) -> Plan:
    """Everything a little: a few minutes on two slow cores."""
    return Plan(
        setup=setup,
        speed=SpeedSettings((n_ctx,), (1, "half"), samples=1),
        cells=tuple(
            ppl.grid(
                policies=("window", "sink", "dense"),
                n_ctx=(n_ctx,),
                n_keep=(4,),
                n_discard=("half",),
                placement=("auto",),
                slack=(None,),
                cache_types=("f16",),
            )
            + [Cell("sink", n_ctx, n_keep, 1) for n_keep in (1, 4)]
        ),
        reading=reading,
        recall=RecallSettings(n_ctx=n_ctx, n_facts=12),
        memory=MemorySettings(n_ctx, 20 * n_ctx),
    )


def full(n_ctx: int, reading: Reading, setup: Setup) -> Plan:
    """Everything, long enough to be quoted."""
    cells = [
        *(Cell("sink" if n_keep else "window", n_ctx, n_keep) for n_keep in (0, 1, 2, 4, 8)),
        *(Cell("sink", n_ctx, 4, n_discard) for n_discard in (8, 64)),
        Cell("sink", n_ctx, 4, "half"),
        Cell("dense", n_ctx),
        Cell("recompute", n_ctx),
    ]
    return Plan(
        setup=setup,
        speed=SpeedSettings((n_ctx,)),
        cells=tuple(cells),
        reading=reading,
        recall=RecallSettings(n_ctx=n_ctx),
        memory=MemorySettings(n_ctx),
    )
