"""Markdown drawn while it comes: what is whole stays, what is under way is drawn anew."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment, Segments

from streamsink.cli import terminal
from streamsink.system.closing import Closing

if TYPE_CHECKING:
    pass

SPARE = 2
"""Lines of the screen that what is under way leaves free."""
A_SECOND = 8
"""How often it is drawn at most."""

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")


class MarkdownFlow(Closing):
    """An answer in Markdown, block by block.

    A block that is followed by another one is written for good. The last one is drawn anew with
    every piece, as much of its end as there is room for on the screen, so that nothing is drawn
    that could not be wiped out.
    """

    def __init__(self) -> None:
        self._console = terminal.console()
        self._live = Live(
            console=self._console,
            transient=True,
            auto_refresh=False,
            refresh_per_second=A_SECOND,
            vertical_overflow="crop",
        )
        self._text = ""
        self._is_first = True

    def __call__(self, text: str, *, dim: bool = False) -> None:
        """Take in a piece."""
        self._text += terminal.harmless(text)
        blocks, self._text = split(self._text)
        if not (blocks or self._text.strip()):
            return
        for block in blocks:
            self._live.update(Segments([]), refresh=True)
            self._write(block)
        self._live.start()
        self._live.update(self._end_of(self._text), refresh=True)

    def close(self) -> None:
        """Write what is under way for good."""
        self._live.update(Segments([]))
        self._live.stop()
        text, self._text = self._text, ""
        if text.strip():
            self._write(text)

    def _write(self, block: str) -> None:
        if not self._is_first:
            self._console.print()
        self._is_first = False
        self._console.print(drawn(block))

    def _end_of(self, block: str) -> Segments:
        lines = self._console.render_lines(drawn(block), pad=False)
        room = max(1, self._console.size.height - SPARE)
        shown = lines[-room:]
        parts = [part for line in shown for part in (*line, Segment.line())]
        gap = [] if self._is_first or len(shown) == room else [Segment.line()]
        return Segments([*gap, *parts[:-1]])


def drawn(block: str) -> Markdown:
    """A block as rich draws it; addresses are written out, since a link hides where it leads."""
    return Markdown(block, hyperlinks=False)


def split(text: str) -> tuple[list[str], str]:
    """Cut a text into the blocks that are whole, and what is under way.

    A block ends with an empty line outside of a fence, before a line that is not indented: what
    is indented there may belong to an item of a list.
    """
    blocks: list[str] = []
    begun = at = 0
    fence = ""
    is_blank = False
    while (end := text.find("\n", at)) >= 0 or text[at:].strip():
        line = text[at:] if end < 0 else text[at:end]
        if is_blank and not fence and line.strip() and not line[0].isspace():
            if text[begun:at].strip():
                blocks.append(text[begun:at].strip("\n"))
            begun = at
        found = _FENCE.match(line)
        if found and not fence:
            fence = found[1]
        elif found and found[1].startswith(fence) and not line.strip().strip(fence[0]):
            fence = ""
        is_blank = not line.strip()
        if end < 0:
            break
        at = end + 1
    return blocks, text[begun:]
