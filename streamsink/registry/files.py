"""Where a model's file is, and whether it is here."""

from __future__ import annotations

import os
import re
from pathlib import Path

from streamsink.errors import UsageError
from streamsink.registry.catalog import DEFAULT_MODEL, find, load_registry
from streamsink.registry.entries import Entry
from streamsink.registry.sources import HfSource, PathSource, UrlSource
from streamsink.system.folders import data_dir

Asked = str | os.PathLike[str] | None
"""What a user may name a model by: a name, a path, or nothing for the default model."""


def models_dir() -> Path:
    """Return the folder of pulled models."""
    return data_dir() / "models"


def location(entry: Entry) -> Path:
    """Return where an entry's file is, or will be once pulled."""
    if isinstance(entry.source, PathSource):
        return entry.source.path
    return models_dir() / entry.name / entry.filename


def part_of(entry: Entry) -> Path:
    """Return where an entry's bytes are gathered until they are whole."""
    target = location(entry)
    return target.with_name(f"{target.name}.part")


def kept_bytes(entry: Entry) -> int:
    """Return how much an interrupted pull has left for the next one to go on from."""
    resumable, part = isinstance(entry.source, (HfSource, UrlSource)), part_of(entry)
    return os.path.getsize(part) if resumable and os.path.isfile(part) else 0


def is_here(entry: Entry) -> bool:
    """Return whether an entry's file is here, and of the stated size."""
    path = location(entry)
    return os.path.isfile(path) and entry.size in (None, path.stat().st_size)


def entry_for(name_or_path: Asked) -> Entry | None:
    """Return the entry behind what a user typed; None where it is a path or unknown.

    Raises
    ------
    UsageError
        A registry file cannot be read, or its entry of this name is faulty.
    """
    asked = os.fspath(name_or_path or "") or DEFAULT_MODEL
    return None if _looks_like_a_path(asked) else load_registry().get(asked)


def resolve(name_or_path: Asked) -> Path:
    """Return the file behind a registry name or a path.

    A name wins over a file of the same name in the current folder; ``./name`` means the file.

    Parameters
    ----------
    name_or_path : str, PathLike or None
        What the user typed; None or empty means ``DEFAULT_MODEL``.

    Raises
    ------
    UsageError
        The name is unknown, its file is not here, or the path is no file.
    """
    asked = os.fspath(name_or_path or "") or DEFAULT_MODEL
    # No model's name looks like a path, so a path works even where a registry cannot be read.
    is_path = _looks_like_a_path(asked)
    if not is_path and asked in (entries := load_registry()):
        return file_of(entries[asked])
    # Not by Path, which raises where a name is too long, a folder is closed, or there is no ~user.
    path = os.path.expanduser(asked)
    if os.path.isfile(path):
        return Path(path)
    if os.path.isdir(path):
        raise UsageError(f"{asked} is a folder: name the .gguf file in it")
    if is_path:
        hint = ""
        if re.fullmatch(r"[\w.-]+/[\w.-]+", asked):
            hint = "; a file on the Hugging Face Hub gets a name by `streamsink models add`"
        raise UsageError(f"no such file: {asked}{hint}")
    return file_of(find(entries, asked))


def file_of(entry: Entry) -> Path:
    """Return an entry's file.

    Raises
    ------
    UsageError
        It is not here; the message says what to do about it.
    """
    path = location(entry)
    if is_here(entry):
        return path
    if isinstance(entry.source, PathSource):
        raise UsageError(f"{entry.name} is the file {path}, which {_fault(entry, path)}")
    if os.path.exists(path):
        raise UsageError(
            f"{path} {_fault(entry, path)}: `streamsink models pull {entry.name}` replaces it"
        )
    raise UsageError(f"{entry.name} is not here yet: `streamsink models pull {entry.name}`")


def _fault(entry: Entry, path: Path) -> str:
    if not os.path.isfile(path):
        return "is not a file" if os.path.exists(path) else "is not there"
    return f"has {path.stat().st_size:,} bytes, not the {entry.size:,} of the registry"


def _looks_like_a_path(asked: str) -> bool:
    separators = {"/", os.sep, os.altsep or os.sep}
    return asked.lower().endswith(".gguf") or any(mark in asked for mark in separators)
