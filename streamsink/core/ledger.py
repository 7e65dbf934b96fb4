"""Which token sits at which position: the only truth about the cache on our side.

Pure bookkeeping. A stream's live tokens are a list of *runs*, each contiguous both in index (the
token's place in the stream) and in position (what its KV cell carries). The last run is the
window; what stands before it is the head: the pinned prefix, and for a while whatever a live
change of ``n_keep`` has pinned or released.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import islice
from typing import NamedTuple


class Missing(Enum):
    """Live tokens whose cells are not in the cache, to be evaluated before anything else."""

    NOTHING = "nothing"
    HEAD = "head"
    ALL = "all"


@dataclass(slots=True)
class Run:
    """Tokens that are neighbours in the stream and in the cache.

    Attributes
    ----------
    index, pos : int
        Index and position of the first token.
    tokens : deque of int
        Token ids, oldest first.
    """

    index: int
    pos: int
    tokens: deque[int] = field(default_factory=deque)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def end(self) -> int:
        """Position after the last token."""
        return self.pos + len(self.tokens)


@dataclass(frozen=True, slots=True)
class Piece:
    """A run as plain data: index and position of its first token, and the ids."""

    index: int
    pos: int
    tokens: tuple[int, ...]


class Span(NamedTuple):
    """Positions ``[start, stop)`` of the cache."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Evicted:
    """What an eviction took out of the stream.

    Attributes
    ----------
    index : int
        Index of the first token that left; the others followed it in the stream.
    tokens : tuple of int
        Their ids.
    """

    index: int
    tokens: tuple[int, ...]


