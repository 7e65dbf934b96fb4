"""What is known of one model that has a name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from streamsink.registry.sources import Source

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


def is_gguf_name(name: str) -> bool:
    """Return whether ``name`` is that of a .gguf file, and safe on every file system."""
    return _FILENAME.fullmatch(name) is not None
