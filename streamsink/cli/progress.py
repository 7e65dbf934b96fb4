"""How far something is that takes long: a bar with the time left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from streamsink.cli import terminal
from streamsink.system.closing import Closing

if TYPE_CHECKING:
    from streamsink.bench.folder import RunFolder
    from streamsink.bench.task import Task

LONG_AGO = 3600.0
"""Seconds over which the pace is taken: measurements differ, so the whole run is looked at."""


Self = TypeVar("Self", bound="_Shown")


class _Shown(Closing):
    """A bar that stands in a terminal while its ``with`` block runs, and nowhere else."""

    def __init__(self, *columns: ProgressColumn, **options: Any) -> None:
        console = terminal.console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            *columns,
            console=console,
            disable=not console.is_terminal,
            **options,
        )

    def __enter__(self: Self) -> Self:
        """Show it."""
        self._bar.start()
        return self

    def close(self) -> None:
        """Take it away."""
        self._bar.stop()


class Transfer(_Shown):
    """Shows how much of a file has come.

    Parameters
    ----------
    name : str
        What is coming.
    """

    def __init__(self, name: str) -> None:
        super().__init__(DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        self._name = terminal.line(name)
        self._row: TaskID | None = None

    def goes_on(self, done: int, total: int | None) -> None:
        """Move the bar; see `streamsink.registry.transfer.Progress`."""
        if self._row is None:  # begun here, so that what an earlier pull left is no speed
            self._row = self._bar.add_task(self._name, total=total, completed=done)
        self._bar.update(self._row, completed=done, total=total)


class Bar(_Shown):
    """Watches a run of benchmarks; implements `streamsink.bench.suite.Watcher`.

    Where there is no terminal, each measurement gets a line.

    Parameters
    ----------
    tasks : sequence of Task
        What is to be done.
    folder : RunFolder
        What of it is done.
    """

    def __init__(self, tasks: Sequence[Task], folder: RunFolder) -> None:
        super().__init__(
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            speed_estimate_period=LONG_AGO,
        )
        self._left = [task for task in tasks if not folder.has(task)]
        self._at = {id(task): f"{at} of {len(tasks)}" for at, task in enumerate(tasks, 1)}
        self._weight = 0.0
        self._done = 0.0
        self._row = self._bar.add_task("", total=sum(task.weight for task in self._left))

    def begins(self, task: Task) -> None:
        """Name the measurement."""
        self._weight = task.weight
        self._bar.update(self._row, description=self._named(task))

    def goes_on(self, done: float) -> None:
        """Move the bar."""
        self._bar.update(self._row, completed=self._done + min(done, 1.0) * self._weight)

    def ends(self, task: Task, result: dict[str, Any]) -> None:
        """Move the bar, or say a line."""
        self._done += task.weight
        self._bar.update(self._row, completed=self._done)
        if self._bar.disable:
            terminal.note(f"done {self._named(task)}")

    def _named(self, task: Task) -> str:
        """Which of all measurements it is, in words."""
        from streamsink.bench.names import title

        return terminal.line(f"{self._at[id(task)]}: {title(task.kind, task.settings)}")
