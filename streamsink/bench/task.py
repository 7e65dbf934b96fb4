"""What a benchmark consists of: tasks that are done one after another, each once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from streamsink.core.policy import SinkPolicy
from streamsink.engine.stream import Stream
from streamsink.gguf.settings import USUAL, CacheSettings
from streamsink.model import Model

Progress: TypeAlias = Callable[[float], object]
"""Called with the part of a task that is done, from 0 to 1, a few times a second at most."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What holds for all measurements of a run, unless one of them measures just that.

    Attributes
    ----------
    n_gpu_layers : int or None
        See `Model.open`.
    cache : CacheSettings
        Settings of every stream.
    """

    n_gpu_layers: int | None = None
    cache: CacheSettings = USUAL

    def unusual(self) -> dict[str, Any]:
        """The cache's settings that differ from the usual ones, as plain JSON data."""
        usual = asdict(USUAL)
        return {name: it for name, it in asdict(self.cache).items() if it != usual[name]}


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
    cache : CacheSettings
        Settings of every stream.
    """

    model: Model
    arrays: Path
    seed: int
    progress: Progress
    cache: CacheSettings = USUAL

    def stream(self, policy: SinkPolicy, n_ctx: int, **changes: Any) -> Stream:
        """Open a stream on the model; ``changes`` are those of `cache`."""
        settings = replace(self.cache, **changes)
        return self.model.stream(policy, n_ctx, **asdict(settings))


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
