"""The llama.cpp library: loaded once, its log kept off the terminal."""

from __future__ import annotations

import ctypes
import logging
import os
import re
import tempfile
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import llama_cpp.llama_cpp as llama

log = logging.getLogger("streamsink.llama")
"""llama.cpp's own log. Silent unless the program gives it a handler and a level."""
log.addHandler(logging.NullHandler())
log.propagate = False

# ggml.h: enum ggml_log_level
_LEVELS = {1: logging.DEBUG, 2: logging.INFO, 3: logging.WARNING, 4: logging.ERROR}

_errors: deque[str] = deque(maxlen=8)
_heard: list[tuple[re.Pattern[str], list[str]]] = []


@llama.llama_log_callback  # type: ignore[untyped-decorator]
def _on_log(level: int, text: bytes, _: Any) -> None:
    line = text.decode("utf-8", "replace").rstrip("\n")
    if not line:
        return
    if _LEVELS.get(level) == logging.ERROR:
        _errors.append(line)
    for pattern, lines in _heard:
        if pattern.search(line):
            lines.append(line)
    log.log(_LEVELS.get(level, logging.DEBUG), "%s", line)


llama.llama_log_set(_on_log, ctypes.c_void_p(0))
llama.llama_backend_init()


def features() -> str:
    """What this build of llama.cpp makes use of, in its own words: ``AVX2 = 1 | AMX_INT8 = 1``."""
    text: str = llama.llama_print_system_info().decode("utf-8", "replace")
    return text.strip(" |")


def forget_errors() -> None:
    """Begin a call whose error lines are wanted."""
    _errors.clear()


def last_error() -> str:
    """llama.cpp's last error line since `forget_errors`, without the function's name; or ''."""
    # "failed to load model" only repeats that something failed: the line before says what.
    for line in reversed(_errors):
        if "failed to load model" not in line:
            return line.split(": ", 1)[-1]
    return _errors[-1].split(": ", 1)[-1] if _errors else ""


@contextmanager
def hearing(pattern: re.Pattern[str]) -> Iterator[list[str]]:
    """Collect the lines of llama.cpp's log that a pattern is found in, while in the block."""
    lines: list[str] = []
    _heard.append((pattern, lines))
    try:
        yield lines
    finally:
        _heard.remove((pattern, lines))


def has_said(text: str) -> bool:
    """Whether an error line since `forget_errors` has this in it."""
    return any(text in line for line in _errors)


@contextmanager
def caught_stderr() -> Iterator[list[str]]:
    """Catch what C code prints to stderr past its log (llama-grammar.cpp); whole process.

    The list holds the lines after the block.
    """
    lines: list[str] = []
    try:
        kept = os.dup(2)
    except OSError:  # there is no stderr
        yield lines
        return
    with os.fdopen(kept, "wb"), tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(kept, 2)
            file.seek(0)
            lines += file.read().decode("utf-8", "replace").splitlines()
