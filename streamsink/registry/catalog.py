"""Which models have a name: the user's own registry, laid over streamsink's."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path

from streamsink.errors import UsageError
from streamsink.registry.entries import Entry
from streamsink.registry.tables import Table, merge, parse_entry, read_tables
from streamsink.system.folders import config_dir

DEFAULT_MODEL = "smollm2-135m"
"""The model that is used where none is named."""

PACKAGE = Path(__file__).resolve().parents[1]


class Registry(Mapping[str, Entry]):
    """All entries by name.

    A faulty entry does no harm to the others. It is left out when the names are listed, and its
    fault is raised when it is asked for by its name.

    Parameters
    ----------
    entries : Mapping[str, Entry]
        The sound ones.
    faults : Mapping[str, UsageError]
        What is wrong with the others.
    """

    def __init__(self, entries: Mapping[str, Entry], faults: Mapping[str, UsageError]) -> None:
        self._entries = entries
        self.faults = faults

    def __getitem__(self, name: str) -> Entry:
        if name in self.faults:
            # A new error each time: raising the kept one would add a traceback to it.
            raise UsageError(str(self.faults[name]))
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries or name in self.faults


def load_registry() -> Registry:
    """Return all entries, the user's own laid over the built-in ones.

    Raises
    ------
    UsageError
        A registry file cannot be read, or is not TOML; with file and line.
    """
    tables = merge(read_file(builtin_registry()), read_file(user_registry(), own=True))
    entries: dict[str, Entry] = {}
    faults: dict[str, UsageError] = {}
    for name, table in tables.items():
        try:
            entries[name] = parse_entry(table)
        except UsageError as error:
            faults[name] = error
    return Registry(entries, faults)


def entry_named(name: str) -> Entry:
    """Return the entry called ``name``; the empty name means the default model.

    Raises
    ------
    UsageError
        There is none; the message names those that come near.
    """
    return find(load_registry(), name or DEFAULT_MODEL)


def find(entries: Mapping[str, Entry], name: str) -> Entry:
    """Return the entry called ``name``.

    Raises
    ------
    UsageError
        There is none; the message names those that come near.
    """
    if name in entries:
        return entries[name]
    near = near_names(entries, name)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise UsageError(
        f"no model called {name!r}: {hint}`streamsink models` lists the names, "
        "and a path to a .gguf file will do too"
    )


def near_names(entries: Mapping[str, Entry], name: str) -> list[str]:
    """Return up to three names like ``name``, best first."""
    asked = name.lower()
    alike = difflib.get_close_matches(asked, entries, n=3, cutoff=0.6)
    containing = [known for known in entries if asked and asked in known and known not in alike]
    return [*alike, *containing][:3]


def user_registry() -> Path:
    """Return the user's own ``models.toml``, which need not exist."""
    return config_dir() / "models.toml"


def builtin_registry() -> Path:
    """Return the ``models.toml`` that came with streamsink.

    A wheel carries it inside the package; a checkout has it at the top, beside the package.
    """
    inside = PACKAGE / "models.toml"
    return inside if inside.is_file() else PACKAGE.parent / "models.toml"


def read_file(path: Path, *, own: bool = False) -> dict[str, Table]:
    """Return the tables of one registry file; none if the user has no own file.

    Raises
    ------
    UsageError
        It cannot be read, or is not TOML.
    """
    text = read_text(path)
    if text is None and not own:
        raise UsageError(f"{path} is missing: install streamsink again")
    return read_tables(text or "", str(path), own=own)


def read_text(path: Path) -> str | None:
    """Return the text of a registry file, its line ends as they are; None if there is no file.

    Raises
    ------
    UsageError
        It cannot be read, or is not text.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the registry {path}: {error}") from None
