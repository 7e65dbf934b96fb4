"""The fake backend, with a fault at a chosen call.

What a call raises is what `streamsink.llama.context` would raise there, and what it leaves behind
is what that leaves behind: nothing has changed, but after a `TornError`. A Ctrl-C is a real signal,
sent before or after the call.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from streamsink.core.capabilities import Capabilities
from streamsink.core.events import Threads
from streamsink.core.ledger import Span
from streamsink.core.plan import MAIN
from streamsink.core.sampling import Sampling
from streamsink.core.snapshot import CacheKey
from streamsink.engine.context import Logits, Outputs, Sampler
from streamsink.errors import (
    CacheError,
    CapabilityError,
    DecodeError,
    StreamsinkError,
    TornError,
    UsageError,
)
from tests.fake_backend import Cell, FakeBackend, FakeTokenizer

Call: TypeAlias = Literal[
    "decode",
    "decode_lanes",
    "n_lanes",
    "remove",
    "copy",
    "shift",
    "compact",
    "clear",
    "sampler",
    "sample",
]
Act: TypeAlias = Callable[["FaultyBackend"], object]
CALLS: tuple[Call, ...] = Call.__args__  # type: ignore[attr-defined]
DECODES: tuple[Call, ...] = ("decode", "decode_lanes", "n_lanes")
"""Calls that run llama_decode: the question for lanes tries them."""
MET = (StreamsinkError, KeyboardInterrupt, MemoryError)
"""What a struck call raises, or the call of the stream around it."""


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong.

    Attributes
    ----------
    calls : tuple of str
        The calls that can meet it.
    before, after : callable
        What happens then; whatever raises before the call stands in for it.
    """

    name: str
    calls: tuple[Call, ...]
    before: Act = lambda backend: None
    after: Act = lambda backend: None

    def __repr__(self) -> str:
        return self.name


def raises(error: Callable[[], BaseException]) -> Act:
    """Nothing has changed, and it says why."""

    def act(backend: FaultyBackend) -> None:
        raise error()

    return act


def decode_returns(code: int) -> Act:
    """The native layer has taken out what was left (see `NativeContext._decode`)."""
    return raises(lambda: DecodeError(f"injected (llama_decode returned {code})", code))


def press_ctrl_c(backend: FaultyBackend) -> None:
    """A signal, as from a terminal."""
    signal.raise_signal(signal.SIGINT)


def lose_cells(backend: FaultyBackend) -> None:
    """The cells were taken out to be moved, and did not go back in."""
    backend.fake.cells = []
    backend.n_torn += 1
    raise TornError("injected: no cells went back in")


def abort_shift(backend: FaultyBackend) -> None:
    """Some layers' keys were rotated, some were not; a decode says so."""
    if not backend.shift_waits:
        decode_returns(2)(backend)
    for cell in backend.fake.cells:
        cell.value += 1
    backend.n_torn += 1
    raise TornError("injected: a K-shift was aborted")


FAULTS = (
    Fault("no-cells", DECODES, decode_returns(1)),
    Fault("aborted", DECODES, decode_returns(2)),
    Fault("refused", DECODES, decode_returns(-1)),
    Fault("no-allocation", DECODES, decode_returns(-2)),
    # A backend that cannot compute, its threads or its device busy, answers so.
    Fault("not-computed", DECODES, decode_returns(-3)),
    Fault("aborted-in-shift", ("decode", "decode_lanes"), abort_shift),
    Fault("no-change", ("remove", "copy"), raises(lambda: CacheError("injected"))),
    Fault("no-shift", ("shift",), raises(lambda: CapabilityError("injected"))),
    Fault("cells-lost", ("compact",), lose_cells),
    Fault("no-grammar", ("sampler",), raises(lambda: UsageError("injected"))),
    Fault("no-memory", CALLS, raises(MemoryError)),
    Fault("interrupt", CALLS, raises(KeyboardInterrupt)),
    Fault("ctrl-c-before", CALLS, before=press_ctrl_c),
    Fault("ctrl-c-after", CALLS, after=press_ctrl_c),
)


class Due(NamedTuple):
    """A fault, and the call at which it strikes, counted from 0; a call cannot meet every fault."""

    at: int
    fault: Fault


