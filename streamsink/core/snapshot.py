"""Where a stream stands, as plain data: what a fork takes over, and what a session file holds."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from itertools import chain, pairwise

import msgspec

from streamsink.core.ledger import Ledger, Segment
from streamsink.core.pinned import Pinned, pinned_ranges
from streamsink.core.policy import SinkPolicy
from streamsink.core.state import Counters
from streamsink.core.tape import Tape, unpacked
from streamsink.errors import SessionError

LARGEST_POSITION = 2**30
"""Beyond it a position is damage: llama.cpp's are 32-bit integers."""


@dataclass(frozen=True, slots=True)
class CacheKey:
    """What the cells of a cache depend on: those of one kind fit into any cache of that kind.

    Attributes
    ----------
    model : str
        Digest of the model's file.
    engine : str
        What computed them, with its version.
    cache_type_k, cache_type_v : str
        Types of keys and values.
    flash_attn : bool or None
        Whether attention is flash attention, which has the values lie otherwise; ``None`` where it
        is left to llama.cpp.
    swa_full : bool
        Whether sliding-window layers keep all cells.
    rope_scaling : str or None
        How RoPE is stretched, if not the model's own way, and ``rope_scale`` by how much.
    path : str
        Where the model's file lies; does not matter.
    """

    model: str
    engine: str
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    flash_attn: bool | None = False
    swa_full: bool = False
    rope_scaling: str | None = None
    rope_scale: float = 1.0
    path: str = field(default="", compare=False)

    def is_printable(self) -> bool:
        """Whether it may be told in a terminal, whoever wrote it."""
        return all(str(getattr(self, each.name)).isprintable() for each in fields(self))

    def difference(self, other: CacheKey) -> str:
        """What keeps these cells out of another cache, as a clause; empty if nothing does."""
        for name in (each.name for each in fields(self) if each.compare):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                what = name.replace("_", " ")
                return f"they were made with {what} {mine}, and here it is {theirs}"
        return ""


