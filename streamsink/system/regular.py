"""Regular files: what may be read to its end, and replaced.

A name can also stand for a pipe, whose opening waits for a writer, for a device without an end, for
a folder or for a socket. What it stands for can change at any time, so the kind that counts is that
of the file that was opened.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO, NamedTuple

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
# Opens a pipe at once, without waiting for a writer; Windows has no such flag.
_AT_ONCE = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file to be read.

    Raises
    ------
    OSError
        There is none, it cannot be read, or it is something else.
    """
    require_regular(path, os.stat(path))
    descriptor = os.open(path, os.O_RDONLY | _AT_ONCE)
    try:
        require_regular(path, os.fstat(descriptor))
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def require_replaceable(path: Path) -> None:
    """Refuse to replace what is no regular file; nothing at all may be there.

    Raises
    ------
    OSError
        Something else is there.
    """
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return
    require_regular(path, found)


def require_regular(path: Path, found: os.stat_result) -> None:
    """Refuse what is no regular file.

    Raises
    ------
    OSError
        It says what there is instead.
    """
    kind = stat.S_IFMT(found.st_mode)
    if kind != stat.S_IFREG:
        number = errno.EISDIR if kind == stat.S_IFDIR else errno.EINVAL
        raise OSError(number, f"it is {_KINDS.get(kind, 'something else')}, not a file", str(path))


class Stamp(NamedTuple):
    """What tells a file from another that takes its name, in the system's terms."""

    device: int
    inode: int
    n_bytes: int
    changed: int

    @classmethod
    def of(cls, found: os.stat_result) -> Stamp:
        """The stamp of a file by what the system says of it."""
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