class FaultyBackend:
    """Implements `streamsink.engine.context.Context`.

    Attributes
    ----------
    calls : list of str
        The calls so far.
    due : list of Due
        Faults still to come. One whose call cannot meet it is dropped.
    struck : list of Fault
        Faults that have come.
    n_torn : int
        How many of them have left cells in disorder.
    """

    def __init__(self, fake: FakeBackend) -> None:
        self.fake = fake
        self.calls: list[Call] = []
        self.due: list[Due] = []
        self.struck: list[Fault] = []
        self.n_torn = 0
        self.shift_waits = False

    def strike_in(self, n_calls: int, fault: Fault) -> None:
        """Let a fault strike after so many more calls."""
        self.due.append(Due(len(self.calls) + n_calls, fault))

    @contextmanager
    def _call(self, name: Call) -> Iterator[None]:
        now = [due for due in self.due if due.at == len(self.calls)]
        self.due = [due for due in self.due if due not in now]
        self.calls.append(name)
        faults = [due.fault for due in now if name in due.fault.calls]
        self.struck += faults
        for fault in faults:
            fault.before(self)
        yield
        for fault in faults:
            fault.after(self)

    def decode(self, tokens: Sequence[int], pos: int, seq: int, rows: Outputs) -> None:
        with self._call("decode"):
            self.fake.decode(tokens, pos, seq, rows)
            self.shift_waits = False

    def decode_lanes(
        self, tokens: Sequence[int], pos: int, lanes: Sequence[int], rows: Outputs
    ) -> None:
        with self._call("decode_lanes"):
            self.fake.decode_lanes(tokens, pos, lanes, rows)
            self.shift_waits = False

    @property
    def n_lanes(self) -> int:
        with self._call("n_lanes"):
            return self.fake.n_lanes

    def remove(self, seq: int, start: int, stop: int) -> None:
        with self._call("remove"):
            self.fake.remove(seq, start, stop)

    def copy(self, source: int, target: int, start: int, stop: int) -> None:
        with self._call("copy"):
            self.fake.copy(source, target, start, stop)

    def shift(self, seq: int, start: int, stop: int, delta: int) -> None:
        with self._call("shift"):
            self.fake.shift(seq, start, stop, delta)
            self.shift_waits = True

    def compact(self, seq: int) -> None:
        with self._call("compact"):
            self.fake.compact(seq)

    def clear(self) -> None:
        with self._call("clear"):
            self.fake.clear()
            self.shift_waits = False

    def check_sampling(self, sampling: Sampling) -> None:
        self.fake.check_sampling(sampling)

    def sampler(self, sampling: Sampling, recent: Sequence[int]) -> Sampler:
        with self._call("sampler"):
            return self.fake.sampler(sampling, recent)

    def sample(self, sampler: Sampler, index: int) -> int:
        with self._call("sample"):
            return self.fake.sample(sampler, index)

    # -- what cannot fail -----------------------------------------------------------------------

    @property
    def capabilities(self) -> Capabilities:
        return self.fake.capabilities

    @property
    def tokenizer(self) -> FakeTokenizer:
        return self.fake.tokenizer

    @property
    def n_cells(self) -> int:
        return self.fake.n_cells

    @property
    def n_batch(self) -> int:
        return self.fake.n_batch

    @property
    def threads(self) -> Threads:
        return self.fake.threads

    @property
    def max_output_rows(self) -> int:
        return self.fake.max_output_rows

    def save(self) -> memoryview:
        if self.shift_waits:
            raise CacheError("keys wait to be rotated")
        return self.fake.save()

    def load(self, cells: memoryview, end: int) -> None:
        self.fake.load(cells, end)
        self.shift_waits = False

    @property
    def cache_key(self) -> CacheKey:
        return self.fake.cache_key

    def fork(self) -> FakeBackend:
        return self.fake.fork()

    def end(self, seq: int) -> int:
        return self.fake.end(seq)

    def is_whole(self, spans: Sequence[Span]) -> bool:
        return self.fake.is_whole(spans)

    def put_logits(self, row: Logits) -> None:
        self.fake.put_logits(row)

    def logits(self) -> Logits:
        return self.fake.logits()

    def close(self) -> None:
        self.fake.close()

    # -- looking --------------------------------------------------------------------------------

    def stream_cells(self) -> list[Cell]:
        """Cells of the stream by position."""
        cells = [cell for cell in self.fake.cells if MAIN in cell.sequences]
        return sorted(cells, key=lambda cell: cell.pos)
