"""What a benchmark consists of: tasks that are done one after another, each once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from streamsink.model import Model

Progress: TypeAlias = Callable[[float], object]
"""Called with the part of a task that is done, from 0 to 1, a few times a second at most."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a task works.

    Attributes
    ----------
    model : Model
        The model under test.
    arrays : Path
        Folder for what is too long for a record, as files named after the task's key.
    seed : int
        Seed of whatever is drawn.
    progress : callable
        See `Progress`.
    """

    model: Model
    arrays: Path
    seed: int
    progress: Progress


@dataclass(frozen=True, slots=True)
class Task:
    """One measurement.

    Attributes
    ----------
    kind : str
        The benchmark: ppl, speed, recall, memory.
    key : str
        What tells it from every other task of a run: letters, digits, ``-``, ``_``, ``.``, ``+``.
    settings : dict
        What is measured, as plain JSON data.
    weight : float
        Time it takes, relative to other tasks of the run.
    run : callable
        Does it, and returns the result as plain JSON data.
    """

    kind: str
    key: str
    settings: dict[str, Any]
    weight: float
    run: Callable[[Place], dict[str, Any]]
