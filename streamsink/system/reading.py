"""Text from outside: files, standard input, the command line. All of it is read here.

Text is UTF-8 without NUL. A byte order mark at its beginning is none of it. What is no text is
refused by its place where a file was named, for then it can be mended; a conversation that comes
through a pipe goes on, with U+FFFD for what cannot be read.
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
"""Characters after which a piece ends where no line does."""
LONGEST_FILE = 2**24
"""Characters of a file that is read whole: a system prompt, a grammar, a template."""
LONGEST_TURN = 2**24
"""Bytes of one turn through a pipe."""

BOM = "\ufeff"
REPLACEMENT = "\ufffd"
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_NO_TEXT = re.compile("[\0\ud800-\udfff]")
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "0": "\0", "\\": "\\"}


# -- files ----------------------------------------------------------------------------------------


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
        What is done about bytes that are no text.

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
    r"""The whole text of a file that an option names, its lines ended by ``\n`` alone.

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
            data = _read(source.read, where)
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


# -- turns ----------------------------------------------------------------------------------------


def separator_of(text: str) -> str:
    r"""What an option means by a separator of turns, in which ``\n``, ``\t``, ``\0`` are escapes.

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
    r"""Turns of a conversation as they come from standard input, without the line ends around them.

    Parameters
    ----------
    separator : str
        What stands between two of them. ``\r\n`` in it and in them counts as ``\n``.
    tell : callable
        Told once if not all of them is text.

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
    """What lies between separators, each as soon as it is there."""
    source = stdin("standard input")
    held, waits = b"", b""
    while data := _read(source.read1, "standard input"):  # type: ignore[attr-defined]
        data = waits + data
        waits = data[-1:] if data.endswith(b"\r") else b""
        # A separator may begin in what was searched already.
        *ready, held = _cut(held, data[: len(data) - len(waits)].replace(b"\r\n", b"\n"), separator)
        yield from ready
        if len(held) > LONGEST_TURN:
            raise UsageError(f"a turn of standard input has no end within {LONGEST_TURN:,} bytes")
    if held + waits:
        yield held + waits


def _cut(held: bytes, more: bytes, separator: bytes) -> list[bytes]:
    first = max(0, len(held) - len(separator) + 1)
    ready, *rest = (held[first:] + more).split(separator)
    return [held[:first] + ready, *rest]


# -- the command line, and what stands behind a stream --------------------------------------------


def given(text: str, option: str) -> str:
    """The text that was given on the command line.

    Raises
    ------
    UsageError
        It was no UTF-8; Python hands such bytes on as lone surrogates (PEP 383).
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
    """A text from the keyboard, U+FFFD for what is none of it; see `given`."""
    return _NO_TEXT.sub(REPLACEMENT, text)


def stdin(where: str) -> BinaryIO:
    """Standard input as bytes.

    Raises
    ------
    UsageError
        It was closed.
    """
    if sys.stdin is None or sys.stdin.closed:
        raise UsageError(f"{where} cannot be read: standard input is closed")
    return sys.stdin.buffer


def _read(read: Callable[[int], bytes], where: str) -> bytes:
    try:
        return read(READ_BYTES)
    except OSError as error:
        raise UsageError(f"{where} cannot be read: {error.strerror or error}") from None
