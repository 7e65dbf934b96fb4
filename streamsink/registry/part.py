"""A file that is here in part, and the note beside it that says of what.

With the note the next pull can prove that it goes on with the same file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from streamsink.registry.headers import is_validator


@dataclass(frozen=True)
class Note:
    """What a part is a part of.

    Attributes
    ----------
    url : str
        The file's address.
    validator : str or None
        What names its version there, fit for ``If-Range``.
    """

    url: str
    validator: str | None


def length(part: Path) -> int:
    """Return how many bytes are here."""
    try:
        return part.stat().st_size
    except FileNotFoundError:
        return 0


def read_note(part: Path) -> Note | None:
    """Return the note about a part; None if there is none, or somebody has spoilt it."""
    try:
        note = msgspec.json.decode(_note_of(part).read_bytes(), type=Note)
    except (FileNotFoundError, msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return note if is_validator(note.validator) else None


def write_note(part: Path, note: Note) -> None:
    """Write down what a part is a part of."""
    _note_of(part).write_bytes(msgspec.json.encode(note))


def forget_note(part: Path) -> None:
    """Remove the note about a part that has become a file."""
    _note_of(part).unlink(missing_ok=True)


def discard(part: Path) -> None:
    """Remove a part and the note about it."""
    part.unlink(missing_ok=True)
    forget_note(part)


def _note_of(part: Path) -> Path:
    return part.with_name(part.name + ".json")
