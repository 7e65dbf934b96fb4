"""A model being loaded: how far it is, and an end to it where whoever listens has had enough."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import llama_cpp.llama_cpp as llama

Progress: TypeAlias = Callable[[float], object]
"""Told how much of the weights is in memory, from 0 to 1."""


class Loading:
    """llama.cpp's progress callback, in which signals act.

    Parameters
    ----------
    progress : callable, optional
        Told of every step; what it raises ends the loading, and is raised by `check`.
    deliver : callable
        Lets signals act that are held back meanwhile.
    """

    def __init__(self, progress: Progress | None, deliver: Callable[[], object]) -> None:
        self._progress = progress
        self._deliver = deliver
        self._error: BaseException | None = None
        # It lives as long as this object, and llama.cpp calls it no longer than it loads.
        self.callback = llama.llama_progress_callback(self._goes_on)

    def _goes_on(self, done: float, _: object) -> bool:
        # What a callback raises is printed by ctypes and lost, so nothing leaves it.
        try:
            self._deliver()
            if self._progress:
                self._progress(done)
        except BaseException as error:
            self._error = error
        return self._error is None

    def check(self) -> None:
        """Raise what ended the loading, if anything has."""
        if self._error is not None:
            raise self._error
