"""Words kept whole at a terminal's edge, while the text still comes."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from prompt_toolkit.utils import get_cwidth

NARROWEST = 12
"""Columns below which lines are left to the terminal."""
TAB = 8

# Terminals differ in how wide they draw what is joined or chosen by these.
_UNSURE = re.compile("[\u200d\ufe0f\U0001f1e6-\U0001f1ff\U0001f3fb-\U0001f3ff]")


class Wrapper:
    """Breaks lines between words, letter by letter.

    A word is shown as it comes. Where it passes the edge, it is wiped out and begun again on the
    next line; one that is wider than a line is broken where the line ends. The last column stays
    free: where a cursor stands after a letter there, terminals do not agree.

    Parameters
    ----------
    columns : callable
        Gives the width of the terminal, which may change at any time.
    """

    def __init__(self, columns: Callable[[], int]) -> None:
        self._columns = columns
        self.column = 0
        self._word = ""

    def push(self, text: str) -> str:
        """Take in a piece of text; what is to be written for it."""
        width = self._columns() - 1
        if width < NARROWEST:
            self._word = ""
            self.column = 0 if text.endswith("\n") else 1
            return text
        return "".join(self._put(letter, width) for letter in text)

    def _put(self, letter: str, width: int) -> str:
        if letter == "\n":
            self.column, self._word = 0, ""
            return letter
        if letter in " \t":
            return self._blank(letter, width)
        n = get_cwidth(letter)
        broken = self._break(n, width) if self.column + n > width else ""
        self.column += n
        # Scripts written without blanks break between any two letters.
        self._word = "" if unicodedata.east_asian_width(letter) in "WF" else self._word + letter
        return broken + letter

    def _blank(self, letter: str, width: int) -> str:
        """A blank; at the edge it is the end of the line."""
        self._word = ""
        end = (self.column // TAB + 1) * TAB if letter == "\t" else self.column + 1
        if end > width:
            self.column = width
            return ""
        n, self.column = end - self.column, end
        return " " * n

    def _break(self, n: int, width: int) -> str:
        """Begin the next line, with the word that would have passed the edge."""
        word, wide = self._word, get_cwidth(self._word)
        if not word or wide + n > width or wide >= self.column or _UNSURE.search(word):
            self.column, self._word = 0, ""
            return "\n"
        self.column = wide
        return f"\x1b[{wide}D\x1b[K\n{word}" if wide else f"\n{word}"
