"""Text from outside: files, standard input, the command line.

Text is UTF-8 without NUL; a byte order mark at its beginning does not belong to it. What is no text
in a named file is refused with its place, so that it can be mended. What is no text from a keyboard
or a pipe becomes U+FFFD, so that the conversation goes on.
"""

from __future__ import annotations

import codecs
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal, TypeAlias

from streamsink.errors import UsageError

OnError: TypeAlias = Literal["strict", "replace"]

READ_BYTES = 2**16
LONGEST_LINE = 2**20
"""Characters after which a piece ends without a line end."""
LONGEST_FILE = 2**24
"""Characters of a file that is read whole: a system prompt, a grammar, a template."""

BOM = "\ufeff"
REPLACEMENT = "\ufffd"
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_NO_TEXT = re.compile("[\0\ud800-\udfff]")


def read_text(names: Iterable[str], option: str, errors: OnError = "strict") -> Iterator[str]:
    """Open files, and read them one after another in pieces that end at line ends.

    No word is split between two pieces, each of which is tokenized alone.

    Parameters
    ----------
    names : iterable of str
        Files; ``-`` is standard input.
    option : str
        Name of the option that gave them, for messages.
    errors : {"strict", "replace"}
        Whether bytes that are no text are refused or become U+FFFD.

    Raises
    ------
    UsageError
        A file cannot be read, or is no text.
    """
    sources = [
        (f"--{option} {name}", stdin(f"--{option} -") if name == "-" else _open(name, option))
        for name in names
    ]
    return (piece for where, file in sources for piece in _pieces(file, where, errors))


def read_whole(path: Path, option: str) -> str:
    r"""Return the whole text of a file that an option names, its line ends as ``\n``.

    Raises
    ------
    UsageError
        It cannot be read, is no text, or is too long for what it is for.
    """
    where = f"--{option} {path}"
    gathered, n = [], 0
    for piece in _pieces(_open(str(path), option), where, "strict"):
        gathered.append(piece)
        n += len(piece)
        if n > LONGEST_FILE:
            raise UsageError(f"{where} is too long: {LONGEST_FILE:,} characters at most")
    return "".join(gathered).replace("\r\n", "\n")


def _open(name: str, option: str) -> BinaryIO:
    try:
        return Path(name).open("rb")
    except OSError as error:
        raise UsageError(f"--{option} {name} cannot be read: {error.strerror}") from None


def _pieces(source: BinaryIO, where: str, errors: OnError) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")(errors)
    held, at = "", 0
    with source:
        while True:
            data = read_block(source.read, where)
            begin = at - len(decoder.getstate()[0])
            at += len(data)
            if not begin and data.startswith(codecs.BOM_UTF8):
                begin = len(codecs.BOM_UTF8)
                text = _decoded(decoder, data[begin:], begin, where)
            else:
                text = _decoded(decoder, data, begin, where)
            if "\0" in text:
                if errors == "strict":
                    begin += len(text.partition("\0")[0].encode())
                    raise UsageError(f"{where} is not text: a NUL at byte {begin}")
                text = text.replace("\0", REPLACEMENT)
            held += text
            if not data:
                break
            ready, line_end, rest = held.rpartition("\n")
            if line_end:
                held = rest
                yield ready + line_end
            elif len(held) > LONGEST_LINE:
                yield held
                held = ""
    if held:
        yield held


def _decoded(decoder: codecs.IncrementalDecoder, data: bytes, begin: int, where: str) -> str:
    try:
        return decoder.decode(data, not data)
    except UnicodeDecodeError as error:
        if begin == 0 and error.object.startswith(_UTF_16):
            raise UsageError(
                f"{where} is not UTF-8 text but UTF-16: convert it, iconv -f UTF-16 -t UTF-8"
            ) from None
        byte = error.object[error.start]
        raise UsageError(
            f"{where} is not UTF-8 text: {error.reason} near byte {begin + error.start} "
            f"(0x{byte:02x})"
        ) from None


def given(text: str, option: str) -> str:
    """Return a text from the command line without its byte order mark.

    Raises
    ------
    UsageError
        It was no UTF-8. Python passes such bytes on as lone surrogates (PEP 383).
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        byte = ord(text[error.start]) & 0xFF
        raise UsageError(
            f"{option} is not UTF-8 text: byte 0x{byte:02x} after {error.start} characters"
        ) from None
    return text.removeprefix(BOM)


def typed(text: str) -> str:
    """Return a text from the keyboard, with U+FFFD for NULs and for bytes that are no UTF-8."""
    return _NO_TEXT.sub(REPLACEMENT, text)


def stdin(where: str) -> BinaryIO:
    """Return standard input as bytes.

    Raises
    ------
    UsageError
        It was closed.
    """
    if sys.stdin is None or sys.stdin.closed:
        raise UsageError(f"{where} cannot be read: standard input is closed")
    return sys.stdin.buffer


def read_block(read: Callable[[int], bytes], where: str) -> bytes:
    """Return the next bytes of a file or of standard input; empty at the end.

    Raises
    ------
    UsageError
        They cannot be read.
    """
    try:
        return read(READ_BYTES)
    except OSError as error:
        raise UsageError(f"{where} cannot be read: {error.strerror or error}") from None
