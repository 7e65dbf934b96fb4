"""One caller at a time, and signals wait until it is through.

What a stream holds is right wherever a call is cut off (`streamsink.core.controller`). But what was
cut off is done again, or its tokens are evaluated anew; so signals act between two steps.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _thread
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from operator import is_
from types import FrameType, TracebackType
from typing import Any, ClassVar

from streamsink.errors import BusyError

# SIGINT comes last, so that it is let go last: its handler nearly always raises.
_SIGNALS = sorted(
    signal.valid_signals() - {getattr(signal, "SIGKILL", 0), getattr(signal, "SIGSTOP", 0)},
    key=lambda number: number == signal.SIGINT,
)

BUSY = "this stream is in the midst of another call: give each thread its own stream"


class DeferredSignals:
    """Signals from now on: noted, and handed to their own handlers by `deliver` or `let_go`.

    Python runs a signal's handler between any two bytecodes of the main thread, so also between a
    change of the cache and its entry in the ledger; and any handler may raise, as that of Ctrl-C
    does. Other threads never run one.
    """

    # All handlers at the last look, and which of them are Python's: they hardly ever change.
    _last: ClassVar[tuple[Sequence[Any], list[tuple[int, Any]]]] = [object()] * len(_SIGNALS), []

    __slots__ = ("_handlers", "_noted")

    def __init__(self) -> None:
        self._noted: list[tuple[int, FrameType | None]] = []
        self._handlers: list[tuple[int, Any]] = []
        if _thread.get_ident() != threading.main_thread().ident:
            return
        # The module behind `signal`, which takes 40 us for all of them and this one 2.
        found = tuple(map(_signal.getsignal, _SIGNALS))
        last, handled = DeferredSignals._last
        if not all(map(is_, found, last)):
            # Only a Python handler can tear anything; one set from C (None) or SIG_IGN cannot.
            handled = [one for one in zip(_SIGNALS, found, strict=True) if callable(one[1])]
            DeferredSignals._last = found, handled
        self._handlers = handled
        try:
            for number, _ in handled:
                _signal.signal(number, self._note)
        except BaseException:  # of a signal that is not yet held back
            self.let_go()
            raise

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self._noted.append((signum, frame))

    def deliver(self) -> None:
        """Let signals that have come act now; the first that raises ends it."""
        while self._noted:
            number, frame = self._noted.pop(0)
            dict(self._handlers)[number](number, frame)

    def let_go(self) -> None:
        """Hold back no longer."""
        raised: BaseException | None = None
        left = len(self._handlers)
        while left:
            try:
                while left:
                    # It runs handlers that are back already, and may raise before it sets this one.
                    _signal.signal(*self._handlers[left - 1])
                    left -= 1
            except BaseException as error:
                raised = error
        # Read only now: until the handlers were back, one could still be noted.
        if self._noted:
            self.deliver()
        if raised is not None:
            raise raised


@contextlib.contextmanager
def deferred() -> Iterator[DeferredSignals]:
    """Hold signals back in a block.

    For native code that calls back: what a signal's handler raises in a callback is lost.
    """
    signals = DeferredSignals()
    try:
        yield signals
    finally:
        signals.let_go()


class Door:
    """What sections that exclude one another share: one thread at a time is within.

    Attributes
    ----------
    guest : int or None
        A thread that is within and may enter sections in the section that it holds.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.guest: int | None = None

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Be within, without holding signals back: for who waits in an event loop.

        Raises
        ------
        BusyError
            Somebody is within.
        """
        if not self.lock.acquire(blocking=False):
            raise BusyError(BUSY)
        try:
            yield
        finally:
            self.lock.release()

    @contextlib.contextmanager
    def left_open(self) -> Iterator[None]:
        """Let the thread that is within enter further sections, one after another."""
        self.guest = threading.get_ident()
        try:
            yield
        finally:
            self.guest = None


class Exclusive:
    """A section that one thread at a time may enter, and in which signals wait until its end.

    Sections with one door exclude one another. Nobody waits: whoever comes second is told so.

    Parameters
    ----------
    door : Door
        What the section holds.
    before : callable, optional
        Called on the way in; what it raises keeps the section shut.
    after : callable, optional
        Called on the way out, whatever happened; the section is free then. Of sections within
        another one, the outermost calls it.
    """

    def __init__(
        self,
        door: Door,
        before: Callable[[], object] = lambda: None,
        after: Callable[[], object] = lambda: None,
    ) -> None:
        self._door = door
        self._before = before
        self._after = after
        self._held: DeferredSignals | None = None
        self._is_within = False

    def __enter__(self) -> None:
        door = self._door
        if door.guest is not None and door.guest == threading.get_ident():
            self._before()
            door.guest = None
            self._is_within = True
            return
        # Held back before the lock is taken and until it is free again: a signal in between would
        # leave it taken for good.
        held = DeferredSignals()
        if not door.lock.acquire(blocking=False):
            held.let_go()
            raise BusyError(BUSY)
        self._held = held
        try:
            self._before()
        except BaseException:
            self._release()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._is_within:
            self._is_within = False
            self._door.guest = threading.get_ident()
            return
        held, self._held = self._held, None
        self._door.lock.release()
        try:
            if held is not None:
                held.let_go()
        finally:
            self._after()

    def deliver(self) -> None:
        """Let signals that have come act now: nothing is half done at this moment."""
        if self._held is not None:
            self._held.deliver()

    def _release(self) -> None:
        held, self._held = self._held, None
        self._door.lock.release()
        if held is not None:
            held.let_go()
