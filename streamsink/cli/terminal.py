"""All that the commands say goes out here, so that no foreign word steers a terminal.

A model's metadata, a template's complaint, a file's name, a server's reason, a session's turns and
what a model writes are words of strangers. An escape in them moves the cursor, renames the window
or writes over what stands there; a bidirectional control shows a name in another order than its
own; a tag character or a blank of no width hides text (Unicode Technical Report 36).
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TextIO

import typer
from rich.console import Console

from streamsink.cli.terms import in_options
from streamsink.errors import StreamsinkError, UsageError

if TYPE_CHECKING:
    from streamsink.cli.wrapping import Wrapper

LONGEST = 800
"""Letters of a message: with all of them two columns wide it still fits a screen of 80 by 24."""
ENDING = 300
"""How many of them are its end, where it says what to do."""

# Code points that order a terminal about, or are there and not seen (Unicode's
# Default_Ignorable_Code_Point). The joiners U+200C and U+200D spell Persian and hold emoji
# together, and U+FE00 to U+FE0F choose how an emoji is drawn: those stay.
_LEFT_OUT = (
    *(*range(0x20), *range(0x7F, 0xA0)),  # C0 and C1, DEL
    *(0xAD, 0x34F, 0x61C, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x180E, 0x3164, 0xFEFF, 0xFFA0),
    *(0x200B, *range(0x200E, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070)),
    *(*range(0xFFF0, 0xFFFC), *range(0x1BCA0, 0x1BCA4), *range(0x1D173, 0x1D17B)),
    *range(0xE0000, 0xE1000),  # tags, and selectors of variants
)
_HARMLESS: dict[int, str | None] = {
    **dict.fromkeys(_LEFT_OUT),
    **dict.fromkeys(range(0xD800, 0xE000), "\ufffd"),  # surrogates: bytes that are no text
    **dict.fromkeys((0x2028, 0x2029), "\n"),
    **{ord(letter): letter for letter in "\n\t"},
}
_RUNS = re.compile("[\ufe00-\ufe0f]{2,}|[\u200c\u200d]{2,}")
"""One joins, or chooses a form; a run of them is read by nobody and can carry hidden bytes."""
_BLANKS = re.compile(r"\s+")


class Write(Protocol):
    """Writes text, which may have line ends; ``dim`` is for what is past or aside."""

    def __call__(self, text: str, *, dim: bool = False) -> None:
        """Write it."""


# -- the filter -----------------------------------------------------------------------------------


def harmless(text: str) -> str:
    """A text of any length without what steers a terminal or is hidden; lines and tabs stay."""
    return _RUNS.sub(lambda found: found[0][0], text.translate(_HARMLESS))


def line(text: str, most: int | None = LONGEST) -> str:
    """A text on one line, harmless; the middle of one beyond ``most`` letters is left out."""
    # Blanks first: what ends lines on other systems is one, and not nothing.
    found = _blanks(harmless(_blanks(in_options(text)))).strip()
    if most is None or len(found) <= most:
        return found
    ending = min(ENDING, most // 3)
    beginning = most - ending
    left_out = len(found) - beginning - ending
    return f"{found[:beginning]} … ({left_out:,} letters left out) … {found[-ending:]}"


# -- what goes out --------------------------------------------------------------------------------


def out(text: str, *, dim: bool = False) -> None:
    """Write to standard output: harmless on a terminal, as it is into a pipe or a file."""
    shows = is_terminal()
    _write(sys.stdout, _dim(harmless(text), dim) if shows else text)


class Flow:
    """Text that comes in pieces: on a terminal words wrap at the edge, else it goes out as it is.

    Parameters
    ----------
    stderr : bool
        Whether it goes to standard error, as what concerns the program does beside a pipe.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        self._stderr = stderr
        self._wrapper: Wrapper | None = None
        if _is_terminal(self._stream) and os.environ.get("TERM") != "dumb":
            from streamsink.cli.wrapping import Wrapper

            self._wrapper = Wrapper(lambda: shutil.get_terminal_size().columns)

    def __call__(self, text: str, *, dim: bool = False) -> None:
        """Write a piece."""
        if self._wrapper is None:
            (err if self._stderr else out)(text, dim=dim)
        else:
            _write(self._stream, _dim(self._wrapper.push(harmless(text)), dim))

    def ends_line(self) -> None:
        """End the line, if one has begun."""
        if self._wrapper and self._wrapper.column:
            self("\n")

    @property
    def _stream(self) -> TextIO | None:
        return sys.stderr if self._stderr else sys.stdout


