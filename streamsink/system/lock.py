"""One process at a time: a lock that the system drops when its holder dies.

The lock is on a file of its own beside what it stands for, since that one is replaced at every
save. It belongs to an open file, so it also keeps out the other threads of this process. Its file
is removed at the end; ``filelock`` leaves it behind (docs/libraries.md).
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from pathlib import Path
from typing import BinaryIO

from streamsink.errors import StreamsinkError
from streamsink.system.closing import Closing

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


class Lock(Closing):
    """A lock file that is held from the beginning until `close`.

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
        """Return whether the file at ``path`` is the one that is held."""
        return not self._file.closed and _is_still(self._file, path)

    def close(self) -> None:
        """Let others have it. Twice is fine."""
        if os.name == "posix":
            with contextlib.suppress(OSError):
                if self.is_at(self.path):
                    self.path.unlink()  # while it is held: afterwards it may be another's
            self._file.close()
        else:
            self._file.close()
            with contextlib.suppress(OSError):  # another process has opened it by now
                self.path.unlink(missing_ok=True)


def _acquire(path: Path, busy: StreamsinkError) -> BinaryIO:
    # Its last holder may remove the file after our open and before our claim: then try again.
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
        file.close()


def _is_still(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False
