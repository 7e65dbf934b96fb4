"""The registry's entries, and how a name is looked up among them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from streamsink.errors import UsageError
from streamsink.registry.sources import Source

DEFAULT_MODEL = "smollm2-135m"
"""The model that is used where none is named."""

_FILENAME = re.compile(r"""[^/\\:*?"<>|\x00-\x1f]+\.gguf""", re.IGNORECASE)


@dataclass(frozen=True)
class Entry:
    """One model that has a name.

    Attributes
    ----------
    name : str
        What the user types.
    source : Source
        Where the file comes from.
    size : int or None
        Its length in bytes, where known.
    sha256 : str or None
        Its checksum in lower-case hexadecimal, where known.
    parameters, licence, description : str
        For people; empty where not stated.
    n_ctx : int or None
        Default context in tokens.
    keep : int, "system" or None
        Default pinned prefix: tokens, -1 for the whole first prompt, or the system block.
    discard : int, "half", "turn", "sentence" or None
        Default eviction: tokens at once, half of the window, or whole turns or sentences.
    chat : bool or None
        Whether the model was trained to chat.
    own : bool
        Whether the user's registry states it, wholly or in part.
    """

    name: str
    source: Source
    size: int | None = None
    sha256: str | None = None
    parameters: str = ""
    licence: str = ""
    description: str = ""
    n_ctx: int | None = None
    keep: int | Literal["system"] | None = None
    discard: int | Literal["half", "turn", "sentence"] | None = None
    chat: bool | None = None
    own: bool = False

    @property
    def filename(self) -> str:
        """The name under which the file is stored; the source's own where it is a safe one."""
        own = self.source.filename
        return own if is_gguf_name(own) else f"{self.name}.gguf"


class Registry(Mapping[str, Entry]):
    """All entries by name.

    One that cannot be is not among them, and is no matter to the others: it is reported where it is
    asked for by its name.

    Parameters
    ----------
    entries : Mapping[str, Entry]
        Those that can be.
    faults : Mapping[str, UsageError]
        What is wrong with the others.
    """

    def __init__(self, entries: Mapping[str, Entry], faults: Mapping[str, UsageError]) -> None:
        self._entries = entries
        self.faults = faults

    def __getitem__(self, name: str) -> Entry:
        if name in self.faults:
            # Anew, so that no traceback is added to one that is kept.
            raise UsageError(str(self.faults[name]))
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries or name in self.faults


def is_gguf_name(name: str) -> bool:
    """Return whether ``name`` is that of a .gguf file, and safe on every file system."""
    return _FILENAME.fullmatch(name) is not None


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
