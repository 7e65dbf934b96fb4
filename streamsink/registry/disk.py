"""Room on the disk."""

from __future__ import annotations

import shutil
from pathlib import Path

from streamsink.errors import FetchError


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
