"""What every way of fetching shares: how it tells its progress, what it hands over, how much room.

A file's size may be known to the registry or to the server, or to nobody; then it may grow until
the disk is nearly full, and no further.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from streamsink.errors import FetchError
from streamsink.system.sizes import file_size

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are here and, where known, the bytes that there will be."""

CHUNK = 2**20
"""Bytes that are read at once."""
MOST_UNKNOWN = 2**36
"""Bytes of a file whose size neither the registry nor the server says."""
SPARE = 2**28
"""Bytes of the disk that such a file leaves free."""
STEP = 2**24
"""Bytes after which the disk's room is looked at again."""


@dataclass(frozen=True)
class Received:
    """A file that arrived and is not yet checked.

    Attributes
    ----------
    size : int
        Its bytes.
    sha256 : str
        Their checksum.
    announced : str or None
        The checksum that the server announced for the file, if it did.
    """

    size: int
    sha256: str
    announced: str | None = None


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
            f"{folder} needs {file_size(needed)} more but its disk has {file_size(free)} "
            "free; make room, or set STREAMSINK_HOME to a folder on another disk"
        )


class Growth:
    """Bounds a file that comes in blocks: by its stated size, else by the room on the disk.

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
        self._next_look = 0

    def check(self, done: int) -> None:
        """Refuse a file that has grown to ``done`` bytes.

        Raises
        ------
        FetchError
            That is more than its size, more than a file of unknown size may have, or more than the
            disk can spare.
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
        if done >= self._next_look:
            self._next_look = done + STEP
            require_room(self._folder, SPARE)
