"""The ids of a stream's tokens, by index: of those that are live, and of those to be decoded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

ROOM = 1024
"""Ids of evicted tokens that may lie about before they are looked for and dropped."""


class Tape:
    """Ids by index.

    Written ahead of the ledger and cleaned behind it: what the ledger does not name is not read, so
    a write or a cleaning that is interrupted changes nothing.
    """

    def __init__(self) -> None:
        self._ids: dict[int, int] = {}
        self._most = ROOM

    def write(self, index: int, tokens: Sequence[int]) -> None:
        """Enter the ids of tokens from an index on."""
        ids = self._ids
        for at, token in enumerate(tokens, index):
            ids[at] = token

    def read(self, *ranges: range) -> list[int]:
        """Ids of index ranges, in order."""
        ids = self._ids
        return [ids[index] for indices in ranges for index in indices]

    def read_one(self, index: int) -> int:
        """The id of an index."""
        return self._ids[index]

    @property
    def is_full(self) -> bool:
        """Whether it is worth while to `clean` it."""
        return len(self._ids) > self._most

    def clean(self, ranges: Iterable[range]) -> None:
        """Drop what is not in these ranges."""
        ids = self._ids
        self._ids = {index: ids[index] for indices in ranges for index in indices}
        self._most = 2 * len(self._ids) + ROOM
