"""The ids of a stream's tokens by index: of those that are live, to be decoded, or forgotten."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Sequence

REACH = 2**17
"""Newest tokens whose ids are kept, forgotten or not: half a MiB."""
ROOM = 1024
"""Other ids that may lie about before they are looked for and dropped."""
ID = "i"
"""How an id is kept: 32 bits, as llama.cpp has them (llama.h: llama_token)."""


class Tape:
    """Ids by index.

    Written ahead of the ledger and cleaned behind it: what the ledger does not name is not read, so
    a write or a cleaning that is interrupted changes nothing.

    The newest ids are a row. What stands apart, the pinned tokens of a long stream and those that
    were never part of it, has an entry each.
    """

    def __init__(self) -> None:
        self._row: tuple[int, array[int]] = 0, array(ID)  # the index of its first, and the ids
        self._apart: dict[int, int] = {}
        self._most = ROOM

    @classmethod
    def of(cls, tokens: Sequence[int], n_pinned: int) -> Tape:
        """A tape with the ids of a text, of which the first ``n_pinned`` and the newest matter."""
        tape = cls()
        first = max(0, len(tokens) - REACH)
        tape._row = first, array(ID, tokens[first:])
        tape._apart = dict(enumerate(tokens[: min(first, n_pinned)]))
        return tape

    def write(self, index: int, tokens: Sequence[int]) -> None:
        """Enter the ids of tokens from an index on."""
        first, row = self._row
        at = index - first
        if at == len(row):
            row.extend(tokens)
        elif at > len(row):
            self._apart.update(enumerate(row, first))
            self._row = index, array(ID, tokens)
        else:
            n_apart = max(0, min(-at, len(tokens)))
            self._apart.update(enumerate(tokens[:n_apart], index))
            rest = tokens[n_apart:]
            at += n_apart
            if rest:
                row[at : at + len(rest)] = array(ID, rest)

    def read(self, *ranges: range) -> list[int]:
        """Ids of index ranges, in order."""
        first, row = self._row
        ids: list[int] = []
        for indices in ranges:
            if indices.start >= first:
                ids += row[indices.start - first : indices.stop - first]
            else:
                ids += map(self.read_one, indices)
        return ids

    def read_one(self, index: int) -> int:
        """The id of an index."""
        first, row = self._row
        return row[index - first] if index >= first else self._apart[index]

    def newest(self, stop: int) -> array[int]:
        """Ids of the tokens before an index: as many as are kept one after another."""
        first, row = self._row
        return row[: max(0, stop - first)]

    @property
    def is_full(self) -> bool:
        """Whether it is worth while to `clean` it."""
        return len(self._apart) > self._most or len(self._row[1]) > REACH + REACH // 4

    def clean(self, ranges: Iterable[range]) -> None:
        """Drop what is neither in these ranges nor among the newest."""
        first, row = self._row
        rest = max(0, len(row) - REACH)
        start = first + rest
        apart = (range(part.start, min(part.stop, start)) for part in ranges)
        self._apart = {index: self.read_one(index) for part in apart for index in part}
        self._row = start, row[rest:]
        self._most = 2 * len(self._apart) + ROOM


def packed(ids: array[int]) -> bytes:
    """Ids as bytes, four each, the least first."""
    if sys.byteorder == "big":
        ids = ids[:]
        ids.byteswap()
    return ids.tobytes()


def unpacked(data: bytes) -> array[int]:
    """The ids that `packed` has made bytes of; what is left over at the end is dropped."""
    ids = array(ID, data[: len(data) // 4 * 4])
    if sys.byteorder == "big":
        ids.byteswap()
    return ids
