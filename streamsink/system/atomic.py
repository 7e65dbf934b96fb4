"""Files that appear whole or not at all: a kill, a power cut or a full disk leaves the old one."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from streamsink.system.lock import claim
from streamsink.system.regular import require_replaceable

DRAFT = ".draft"
"""How the name of an unfinished file ends; those of a process that was killed stay."""


def publish(part: Path, target: Path) -> None:
    """Give a finished file its name, such that a power cut leaves the old state or the new one."""
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    require_replaceable(target)
    part.replace(target)
    _sync_folder(target.parent)


@contextlib.contextmanager
def replacing(path: Path, mode: int = 0o644) -> Iterator[BinaryIO]:
    """Replace a file by what is written in the ``with`` block; a link is followed.

    Parameters
    ----------
    path : Path
        The file; its folder is made if it is not there.
    mode : int
        Permissions, from the first byte on; a file that is there keeps stricter ones.

    Raises
    ------
    OSError
        The file cannot be written, or something else than a file is there; it is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    target = Path(os.path.realpath(path))
    require_replaceable(target)
    # Made by mkstemp for nobody but the owner.
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=DRAFT)
    draft = Path(name)
    try:
        with open(descriptor, "wb") as file, _alive(descriptor):
            yield file
            file.close()
            kept = target.stat().st_mode & 0o777 if target.exists() else mode
            draft.chmod(kept if mode == 0o644 else kept & mode)
            publish(draft, target)
    finally:
        draft.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace a text file, whole or not at all; a link is followed, permissions are kept."""
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


def clear_away(target: Path) -> None:
    """Remove the drafts of a file whose writers were killed; one under way is left alone."""
    for draft in target.parent.glob(f".{_literal(target.name)}.????????{DRAFT}"):
        with contextlib.suppress(OSError):
            if os.name == "posix":
                with draft.open("rb") as file:
                    claim(file.fileno())
                    draft.unlink()
            else:
                draft.unlink()  # refused there while it is open


@contextlib.contextmanager
def _alive(descriptor: int) -> Iterator[None]:
    """Hold a lock on a draft for as long as somebody is at it, beyond the closing of its file."""
    if os.name != "posix":
        yield  # elsewhere an open file cannot be removed, nor renamed
        return
    other = os.dup(descriptor)
    try:
        with contextlib.suppress(OSError):  # some file systems have no locks
            claim(other)
        yield
    finally:
        os.close(other)


def _literal(name: str) -> str:
    """A name as a pattern of itself alone."""
    return re.sub(r"([*?[])", r"[\1]", name)


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
