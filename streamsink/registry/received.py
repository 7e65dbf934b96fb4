"""What the steps of a pull say to one another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are here and, where known, the bytes that there will be."""


@dataclass(frozen=True)
class Received:
    """A file that arrived, before anyone believes in it.

    Attributes
    ----------
    size : int
        Its bytes.
    sha256 : str
        Their checksum.
    announced : str or None
        The checksum that the server announced for the file, if it did.
    """

    size: int
    sha256: str
    announced: str | None = None