class Ledger:
    """The live tokens of one stream.

    Parameters
    ----------
    n_keep : int
        Tokens pinned at the head; may change at any time.

    Attributes
    ----------
    missing : Missing
        What `streamsink.core.placement` has taken out of the cache and not yet brought back.
    """

    def __init__(self, n_keep: int = 0) -> None:
        self.n_keep = n_keep
        self.missing = Missing.NOTHING
        self._runs: list[Run] = []
        self._n_live = 0
        self._next_index = 0

    @property
    def n_live(self) -> int:
        """Tokens that the next token will be able to see, itself not counted."""
        return self._n_live

    @property
    def n_pinned(self) -> int:
        """Pinned tokens present."""
        return min(self.n_keep, self._n_live)

    @property
    def next_index(self) -> int:
        """Index of the next token: how many the stream has taken in."""
        return self._next_index

    @property
    def first_pos(self) -> int:
        """Position of the oldest live token."""
        return self._runs[0].pos if self._runs else 0

    @property
    def next_pos(self) -> int:
        """Position of the next token."""
        return self._runs[-1].end if self._runs else 0

    @property
    def last_end(self) -> int:
        """Position after the newest live token, below `next_pos` where the window is empty."""
        return next((run.end for run in reversed(self._runs) if run.tokens), 0)

    @property
    def gap(self) -> int:
        """Positions that the head trails the place where a dense cache would have it."""
        return self.next_pos - self.first_pos - self._n_live

    @property
    def window_index(self) -> int:
        """Index of the oldest token that is not pinned."""
        skip = self.n_pinned
        for run in self._runs:
            if skip < len(run):
                return run.index + skip
            skip -= len(run)
        return self._next_index

    def unpinned(self, start: int, stop: int) -> Iterator[tuple[int, tuple[int, ...]]]:
        """The live tokens of an index range that are not pinned: first index and ids, in order."""
        skip = self.n_pinned
        for run in self._runs:
            first = max(min(skip, len(run)), start - run.index)
            tokens = tuple(islice(run.tokens, first, max(first, stop - run.index)))
            if tokens:
                yield run.index + first, tokens
            skip = max(0, skip - len(run))

    def between(self, start: int, stop: int) -> list[int]:
        """Ids of the live tokens of an index range, in order."""
        found: list[int] = []
        for run in self._runs:
            found += islice(run.tokens, max(0, start - run.index), max(0, stop - run.index))
        return found

    def n_leading(self, start: int, stop: int) -> int:
        """How many of the oldest live tokens, one after another, are of an index range."""
        n = 0
        for run in self._runs:
            here = len(run) if run.index >= start else 0
            here = max(0, min(here, stop - run.index))
            n += here
            if here < len(run):
                break
        return n

    def pinned(self) -> list[range]:
        """Index ranges of the pinned tokens that are part of the stream, oldest first."""
        left = self.n_pinned
        ranges: list[range] = []
        for run in self._runs:
            here = min(left, len(run))
            left -= here
            if here and run.index >= 0:
                ranges.append(range(run.index, run.index + here))
        return ranges

    def n_before(self, index: int) -> int:
        """Live tokens that come before an index; those of a swapped prefix come before all."""
        return sum(max(0, min(len(run), index - run.index)) for run in self._runs)

    @property
    def runs(self) -> Sequence[Run]:
        """The runs, oldest first. Read only."""
        return self._runs

    @property
    def head(self) -> Sequence[Run]:
        """The runs before the window. Read only."""
        return self._runs[:-1]

    def tokens(self) -> Iterator[int]:
        """Ids of all live tokens, oldest first."""
        for run in self._runs:
            yield from run.tokens

    def visible(self) -> list[range]:
        """Index ranges of the live tokens, neighbours merged."""
        parts = [range(run.index, run.index + len(run)) for run in self._runs]
        ranges: list[range] = []
        for here in filter(None, parts):
            if ranges and ranges[-1].stop == here.start:
                here = range(ranges.pop().start, here.stop)
            ranges.append(here)
        return ranges

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """The runs, as plain data."""
        return tuple(Piece(run.index, run.pos, tuple(run.tokens)) for run in self._runs)

    @classmethod
    def of(cls, pieces: Sequence[Piece], n_keep: int, n_tokens: int) -> Ledger:
        """The ledger of a stream whose next token has index ``n_tokens``."""
        ledger = cls(n_keep)
        ledger._runs = [Run(piece.index, piece.pos, deque(piece.tokens)) for piece in pieces]
        ledger._n_live = sum(map(len, ledger._runs))
        ledger._next_index = n_tokens
        return ledger

    def append(self, tokens: Iterable[int]) -> None:
        """Enter tokens that were decoded at `next_pos` and after it."""
        if not self._runs:
            self._runs.append(Run(self._next_index, 0))
        run = self._runs[-1]
        before = len(run)
        run.tokens.extend(tokens)
        added = len(run) - before
        self._n_live += added
        self._next_index += added

    def pop(self) -> int:
        """Take back the newest token; an emptied window keeps its place."""
        token = self._runs[-1].tokens.pop()
        self._n_live -= 1
        self._next_index -= 1
        return token

    @property
    def n_newest(self) -> int:
        """Tokens that could be taken back, for none before them was evicted."""
        return len(self._runs[-1]) if self._runs else 0

    def oldest(self, n: int) -> list[Span]:
        """Positions of the ``n`` oldest tokens that are not pinned, in order."""
        spans: list[Span] = []
        skip = self.n_pinned
        for run in self._runs:
            here = min(skip, len(run))
            skip -= here
            take = min(n, len(run) - here)
            if take > 0:
                spans.append(Span(run.pos + here, run.pos + here + take))
                n -= take
            if n == 0:
                break
        return spans

    def evict(self, n: int) -> list[Evicted]:
        """Strike the ``n`` oldest tokens that are not pinned; neighbours come as one record."""
        at = self._boundary(self.n_pinned)
        gone: list[Evicted] = []
        while n > 0:
            run = self._runs[at]
            take = min(n, len(run))
            record = Evicted(run.index, tuple(run.tokens.popleft() for _ in range(take)))
            gone.append(record)
            run.index += take
            run.pos += take
            n -= take
            self._n_live -= take
            if not run.tokens and at < len(self._runs) - 1:
                del self._runs[at]
            # An emptied window stays: its position is where the stream goes on.
        return gone

    def _boundary(self, n: int) -> int:
        """Make a run begin after the first ``n`` tokens; return its place in the list."""
        for at, run in enumerate(self._runs):
            if n == 0:
                return at
            if n < len(run):
                rest = Run(run.index + n, run.pos + n, deque(islice(run.tokens, n, None)))
                while len(run) > n:
                    run.tokens.pop()
                self._runs.insert(at + 1, rest)
                return at + 1
            n -= len(run)
        # Everything is pinned: the window is empty and begins where the stream goes on.
        self._runs.append(Run(self._next_index, self.next_pos))
        return len(self._runs) - 1

    def head_tokens(self) -> list[int]:
        """Ids of the tokens before the window."""
        return [token for run in self.head for token in run.tokens]

    def head_place(self) -> int:
        """Position at which the head would stand right below the window."""
        window = self._runs[-1]
        return window.pos - (self._n_live - len(window))

    def place_head(self, pos: int) -> None:
        """Record that the head stands at ``pos`` and after it, without gaps."""
        for run in self.head:
            run.pos = pos
            pos += len(run)

    def splice(self, at: int, n: int, tokens: Sequence[int]) -> int:
        """Strike ``n`` tokens of the head after the first ``at``, and enter others in their place.

        None of those entered is in the cache yet. They were never part of the stream, so their
        indices are below 0, and below those of all others that are live.

        Returns
        -------
        int
            Index of the first token entered.
        """
        first = self._boundary(at)
        last = self._boundary(at + n)
        gone = sum(len(run) for run in self._runs[first:last])
        lowest = min(0, *(run.index for run in self._runs))
        index = lowest - len(tokens)
        self._runs[first:last] = [Run(index, 0, deque(tokens))] if tokens else []
        self._n_live += len(tokens) - gone
        self.place_head(self.head_place())
        return index

    def shifts(self) -> list[tuple[Span, int]]:
        """Position changes that close every gap by moving later runs down, lowest run first."""
        moves: list[tuple[Span, int]] = []
        pos = self.first_pos
        for run in self._runs:
            if run.pos != pos and run.tokens:
                moves.append((Span(run.pos, run.end), pos - run.pos))
            pos += len(run)
        return moves

    def move(self, span: Span, delta: int) -> None:
        """Record that one of `shifts` was applied."""
        for run in self._runs:
            if run.tokens and run.pos == span.start:
                run.pos += delta
                return

    def close_gaps(self) -> None:
        """Record that `shifts` were applied."""
        self.place(self.first_pos)

    def place(self, pos: int) -> None:
        """Record that all live tokens stand at ``pos`` and after it, without gaps."""
        for run in self._runs:
            run.pos = pos
            pos += len(run)

    def rebase(self, delta: int) -> None:
        """Record that all positions changed by ``delta``."""
        for run in self._runs:
            run.pos += delta

    def clear(self) -> None:
        """Forget everything; indices start at 0 again."""
        self._runs.clear()
        self._n_live = 0
        self._next_index = 0
        self.missing = Missing.NOTHING
