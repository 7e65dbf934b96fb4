"""Files that appear whole or not at all: a kill, a power cut or a full disk leaves the old one."""

from __future__ import annotations

import contextlib
import glob
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from streamsink.system.lock import claim
from streamsink.system.regular import require_replaceable

DRAFT = ".draft"
"""How the name of an unfinished file ends. One whose writer was killed stays behind."""


def publish(part: Path, target: Path) -> None:
    """Give a finished file its name; a power cut leaves either the old file or the new one."""
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    require_replaceable(target)
    part.replace(target)
    _sync_folder(target.parent)


@contextlib.contextmanager
def replacing(path: Path, mode: int = 0o777) -> Iterator[BinaryIO]:
    """Replace a file by what is written in the ``with`` block; a link is followed.

    Parameters
    ----------
    path : Path
        The file; its folder is made if it is not there.
    mode : int
        The most permissions that it may have. Within them a file that is replaced keeps its own,
        and a new one has ``0o644``. Until it is finished only its owner can read it.

    Raises
    ------
    OSError
        The file cannot be written, or what is there is no regular file; it stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    target = Path(os.path.realpath(path))
    require_replaceable(target)
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=DRAFT)
    draft = Path(name)
    try:
        with open(descriptor, "wb") as file, _alive(descriptor):
            yield file
            file.close()
            found = target.stat().st_mode if target.exists() else 0o644
            draft.chmod(found & mode)
            publish(draft, target)
    finally:
        draft.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace a text file, whole or not at all; a link is followed, permissions are kept."""
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


def clear_away(target: Path) -> None:
    """Remove the drafts of a file whose writers were killed, and none that is being written."""
    for draft in target.parent.glob(f".{glob.escape(target.name)}.????????{DRAFT}"):
        with contextlib.suppress(OSError):
            if os.name == "posix":
                with draft.open("rb") as file:
                    claim(file.fileno())
                    draft.unlink()
            else:
                draft.unlink()  # Windows refuses while it is open


@contextlib.contextmanager
def _alive(descriptor: int) -> Iterator[None]:
    """Hold a lock on a draft while it is being written, as a sign of life to `clear_away`.

    On a copy of the descriptor, for the draft is closed before it gets its name.
    """
    if os.name != "posix":
        yield  # Windows removes no open file
        return
    other = os.dup(descriptor)
    try:
        with contextlib.suppress(OSError):  # some file systems have no locks
            claim(other)
        yield
    finally:
        os.close(other)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return  # Windows opens no folder, and needs no sync of one
    # Some network and FUSE file systems refuse this; the rename itself is done.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
