"""Room on the disk, and how much of it a file may take whose size nobody knows."""

from __future__ import annotations

import shutil
from pathlib import Path

from streamsink.errors import FetchError

MOST_UNKNOWN = 2**36
"""Bytes of a file whose size neither the registry nor the server says."""
SPARE = 2**28
"""Bytes of the disk that such a file leaves free."""
STEP = 2**24
"""Bytes after which its room is looked at again."""


def require_room(folder: Path, needed: int) -> None:
    """Refuse to begin what the disk cannot hold.

    Raises
    ------
    FetchError
        ``folder``'s disk has less than ``needed`` bytes free.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise FetchError(
            f"{folder} needs {needed / 1e6:,.1f} MB more but its disk has {free / 1e6:,.1f} MB "
            "free; make room, or set STREAMSINK_HOME to a folder on another disk"
        )


class Growth:
    """Watches a file that comes in blocks: it may be as long as was said, and no disk is filled.

    Parameters
    ----------
    folder : Path
        Where it lies.
    what : str
        Where it comes from, for messages.
    size : int or None
        How long it is, where somebody says.
    """

    def __init__(self, folder: Path, what: str, size: int | None) -> None:
        self._folder = folder
        self._what = what
        self._size = size
        self._looked = 0

    def check(self, done: int) -> None:
        """Refuse a file that has grown to ``done`` bytes.

        Raises
        ------
        FetchError
            That is more than was said, or than a file may have of which nothing is said.
        """
        if self._size is not None:
            if done > self._size:
                raise FetchError(f"{self._what} has more than the {self._size:,} bytes it should")
            return
        if done > MOST_UNKNOWN:
            raise FetchError(
                f"{self._what} has no end within {MOST_UNKNOWN:,} bytes; if it is so long, state "
                "its size with `streamsink models add --force --size BYTES`"
            )
        if done >= self._looked:
            self._looked = done + STEP
            require_room(self._folder, SPARE)
