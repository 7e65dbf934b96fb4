"""What a stream tells of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import msgspec

from streamsink.core.policy import Placement

Finish: TypeAlias = Literal["eos", "stop", "grammar", "length"]


class Step(msgspec.Struct, frozen=True, gc=False):
    """One generated token.

    Attributes
    ----------
    token : int
        Its id.
    index : int
        Its place in the stream.
    text : str
        Text that became certain with it: whole characters, stop strings cut off, perhaps empty.
    finish : {"eos", "stop", "grammar", "length"} or None
        Why this is the last step: the model ended, a stop string was met, the grammar lets nothing
        follow, ``max_tokens`` came.
    """

    token: int
    index: int
    text: str
    finish: Finish | None = None


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


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to the cache.

    Attributes
    ----------
    kind : {"evict", "reanchor", "rotate", "rebase", "repin", "align", "save", "restore"}
        What happened.
    index : int
        Index of the first token concerned; for all but ``evict`` the index of the next token.
    n_tokens : int
        Tokens evicted, evaluated again, moved, taken out or saved.
    ms : float
        Milliseconds it took; what a ``rotate`` costs falls to the next decode and is not in it.
    tokens : tuple of int
        The evicted tokens; empty for the other kinds.
    cut : bool
        Whether an eviction ended within a turn or a sentence, though it should not: one alone
        filled the window.
    """

    kind: Literal["evict", "reanchor", "rotate", "rebase", "repin", "align", "save", "restore"]
    index: int
    n_tokens: int
    ms: float
    tokens: tuple[int, ...] = ()
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Restored:
    """What going on from a session came to.

    Attributes
    ----------
    n_evaluated : int
        Visible tokens that were evaluated again; 0 where their cells were in the file.
    why : str
        Why, as a clause; empty for 0.
    ms : float
        Milliseconds it took.
    """

    n_evaluated: int
    why: str
    ms: float


@dataclass(frozen=True, slots=True)
class Repinned:
    """What swapping the pinned prefix came to.

    Attributes
    ----------
    n_tokens : int
        Tokens of the new prefix.
    n_evaluated : int
        Tokens that were evaluated: the prefix, or it and the window.
    n_evicted : int
        Tokens that left the window to make room.
    ms : float
        Milliseconds it took.
    start : int
        Index of the first token that was entered: below 0, for it was never part of the stream.
    """

    n_tokens: int
    n_evaluated: int
    n_evicted: int
    ms: float
    start: int = 0


@dataclass(frozen=True, slots=True)
class Aligned:
    """What making a stream's tokens those of an edited history came to.

    Attributes
    ----------
    n_kept : int
        Visible tokens that stay.
    n_taken_out : int
        Visible tokens that the history does not hold, or holds behind something new.
    n_forgotten : int
        Tokens of the history that the stream does not see and that were not fed again.
    n_new : int
        Tokens that were fed: from the first one on that is new.
    n_again : int
        Tokens that stay, or were forgotten, and were evaluated again all the same.
    why : str
        Why so many were, as a clause; empty for 0.
    ms : float
        Milliseconds it took.
    """

    n_kept: int
    n_taken_out: int
    n_forgotten: int
    n_new: int
    n_again: int
    why: str
    ms: float


class Threads(NamedTuple):
    """CPU threads of a context.

    Attributes
    ----------
    n : int
        How many there are now.
    n_max : int
        How many there would be if nobody else used the cores.
    why : str
        Why there are fewer; '' if there are not.
    """

    n: int
    n_max: int
    why: str = ""

    def __str__(self) -> str:
        """In a few words: ``1 of 2: others use the cores``."""
        return f"{self.n} of {self.n_max}: {self.why}" if self.why else str(self.n)


@dataclass(frozen=True, slots=True)
class Stats:
    """A stream in numbers.

    Attributes
    ----------
    index : int
        Tokens taken in so far.
    sees : tuple of (int, int)
        Index ranges that the next token can see, half-open, oldest first.
    positions : tuple of int
        Position of the oldest live token, and the next position.
    pinned, window : int
        Live tokens: pinned ones, and the others.
    evicted, evictions : int
        Tokens forgotten, and how often.
    reanchors, shifts, rebases : int
        Sinks evaluated anew, K-shifts, positions brought back.
    gap, slack : int
        Positions the sink trails the window, and may trail it.
    placement : str
        The placement in force, and `why` it was chosen.
    feed_rate, rate : float
        Tokens per second: taken in by `Stream.feed` and `Stream.score` so far, and generated by
        the latest `Stream.generate`. 0 before the first.
    threads : Threads
        CPU threads that decode single tokens.
    """

    index: int
    sees: tuple[tuple[int, int], ...]
    positions: tuple[int, int]
    pinned: int
    window: int
    evicted: int
    evictions: int
    reanchors: int
    shifts: int
    rebases: int
    gap: int
    slack: int
    placement: Placement
    why: str
    feed_rate: float
    rate: float
    threads: Threads

    @property
    def sink_lag(self) -> int:
        """Positions the sink trails the window: ``gap``."""
        return self.gap

    @property
    def max_sink_lag(self) -> int:
        """Positions it may trail before it is brought up again: ``slack``."""
        return self.slack


@dataclass(frozen=True, slots=True)
class Visible:
    """A part of the stream that the model can still see.

    Attributes
    ----------
    start, stop : int
        Index range, half-open.
    pinned : bool
        Whether it stays for good.
    tokens : tuple of int
        Its tokens.
    text : str
        Its text, control tokens included.
    """

    start: int
    stop: int
    pinned: bool
    tokens: tuple[int, ...]
    text: str