def err(text: str, *, dim: bool = False) -> None:
    """Write what concerns the program to standard error, harmless wherever it goes."""
    _write(sys.stderr, _dim(harmless(text), dim and _is_terminal(sys.stderr)))


def say(text: str = "") -> None:
    """Say a line on standard output; in a terminal it is no longer than a screen."""
    Flow()(line(text, LONGEST if is_terminal() else None) + "\n")


def note(text: str) -> None:
    """Say a line on standard error, no longer than a screen."""
    Flow(stderr=True)(line(text) + "\n")


def tell(what: str | StreamsinkError) -> None:
    """Say what went wrong, or will."""
    note(f"streamsink: {what if isinstance(what, str) else what.message}")


def warn(lines: Sequence[str], how: Callable[[str], None] | None = None) -> None:
    """Tell what is odd; by default on standard error."""
    for found in lines:
        (how or tell)(f"warning: {found}")


def say_json(value: object) -> None:
    """Say a value in JSON; all that is not ASCII is escaped in it."""
    out(json.dumps(value, indent=2) + "\n")


def path(file: Path) -> None:
    """Say a file's name: its own bytes into a pipe or a file, which need not be text."""
    if is_terminal():
        out(line(str(file), None) + "\n")
    elif sys.stdout is not None:
        sys.stdout.flush()
        _write(sys.stdout, os.fsencode(file) + b"\n")


def to_clipboard(text: str) -> None:
    """Ask the terminal to put a text into its clipboard (OSC 52), where there is one."""
    if is_terminal():
        coded = base64.b64encode(text.encode("utf-8", "replace")).decode()
        _write(sys.stdout, f"\x1b]52;c;{coded}\a")


def console(*, stderr: bool = False) -> Console:
    """Where tables and bars are drawn; what is put into them goes through `line`."""
    return Console(stderr=stderr, markup=False, highlight=False, emoji=False)


def _blanks(text: str) -> str:
    """A text with a blank for all that ends lines or is a tab; runs of blanks stay as wide."""
    return _BLANKS.sub(lambda found: found[0] if set(found[0]) == {" "} else " ", text)


def _dim(text: str, dim: bool) -> str:
    if not dim:
        return text
    words = text.rstrip("\n")
    return f"\x1b[2m{words}\x1b[0m{text[len(words) :]}"


def _write(stream: TextIO | None, what: str | bytes) -> None:
    if stream is None:  # it was closed before the program began
        return
    try:
        if isinstance(what, bytes):
            stream.buffer.write(what)
        else:
            stream.write(what)
        stream.flush()
    except UnicodeEncodeError:  # a terminal or a pipe that is not UTF-8
        assert isinstance(what, str)
        _write(stream, what.encode(stream.encoding, "replace"))
    except OSError as error:
        if stream is sys.stderr:  # nobody is left to tell
            return
        if isinstance(error, BrokenPipeError):  # whoever read has had enough: `main` ends it
            raise
        raise UsageError(f"standard output cannot be written: {error.strerror or error}") from None


# -- who is there ---------------------------------------------------------------------------------


def is_terminal() -> bool:
    """Whether standard output is shown to somebody."""
    return _is_terminal(sys.stdout)


def is_shown() -> bool:
    """Whether standard error is shown to somebody."""
    return _is_terminal(sys.stderr)


def is_asked() -> bool:
    """Whether somebody sits at the keyboard."""
    return _is_terminal(sys.stdin)


def confirm(question: str, *, yes: bool = False) -> None:
    """Ask for a yes; where nothing is said, it is the answer if ``yes`` is true.

    Raises
    ------
    UsageError
        Nobody is there to ask.
    typer.Exit
        The answer is no.
    """
    question = line(question)
    if not is_asked():
        raise UsageError(f"{question} There is nobody to ask here: --yes")
    if not typer.confirm(question, default=yes, err=True):
        raise typer.Exit(1)


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and not stream.closed and stream.isatty()
