"""One process at a time: a lock that the system drops when its holder dies."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from streamsink.errors import StreamsinkError

if sys.platform == "win32":
    import msvcrt

    def _claim(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _claim(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def exclusive(path: Path, busy: StreamsinkError) -> Iterator[None]:
    """Hold the lock file ``path`` for the length of a ``with`` block.

    Raises
    ------
    StreamsinkError
        Another process holds it: ``busy`` is raised.
    OSError
        The file system has no locks, or the file cannot be written.
    """
    file = _acquire(path, busy)
    try:
        yield
    finally:
        if os.name == "posix":
            path.unlink(missing_ok=True)  # before the lock goes: nobody else can hold this file
            file.close()
        else:
            file.close()
            with contextlib.suppress(OSError):  # somebody else has it open by now
                path.unlink(missing_ok=True)


def _acquire(path: Path, busy: StreamsinkError) -> BinaryIO:
    while True:
        file = path.open("ab")
        try:
            _claim(file.fileno())
            if _is_still(file, path):
                return file
        except OSError as error:
            file.close()
            if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                raise busy from None
            raise
        file.close()  # its last holder removed it between our open and our claim: try again


def _is_still(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
