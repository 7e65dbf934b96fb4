"""The llama.cpp library: loaded once, its log kept off the terminal."""

from __future__ import annotations

import ctypes
import logging
import re
import threading
from collections import deque
from typing import Any

import llama_cpp.llama_cpp as llama

log = logging.getLogger("streamsink.llama")
"""llama.cpp's own log. Silent unless the program gives it a handler and a level."""
log.addHandler(logging.NullHandler())
log.propagate = False

# ggml.h: enum ggml_log_level
_LEVELS = {1: logging.DEBUG, 2: logging.INFO, 3: logging.WARNING, 4: logging.ERROR}


class Said:
    """What llama.cpp's log said in one call.

    Attributes
    ----------
    lines : list of str
        All lines that the pattern is found in.
    errors : sequence of str
        The last error lines.
    """

    def __init__(self, pattern: re.Pattern[str] | None) -> None:
        self.lines: list[str] = []
        self.errors: deque[str] = deque(maxlen=8)
        self._pattern = pattern

    def hear(self, level: int, line: str) -> None:
        """Take in a line."""
        if level == logging.ERROR:
            self.errors.append(line)
        if self._pattern and self._pattern.search(line):
            self.lines.append(line)

    def forget(self) -> None:
        """Begin with nothing."""
        if self.lines or self.errors:
            self.lines, self.errors = [], deque(maxlen=self.errors.maxlen)

    @property
    def reason(self) -> str:
        """The last error line, without the function's name; or ''."""
        # "failed to load model" only repeats that something failed: the line before says what.
        telling = [line for line in self.errors if "failed to load model" not in line]
        return (telling or list(self.errors) or [""])[-1].split(": ", 1)[-1]


class _Call(threading.local):
    """What a thread listens to, and what was raised while llama.cpp had the floor."""

    def __init__(self) -> None:
        self.listeners: list[Said] = []
        self.raised: BaseException | None = None


_call = _Call()


class hearing:
    """Keep what llama.cpp says of the calls that are made in the block, by this thread.

    llama.cpp calls back from the thread that called it. Threads of its own (those that check or
    convert tensors, OpenMP's) compute and leave the talking to the one that waits for them; should
    one of them say something, it goes to the log and is no call's reason.

    It can be used for one call after another; what was said in one is there until the next.

    Parameters
    ----------
    pattern : Pattern, optional
        What is looked for, beside errors.
    """

    __slots__ = ("_said",)

    def __init__(self, pattern: re.Pattern[str] | None = None) -> None:
        self._said = Said(pattern)

    def __enter__(self) -> Said:
        self._said.forget()
        _call.listeners.append(self._said)
        return self._said

    def __exit__(self, *_: object) -> None:
        _call.listeners.remove(self._said)
        # Ctrl-C while llama.cpp said something: ctypes prints what a callback raises, and drops it.
        raised = _call.raised
        if raised is not None:
            _call.raised = None
            raise raised


@llama.llama_log_callback  # type: ignore[untyped-decorator]
def _on_log(level: int, text: bytes, _: Any) -> None:
    try:
        line = text.decode("utf-8", "replace").rstrip("\n")
        if line:
            for said in _call.listeners:
                said.hear(_LEVELS.get(level, logging.DEBUG), line)
            log.log(_LEVELS.get(level, logging.DEBUG), "%s", line)
    except BaseException as error:
        _call.raised = error


llama.llama_log_set(_on_log, ctypes.c_void_p(0))
llama.llama_backend_init()


def features() -> str:
    """What this build of llama.cpp makes use of, in its own words: ``AVX2 = 1 | AMX_INT8 = 1``."""
    text: str = llama.llama_print_system_info().decode("utf-8", "replace")
    return text.strip(" |")
