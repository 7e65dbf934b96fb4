"""Thoughts told from answers in the text of a model that thinks before it answers."""

from __future__ import annotations

from typing import NamedTuple


class Said(NamedTuple):
    """A piece of text, and whether it is thought."""

    text: str
    thought: bool


class Thoughts:
    """Splits a text that comes in pieces at the marks around thoughts.

    Text that may be the beginning of a mark is held back until the next piece decides.

    Parameters
    ----------
    marks : (str, str) or None
        The texts with which a thought begins and ends; without them all is answer.
    inside : bool
        Whether the text begins within a thought.
    """

    def __init__(self, marks: tuple[str, str] | None, *, inside: bool = False) -> None:
        self._marks = marks
        self._inside = inside
        self._held = ""
        self._begins = True

    def push(self, text: str, *, final: bool = False) -> list[Said]:
        """Take in a piece, give back what is now certain; with ``final`` all of it."""
        if self._marks is None:
            return [Said(text, False)] if text else []
        self._held += text
        said: list[Said] = []
        while self._held:
            mark = self._marks[self._inside]
            before, found, after = self._held.partition(mark)
            if found:
                said += self._piece(before)
                self._held, self._inside, self._begins = after, not self._inside, True
                continue
            n_open = 0 if final else _n_open(self._held, mark)
            certain = len(self._held) - n_open
            said += self._piece(self._held[:certain])
            self._held = self._held[certain:]
            break
        return said

    def _piece(self, text: str) -> list[Said]:
        # The blank lines around a mark belong to neither side.
        if self._begins:
            text = text.lstrip("\n")
        self._begins &= not text
        return [Said(text, self._inside)] if text else []


def _n_open(text: str, mark: str) -> int:
    """Length of the longest end of a text with which a mark begins."""
    longest = min(len(text), len(mark) - 1)
    return next((n for n in range(longest, 0, -1) if mark.startswith(text[-n:])), 0)
