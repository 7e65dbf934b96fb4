"""One process at a time: a lock that the system drops when its holder dies.

The lock is on a file of its own beside what it stands for, since that one is replaced at every
save. It belongs to an open file, so it also keeps out other threads, and other opens, of the same
process. Its file is removed at the end, which packages for locks leave to their callers.
"""

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

    def claim(descriptor: int) -> None:
        """Lock an open file, or raise `OSError`."""
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def claim(descriptor: int) -> None:
        """Lock an open file, or raise `OSError`."""
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


class Lock:
    """A lock file that is held from the beginning, until `release`.

    Parameters
    ----------
    path : Path
        The file; its folder is there.
    busy : StreamsinkError
        Raised where another holds it.

    Raises
    ------
    StreamsinkError
        ``busy``.
    OSError
        The file system has no locks, or the file cannot be written.
    """

    def __init__(self, path: Path, busy: StreamsinkError) -> None:
        self.path = path
        self._file = _acquire(path, busy)

    def is_at(self, path: Path) -> bool:
        """Whether the lock file of this name is the one that is held."""
        return not self._file.closed and _is_still(self._file, path)

    def release(self) -> None:
        """Let go. Twice is fine."""
        if os.name == "posix":
            with contextlib.suppress(OSError):
                if self.is_at(self.path):
                    self.path.unlink()  # before the lock goes: nobody else can hold this file
            self._file.close()
        else:
            self._file.close()
            with contextlib.suppress(OSError):  # somebody else has it open by now
                self.path.unlink(missing_ok=True)


@contextlib.contextmanager
def exclusive(path: Path, busy: StreamsinkError) -> Iterator[None]:
    """Hold the lock file ``path`` for the length of a ``with`` block; see `Lock`."""
    lock = Lock(path, busy)
    try:
        yield
    finally:
        lock.release()


def _acquire(path: Path, busy: StreamsinkError) -> BinaryIO:
    while True:
        file = path.open("ab")
        try:
            claim(file.fileno())
            if _is_still(file, path):
                return file
        except OSError as error:
            file.close()
            if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                raise busy from None
            raise
        except BaseException:
            file.close()
            raise
        file.close()  # its last holder removed it between our open and our claim: try again


def _is_still(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False