@dataclass(frozen=True, slots=True)
class Piece:
    """A segment of the ledger with its tokens.

    Attributes
    ----------
    index, pos : int
        Index and position of the first.
    tokens : tuple of int
        Their ids.
    """

    index: int
    pos: int
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Where a stream stands, its cells aside.

    Attributes
    ----------
    n_ctx : int
        Tokens that a token can attend to.
    policy : SinkPolicy
        What to keep, what to evict.
    n_keep : int
        Tokens that the policy pins, as a number.
    n_tokens : int
        Tokens decoded so far, and so the index of the next.
    pieces : tuple of Piece
        The live tokens, oldest first; the last piece is the window.
    pending : tuple of int
        Tokens of the stream that are not decoded yet.
    pinned : Pinned
        What is pinned beside the prefix, and what ``n_keep`` stands for.
    boundaries : tuple of int
        Indices at which the window may begin.
    counters : Counters
        How often what has happened.
    past : bytes
        Ids of the tokens before the window, as many as are known one after another: 32-bit
        integers, the least byte first. What of them is not in a piece was forgotten.
    """

    n_ctx: int
    policy: SinkPolicy
    n_keep: int
    n_tokens: int
    pieces: tuple[Piece, ...]
    pending: tuple[int, ...]
    pinned: Pinned
    boundaries: tuple[int, ...]
    counters: Counters
    past: bytes = b""

    def tape(self) -> Tape:
        """The ids of its tokens."""
        tape = Tape()
        end = self.pieces[-1].index if self.pieces else 0
        if end >= 0:
            past = unpacked(self.past)
            tape.write(end - len(past), past)
        for piece in self.pieces:
            tape.write(piece.index, piece.tokens)
        tape.write(self.n_tokens, self.pending)
        return tape

    def until(self, index: int) -> Snapshot:
        """It as it would be if the tokens from an index of the window on had not come."""
        *head, window = self.pieces
        window = replace(window, tokens=window.tokens[: index - window.index])
        return replace(
            self,
            n_tokens=index,
            pieces=(*head, window),
            pending=(),
            boundaries=tuple(place for place in self.boundaries if place <= index),
        )

    @property
    def sees(self) -> tuple[tuple[int, int], ...]:
        """Index ranges that the next token can see, half-open, oldest first."""
        ranges = [(piece.index, piece.index + len(piece.tokens)) for piece in self.pieces]
        return (*ranges, (self.n_tokens, self.index))

    @property
    def pinned_ranges(self) -> tuple[tuple[int, int], ...]:
        """Index ranges of what stays for good, half-open."""
        return pinned_ranges(self.ledger.pinned(), self.pinned)

    @property
    def ledger(self) -> Ledger:
        """Which token sat where."""
        segments = tuple(Segment(one.index, one.pos, len(one.tokens)) for one in self.pieces)
        return Ledger(segments, self.n_tokens, self.n_live, self.n_keep)

    @property
    def index(self) -> int:
        """Tokens taken in so far."""
        return self.n_tokens + len(self.pending)

    @property
    def n_live(self) -> int:
        """Tokens that are to be in the cache."""
        return sum(len(piece.tokens) for piece in self.pieces)

    def check(self, n_vocab: int) -> None:
        """Hold what came out of a file against what a stream can be.

        Raises
        ------
        SessionError
            No stream is like this.
        """
        self.policy.check(self.n_ctx)
        past = unpacked(self.past)
        live = chain.from_iterable(piece.tokens for piece in self.pieces)
        tokens = (*live, *self.pending, *past)
        last = self.pieces[-1] if self.pieces else Piece(0, 0, ())
        pinned = self.pinned
        numbers = (
            *(self.n_keep, self.n_tokens),
            *(pinned.n_prompt, pinned.n_system or 0, pinned.n_prefix or 0),
        )
        counts = msgspec.structs.astuple(self.counters)
        ends = (*self.boundaries, self.n_tokens + len(self.pending) + 1)
        sound = {
            "a token is none of the model's": all(0 <= token < n_vocab for token in tokens),
            "more tokens are live than n_ctx": self.n_live <= self.n_ctx,
            "a number is below 0": min(*numbers, *counts) >= 0,
            "the pinned prefix is too long": self.n_keep < self.n_ctx
            and pinned.n_spans <= min(self.n_keep, self.n_live),
            "tokens are missing at the end": last.index + len(last.tokens) == self.n_tokens,
            # Those of a prefix that was swapped were never part of the stream.
            "tokens are out of order": all(
                a.index + len(a.tokens) <= b.index
                for a, b in pairwise(piece for piece in self.pieces if piece.index >= 0)
            ),
            "more is forgotten than there was": len(past) <= max(0, last.index)
            and len(self.past) % 4 == 0,
            "positions are out of order": all(
                a.pos + len(a.tokens) <= b.pos for a, b in pairwise(self.pieces)
            ),
            "a pinned span is out of order": all(
                0 <= start < stop
                for span in (*pinned.spans, *pinned.held)
                for start, stop in span.ranges
            ),
            "what is held is not in the window": all(
                len(span.ranges) == 1
                and len(span.tokens) == span.ranges[0][1] - span.ranges[0][0]
                and last.index <= span.ranges[0][0]
                and span.ranges[0][1] <= self.n_tokens
                and self.ledger.n_before(span.ranges[0][0]) >= min(self.n_keep, self.n_live)
                for span in pinned.held
            ),
            "what is held overlaps": all(
                a.ranges[0][1] <= b.ranges[0][0]
                for a, b in pairwise(sorted(pinned.held, key=lambda span: span.ranges))
            ),
            "too much is held": self.n_keep + pinned.n_held < self.n_ctx,
            "a piece is empty": all(piece.tokens for piece in self.pieces[:-1]),
            "a position is out of bounds": not self.pieces
            or (self.pieces[0].pos >= 0 and last.pos + len(last.tokens) <= LARGEST_POSITION),
            "a place for evictions is out of order": all(a < b for a, b in pairwise(ends)),
        }
        for what, holds in sound.items():
            if not holds:
                raise SessionError(f"the saved stream is damaged: {what}")
