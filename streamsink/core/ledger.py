"""Which token sits at which position: the only truth about the cache on our side.

A value: nothing here changes, every move gives another ledger. A stream's live tokens are a row of
*segments*, each contiguous both in index (the token's place in the stream) and in position (what
its KV cell carries). The last segment is the window; what stands before it is the head: the pinned
prefix, and for a while whatever a live change of ``n_keep`` has pinned or released.

Which token has which id is written on the `streamsink.core.tape`.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

import msgspec


class Missing(Enum):
    """Live tokens whose cells are not in the cache, to be evaluated before anything else."""

    NOTHING = "nothing"
    HEAD = "head"
    ALL = "all"


class Span(NamedTuple):
    """Positions ``[start, stop)`` of the cache."""

    start: int
    stop: int


class Segment(msgspec.Struct, frozen=True, gc=False):
    """Tokens that are neighbours in the stream and in the cache.

    Attributes
    ----------
    index, pos : int
        Index and position of the first token.
    n : int
        How many they are.
    """

    index: int
    pos: int
    n: int

    @property
    def stop(self) -> int:
        """Index after the last token."""
        return self.index + self.n

    @property
    def end(self) -> int:
        """Position after the last token."""
        return self.pos + self.n

    def without_first(self, n: int) -> Segment:
        """What is left when the oldest tokens leave."""
        return Segment(self.index + n, self.pos + n, self.n - n)

    def at(self, pos: int) -> Segment:
        """The same tokens from another position on."""
        return Segment(self.index, pos, self.n)


class Ledger(msgspec.Struct, frozen=True, gc=False):
    """The live tokens of one stream.

    Attributes
    ----------
    segments : tuple of Segment
        Oldest first; the last is the window, which may be empty: it is where the stream goes on.
    next_index : int
        Index of the next token to be decoded: how many have been.
    n_live : int
        Tokens that the next token will see, itself not counted.
    n_keep : int
        Tokens pinned at the head.
    missing : Missing
        Which live tokens have no cells.
    n_ready : int
        How many of the missing tokens, oldest first, are evaluated again already.
    """

    segments: tuple[Segment, ...] = ()
    next_index: int = 0
    n_live: int = 0
    n_keep: int = 0
    missing: Missing = Missing.NOTHING
    n_ready: int = 0

    @classmethod
    def of(cls, segments: Sequence[Segment], n_keep: int) -> Ledger:
        """The ledger of segments that hold all that is live, with the newest token at the end."""
        n_live = sum(part.n for part in segments)
        return cls(_joined(segments), segments[-1].stop, n_live, n_keep)

    # -- what there is --------------------------------------------------------------------------

    @property
    def n_pinned(self) -> int:
        """Pinned tokens present."""
        return min(self.n_keep, self.n_live)

    @property
    def n_window(self) -> int:
        """Live tokens that are not pinned."""
        return self.n_live - self.n_pinned

    @property
    def n_head(self) -> int:
        """Tokens before the last segment."""
        return self.n_live - self.n_newest

    @property
    def n_newest(self) -> int:
        """Tokens of the last segment: so many can be truncated, for none was evicted among them."""
        return self.segments[-1].n if self.segments else 0

    @property
    def first_pos(self) -> int:
        """Position of the oldest live token."""
        return self.segments[0].pos if self.segments else 0

    @property
    def next_pos(self) -> int:
        """Position of the next token."""
        if not self.segments:
            return 0
        window = self.segments[-1]
        return window.pos + window.n

    @property
    def last_end(self) -> int:
        """Position after the newest live token, below `next_pos` where the window is empty."""
        return next((part.end for part in reversed(self.segments) if part.n), 0)

    @property
    def sink_lag(self) -> int:
        """Positions that the head trails the place where a dense cache would have it."""
        if not self.segments:
            return 0
        window = self.segments[-1]
        return window.pos + window.n - self.segments[0].pos - self.n_live

    @property
    def head_place(self) -> int:
        """Position at which the head would stand right below the window."""
        return self.segments[-1].pos - self.n_head

    @property
    def window_index(self) -> int:
        """Index of the oldest token that is not pinned."""
        skip = self.n_pinned
        for part in self.segments:
            if skip < part.n:
                return part.index + skip
            skip -= part.n
        return self.next_index

    @property
    def spans(self) -> list[Span]:
        """Positions of all live tokens."""
        return [Span(part.pos, part.end) for part in self.segments if part.n]

    @property
    def indices(self) -> list[range]:
        """Index ranges of all live tokens, oldest first."""
        return [range(part.index, part.stop) for part in self.segments]

    def visible(self) -> list[range]:
        """Index ranges of the live tokens, neighbours merged."""
        ranges: list[range] = []
        for here in filter(None, self.indices):
            if ranges and ranges[-1].stop == here.start:
                here = range(ranges.pop().start, here.stop)
            ranges.append(here)
        return ranges

    def pinned(self) -> list[range]:
        """Index ranges of the pinned tokens that are part of the stream, oldest first."""
        left = self.n_pinned
        ranges: list[range] = []
        for part in self.segments:
            here = min(left, part.n)
            left -= here
            if here and part.index >= 0:
                ranges.append(range(part.index, part.index + here))
        return ranges

    def between(self, start: int, stop: int) -> list[range]:
        """The live tokens of an index range."""
        found = (range(max(start, part.index), min(stop, part.stop)) for part in self.segments)
        return list(filter(None, found))

    def unpinned(self, start: int, stop: int) -> list[range]:
        """The live tokens of an index range that are not pinned."""
        skip = self.n_pinned
        found: list[range] = []
        for part in self.segments:
            first = part.index + min(skip, part.n)
            found.append(range(max(first, start), min(part.stop, stop)))
            skip = max(0, skip - part.n)
        return list(filter(None, found))

    def n_leading(self, start: int, stop: int) -> int:
        """How many of the oldest live tokens, one after another, are of an index range."""
        n = 0
        for part in self.segments:
            here = max(0, min(part.n, stop - part.index)) if part.index >= start else 0
            n += here
            if here < part.n:
                break
        return n

    def n_before(self, index: int) -> int:
        """Live tokens that come before an index; those of a swapped prefix come before all."""
        return sum(max(0, min(part.n, index - part.index)) for part in self.segments)

    def leaving(self, n: int) -> tuple[Segment, ...]:
        """The ``n`` oldest tokens that are not pinned, in order: they leave next."""
        window = self.segments[-1]
        if self.n_live - window.n == self.n_keep:  # they are of the window, as nearly always
            return (Segment(window.index, window.pos, min(n, window.n)),)
        _, rest = self.divided(self.n_pinned)
        first, _ = _divide(rest, n)
        return tuple(part for part in first if part.n)

    def divided(self, n: int) -> tuple[list[Segment], list[Segment]]:
        """The first ``n`` tokens, and the others, the window among these though it be empty."""
        head, rest = _divide(self.segments, n)
        return head, rest or [Segment(self.next_index, self.next_pos, 0)]

    # -- moves ----------------------------------------------------------------------------------

    def append(self, n: int) -> Ledger:
        """Enter tokens that were decoded at `next_pos` and after it."""
        *head, window = self.segments or (Segment(self.next_index, 0, 0),)
        grown = Segment(window.index, window.pos, window.n + n)
        return self._with((*head, grown), n, n)

    def truncate(self, n: int) -> Ledger:
        """Strike the ``n`` newest tokens; an emptied window keeps its place."""
        *head, window = self.segments
        left = Segment(window.index, window.pos, window.n - n)
        return self._with((*head, left), -n, -n)

    def evict(self, n: int) -> Ledger:
        """Strike the ``n`` oldest tokens that are not pinned; see `leaving`."""
        *before, window = self.segments
        if self.n_live - window.n == self.n_keep and n < window.n:
            return self._with((*before, window.without_first(n)), -n, 0)
        head, rest = self.divided(self.n_pinned)
        end = rest[-1].without_first(rest[-1].n)  # an emptied window stays
        _, rest = _divide(rest, n)
        return self._with((*head, *(rest or [end])), -n, 0)

    def splice(self, at: int, n: int, n_new: int) -> tuple[Ledger, int]:
        """Strike ``n`` tokens of the head after the first ``at``, and enter others in their place.

        None of those entered is in the cache yet. They were never part of the stream, so their
        indices are below 0, and below those of all others that are live.

        Returns
        -------
        Ledger
            With them, the head right below the window.
        int
            Index of the first token entered.
        """
        before, rest = self.divided(at)
        gone, after = _divide(rest, n)
        after = after or [Segment(self.next_index, self.next_pos, 0)]
        index = min(0, *(part.index for part in self.segments)) - n_new
        new = [Segment(index, 0, n_new)] if n_new else []
        lost = sum(part.n for part in gone)
        ledger = self._with((*before, *new, *after), n_new - lost, 0)
        return ledger.with_head_at(ledger.head_place), index

    def with_head_at(self, pos: int) -> Ledger:
        """Place the head at ``pos`` and after it, without gaps."""
        *head, window = self.segments
        return self._at((*_in_a_row(head, pos), window))

    def placed(self, pos: int) -> Ledger:
        """Place all live tokens at ``pos`` and after it, without gaps."""
        return self._at(tuple(_in_a_row(self.segments, pos)))

    def shifted(self, delta: int) -> Ledger:
        """Change all positions."""
        return self._at(tuple(part.at(part.pos + delta) for part in self.segments))

    def next_shift(self) -> tuple[Span, int] | None:
        """The lowest segment that can move down to close a gap, and how far; None where none is."""
        pos = self.first_pos
        for part in self.segments:
            if part.pos != pos and part.n:
                return Span(part.pos, part.end), pos - part.pos
            pos += part.n
        return None

    def moved(self, span: Span, delta: int) -> Ledger:
        """Move one segment; the empty window goes with the last one before it."""
        parts = (
            part.at(part.pos + delta) if part.n and part.pos == span.start else part
            for part in self.segments
        )
        ledger = self._at(tuple(parts))
        return ledger if ledger.next_shift() else ledger.placed(ledger.first_pos)

    def keeping(self, n_keep: int) -> Ledger:
        """Pin another number of tokens."""
        return msgspec.structs.replace(self, n_keep=n_keep)

    def lacking(self, missing: Missing, n_ready: int = 0) -> Ledger:
        """Note which cells are missing."""
        return msgspec.structs.replace(self, missing=missing, n_ready=n_ready)

    def numbered(self, n: int, index: int) -> Ledger:
        """Give the ``n`` oldest tokens other indices, from ``index`` on."""
        first, rest = self.divided(n)
        again: list[Segment] = []
        for part in first:
            again.append(Segment(index, part.pos, part.n))
            index += part.n
        return self._at(_joined((*again, *rest)))

    # -- how ------------------------------------------------------------------------------------

    def _with(self, segments: tuple[Segment, ...], more_live: int, more: int) -> Ledger:
        return Ledger(
            segments,
            self.next_index + more,
            self.n_live + more_live,
            self.n_keep,
            self.missing,
            self.n_ready,
        )

    def _at(self, segments: tuple[Segment, ...]) -> Ledger:
        return self._with(segments, 0, 0)


def _divide(parts: Sequence[Segment], n: int) -> tuple[list[Segment], list[Segment]]:
    """Divide segments after the first ``n`` tokens."""
    for at, part in enumerate(parts):
        if n == 0:
            return list(parts[:at]), list(parts[at:])
        if n < part.n:
            first = Segment(part.index, part.pos, n)
            return [*parts[:at], first], [part.without_first(n), *parts[at + 1 :]]
        n -= part.n
    return list(parts), []


def _in_a_row(parts: Sequence[Segment], pos: int) -> list[Segment]:
    placed: list[Segment] = []
    for part in parts:
        placed.append(part.at(pos))
        pos += part.n
    return placed


def _joined(parts: Sequence[Segment]) -> tuple[Segment, ...]:
    """The same segments, of which those are one that are neighbours in the stream and the cache."""
    joined: list[Segment] = []
    for part in parts:
        last = joined[-1] if joined else None
        if last and last.n and (last.stop, last.end) == (part.index, part.pos):
            joined[-1] = Segment(last.index, last.pos, last.n + part.n)
        else:
            joined.append(part)
    return tuple(joined)
