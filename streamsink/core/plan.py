"""What is to be done to a context, as plain data: operations on cells, and tokens to decode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol, TypeAlias

import msgspec

from streamsink.core.state import State

MAIN = 0
"""The sequence that carries the stream."""
SCRATCH = 1
"""The sequence in which a sink is evaluated anew, empty in between."""
FIRST_LANE = 1
"""Sequences from here on are lanes (`streamsink.core.lanes`), empty in between. The last lane is
the stream's neighbour by number, see `streamsink.llama.context`."""


class Cells(Protocol):
    """What operations act on: the cells of one context, each of which may belong to sequences."""

    def remove(self, seq: int, start: int, stop: int) -> None:
        """See `Remove`."""

    def copy(self, source: int, target: int, start: int, stop: int) -> None:
        """See `Copy`."""

    def shift(self, seq: int, start: int, stop: int, delta: int) -> None:
        """See `Shift`."""

    def compact(self, seq: int) -> None:
        """See `Compact`."""

    def clear(self) -> None:
        """See `Clear`."""


class Remove(msgspec.Struct, frozen=True, gc=False):
    """Take the cells of positions ``[start, stop)`` out of a sequence; -1 means to its end."""

    seq: int
    start: int
    stop: int

    def act_on(self, cells: Cells) -> None:
        """Do it."""
        cells.remove(self.seq, self.start, self.stop)


class Copy(msgspec.Struct, frozen=True, gc=False):
    """Let cells of ``source`` belong to ``target`` too; ``stop`` of -1 means to its end."""

    source: int
    target: int
    start: int
    stop: int

    def act_on(self, cells: Cells) -> None:
        """Do it."""
        cells.copy(self.source, self.target, self.start, self.stop)


class Shift(msgspec.Struct, frozen=True, gc=False):
    """Change positions by ``delta``; llama.cpp rotates the keys before the next decode."""

    seq: int
    start: int
    stop: int
    delta: int

    def act_on(self, cells: Cells) -> None:
        """Do it."""
        cells.shift(self.seq, self.start, self.stop, self.delta)


class Compact(msgspec.Struct, frozen=True, gc=False):
    """Move the cells of the only sequence in use together, where that makes decoding faster."""

    seq: int

    def act_on(self, cells: Cells) -> None:
        """Do it."""
        cells.compact(self.seq)


class Clear(msgspec.Struct, frozen=True, gc=False):
    """Empty every sequence."""

    def act_on(self, cells: Cells) -> None:
        """Do it."""
        cells.clear()


Op: TypeAlias = Remove | Copy | Shift | Compact | Clear


class Rows(msgspec.Struct, frozen=True):
    """Tokens to decode in one call, at positions that follow one another.

    Attributes
    ----------
    tokens : sequence of int
        Their ids.
    pos : int
        Position of the first.
    seq : int
        The sequence that they see and are written to.
    lanes : tuple of int
        Where it is not the same for all: which lane each sees; it is written to later ones too.
    is_input : bool
        Whether they were given to the stream, rather than evaluated again.
    """

    tokens: Sequence[int]
    pos: int
    seq: int = MAIN
    lanes: tuple[int, ...] = ()
    is_input: bool = True


class Happened(msgspec.Struct, frozen=True):
    """What is told once a plan is carried out: of evictions, which tokens went.

    Attributes
    ----------
    kind : str
        As in `streamsink.core.events.Event`.
    n_tokens : int
        Tokens concerned.
    gone : range
        Indices of evicted tokens.
    cut : bool
        Whether an eviction ended within a turn or a sentence, though it should not.
    """

    kind: Literal["evict", "reanchor", "rotate", "rebase", "repin", "align"]
    n_tokens: int
    gone: range = range(0)
    cut: bool = False


class Plan(msgspec.Struct, frozen=True):
    """One step of a stream: carried out whole, or taken back.

    Attributes
    ----------
    base : State
        Where the stream stands before.
    then : State
        Where it stands when all of it is done.
    ops : tuple of Op
        What comes first.
    rows : Rows or None
        What is decoded then.
    back : tuple of Op or None
        What is done where only some of it came about, and may be done twice. ``None`` where nothing
        helps: then all live tokens are evaluated anew.
    otherwise : callable or None
        Gives the plan that is carried out with that. ``None`` means this one.
    told : tuple of Happened
        What has happened when it is carried out.
    """

    base: State
    then: State
    ops: tuple[Op, ...] = ()
    rows: Rows | None = None
    back: tuple[Op, ...] | None = None
    otherwise: Callable[[], Plan] | None = None
    told: tuple[Happened, ...] = ()

    @property
    def loses(self) -> bool:
        """Whether something leaves that does not come back by itself."""
        return any(one.gone for one in self.told)
