"""Text that goes where somebody says: a file, a pipe, a device, an open descriptor."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import TextIO

from streamsink.system.atomic import write_text

_DESCRIPTOR = re.compile(r"/dev/fd/(\d+)|/proc/(?:self|\d+)/fd/(\d+)")
_STANDARD = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}


def open_out(path: Path) -> TextIO:
    """Open what is to be written as it comes; a file is begun anew.

    What names an open descriptor is that: opened by its name, a file behind it would be cut off,
    and what others write to it lost.

    Raises
    ------
    OSError
        It cannot be written.
    """
    descriptor = _descriptor(path)
    if descriptor is not None:
        return os.fdopen(os.dup(descriptor), "w", encoding="utf-8")
    if is_file(path):
        return path.open("w", encoding="utf-8")
    return os.fdopen(os.open(path, os.O_WRONLY), "w", encoding="utf-8")


def write_whole(path: Path, text: str) -> None:
    """Write a text: a file whole or not at all, anything else as it is.

    Raises
    ------
    OSError
        It cannot be written.
    """
    if _descriptor(path) is None and is_file(path):
        write_text(path, text)
        return
    with open_out(path) as out:
        out.write(text)


def is_file(path: Path) -> bool:
    """Whether a path is a regular file's, or will be; a folder is let be told as one later."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return True
    return not (stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISSOCK(mode))


def _descriptor(path: Path) -> int | None:
    """The descriptor that a path names, if it names one of this process."""
    name = os.path.abspath(path)
    if name in _STANDARD:
        return _STANDARD[name]
    if found := _DESCRIPTOR.fullmatch(name):
        return int(found[1] or found[2])
    return None
