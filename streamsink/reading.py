"""Text of any length, read in pieces: files, standard input."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal, TypeAlias

from streamsink.errors import UsageError

OnError: TypeAlias = Literal["strict", "replace"]

READ_BYTES = 2**16
LONGEST_LINE = 2**20
"""Characters after which a piece ends where no line does."""


def read_text(names: Iterable[str], option: str, errors: OnError = "strict") -> Iterator[str]:
    """Open files, and read them one after another in pieces that end at line ends.

    So words stay whole, whoever tokenizes the pieces.

    Parameters
    ----------
    names : iterable of str
        Files; ``-`` is standard input.
    option : str
        Name of the option that gave them, for messages.
    errors : {"strict", "replace"}
        What is done about bytes that are not UTF-8.

    Raises
    ------
    UsageError
        A file cannot be read, or is not UTF-8 text.
    """
    sources = [(f"--{option} {name}", _open(name, option)) for name in names]
    return (piece for where, file in sources for piece in _pieces(file, where, errors))


def _open(name: str, option: str) -> BinaryIO:
    if name == "-":
        return sys.stdin.buffer
    try:
        return Path(name).open("rb")
    except OSError as error:
        raise UsageError(f"--{option} {name} cannot be read: {error.strerror}") from None


def _pieces(source: BinaryIO, where: str, errors: OnError) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")(errors)
    held, at = "", 0
    with source:
        while True:
            try:
                data = source.read(READ_BYTES)
                begin = at - len(decoder.getstate()[0])
                held += decoder.decode(data, not data)
            except UnicodeDecodeError as error:
                raise UsageError(
                    f"{where} is not UTF-8 text: {error.reason} near byte {begin + error.start}"
                ) from None
            except OSError as error:
                raise UsageError(f"{where} cannot be read: {error.strerror}") from None
            if not data:
                break
            at += len(data)
            ready, line_end, rest = held.rpartition("\n")
            if line_end:
                held = rest
                yield ready + line_end
            elif len(held) > LONGEST_LINE:
                yield held
                held = ""
    if held:
        yield held
