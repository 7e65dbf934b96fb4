"""The disk: room for a file, and files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
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


def publish(part: Path, target: Path) -> None:
    """Give a finished file its name, such that a power cut leaves the old state or the new one."""
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    part.replace(target)
    _sync_folder(target.parent)


def write_text(path: Path, text: str) -> None:
    """Replace a text file, whole or not at all; a link is followed, permissions are kept."""
    path.parent.mkdir(parents=True, exist_ok=True)
    target = path.resolve()
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    draft = Path(name)
    try:
        with open(descriptor, "w", encoding="utf-8", newline="") as file:
            file.write(text)
        draft.chmod(target.stat().st_mode & 0o777 if target.exists() else 0o644)
        publish(draft, target)
    finally:
        draft.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return  # elsewhere a folder cannot be opened, and needs no sync
    # Some network and FUSE file systems refuse this; the rename itself is done.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
