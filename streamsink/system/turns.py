"""Turns of a conversation through a pipe, each as soon as it is whole."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterator

from streamsink.errors import UsageError
from streamsink.system.reading import REPLACEMENT, given, read_block, stdin

LONGEST_TURN = 2**24
"""Bytes of one turn."""

_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "0": "\0", "\\": "\\"}


def separator_of(text: str) -> str:
    r"""Return the separator of turns that an option means; ``\n``, ``\t``, ``\0`` are escapes.

    Raises
    ------
    UsageError
        It is empty, or has another escape.
    """

    def escape(found: re.Match[str]) -> str:
        try:
            return _ESCAPES[found[1]]
        except KeyError:
            raise UsageError(
                f"--turns-separated-by {text} has {found[0]}: \\n, \\r, \\t, \\0 and \\\\ are known"
            ) from None

    separator = re.sub(r"\\(.?)", escape, given(text, "--turns-separated-by"), flags=re.S)
    if not separator:
        raise UsageError("--turns-separated-by takes a text that stands between two turns")
    return separator


def turns(separator: str, tell: Callable[[str], object]) -> Iterator[str]:
    r"""Read turns of a conversation from standard input, without the line ends around them.

    Bytes that are no UTF-8 text become U+FFFD, so that the conversation goes on.

    Parameters
    ----------
    separator : str
        What stands between two of them. ``\r\n`` in it and in them counts as ``\n``.
    tell : callable
        Told once, at the first turn that is not all text.

    Raises
    ------
    UsageError
        Standard input cannot be read, or a turn has no end.
    """
    told = False
    for number, data in enumerate(_split(separator.replace("\r\n", "\n").encode()), 1):
        if number == 1:
            data = data.removeprefix(codecs.BOM_UTF8)
        text = data.decode("utf-8", "replace").replace("\0", REPLACEMENT)
        if not told and text.encode() != data:
            told = True
            tell(
                f"turn {number} of standard input is not all UTF-8 text: {REPLACEMENT} stands for "
                "what cannot be read, there and later"
            )
        yield text.strip("\r\n")


def _split(separator: bytes) -> Iterator[bytes]:
    r"""Split standard input at separators, after ``\r\n`` has become ``\n``."""
    source = stdin("standard input")
    held, waits = b"", b""  # the unfinished turn, and a "\r" that may be half of a line end
    while data := read_block(source.read1, "standard input"):  # type: ignore[attr-defined]
        data = waits + data
        waits = data[-1:] if data.endswith(b"\r") else b""
        *ready, held = _cut(held, data[: len(data) - len(waits)].replace(b"\r\n", b"\n"), separator)
        yield from ready
        if len(held) > LONGEST_TURN:
            raise UsageError(f"a turn of standard input has no end within {LONGEST_TURN:,} bytes")
    if held + waits:
        yield held + waits


def _cut(held: bytes, more: bytes, separator: bytes) -> list[bytes]:
    """Split ``held + more``, searching of ``held`` only the end, where a separator may begin."""
    first = max(0, len(held) - len(separator) + 1)
    ready, *rest = (held[first:] + more).split(separator)
    return [held[:first] + ready, *rest]
