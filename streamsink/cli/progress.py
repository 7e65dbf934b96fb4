"""How far a run of benchmarks is: a bar with the time left, or a line for each measurement."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from streamsink.bench.folder import RunFolder
from streamsink.bench.task import Task

LONG_AGO = 3600.0
"""Seconds over which the pace is taken: measurements differ, so the whole run is looked at."""


class Bar:
    """Watches a run; implements `streamsink.bench.suite.Watcher`.

    Parameters
    ----------
    tasks : sequence of Task
        What is to be done.
    folder : RunFolder
        What of it is done.
    """

    def __init__(self, tasks: Sequence[Task], folder: RunFolder) -> None:
        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            speed_estimate_period=LONG_AGO,
            disable=not self._console.is_terminal,
        )
        self._left = [task for task in tasks if not folder.has(task)]
        self._weight = 0.0
        self._done = 0.0
        self._row = self._progress.add_task("", total=sum(task.weight for task in self._left))

    def begins(self, task: Task) -> None:
        """Name the measurement."""
        self._weight = task.weight
        self._progress.update(self._row, description=f"{task.kind} {task.key}")

    def goes_on(self, done: float) -> None:
        """Move the bar."""
        self._progress.update(self._row, completed=self._done + min(done, 1.0) * self._weight)

    def ends(self, task: Task, result: dict[str, Any]) -> None:
        """Move the bar, or say a line."""
        self._done += task.weight
        self._progress.update(self._row, completed=self._done)
        if self._progress.disable:
            self._console.print(f"done: {task.kind} {task.key}", markup=False, highlight=False)

    def __enter__(self) -> Bar:
        """Show it."""
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take it away."""
        self._progress.stop()
