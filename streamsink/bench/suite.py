"""Doing tasks one after another, and writing each down as soon as it is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from streamsink.bench.folder import RunFolder
from streamsink.bench.task import Place, Task
from streamsink.errors import CapabilityError
from streamsink.gguf.settings import USUAL, CacheSettings
from streamsink.model import Model


class Watcher(Protocol):
    """Somebody who wants to know how far it is."""

    def begins(self, task: Task) -> None:
        """A task begins."""

    def goes_on(self, done: float) -> None:
        """A part of the task, from 0 to 1, is done."""

    def ends(self, task: Task, result: dict[str, Any]) -> None:
        """A task is done, and written down."""


def run(
    tasks: Sequence[Task],
    model: Model,
    folder: RunFolder,
    seed: int,
    watcher: Watcher,
    cache: CacheSettings = USUAL,
    clock: Callable[[], float] = time.perf_counter,
) -> None:
    """Do every task that the folder does not hold yet.

    What the model cannot do is written down as ``{"skipped": why}``. Whatever else is raised ends
    the run; the folder then holds what was done before. A measurement that Ctrl-C interrupts may
    give what it has, as ``{"interrupted": True, …}``; it is made anew when the run goes on.
    """
    for task in tasks:
        if folder.has(task):
            continue
        watcher.begins(task)
        start = clock()
        place = Place(model, folder.arrays, seed, watcher.goes_on, cache)
        try:
            result = task.run(place)
        except CapabilityError as error:
            result = {"skipped": str(error)}
        folder.append(task, result, clock() - start)
        if result.get("interrupted"):
            raise KeyboardInterrupt
        watcher.ends(task, result)
