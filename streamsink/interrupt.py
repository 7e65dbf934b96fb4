"""Ctrl-C must not tear cache and ledger apart, nor must a second thread."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from streamsink.errors import BusyError


class HeldBack:
    """Ctrl-C from now on: noted, and handed to its own handler by `deliver` or `let_go`.

    Python raises `KeyboardInterrupt` between any two bytecodes of the main thread, so also between
    a change of the cache and its entry in the ledger. Other threads never see one.
    """

    def __init__(self) -> None:
        self._noted: tuple[int, FrameType | None] | None = None
        self._handler: Any = None
        if threading.current_thread() is threading.main_thread():
            handler = signal.getsignal(signal.SIGINT)
            # Only a Python handler can tear anything; one set from C (None) or SIG_IGN cannot.
            if callable(handler):
                self._handler = handler
                signal.signal(signal.SIGINT, self._note)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self._noted = (signum, frame)

    def deliver(self) -> None:
        """Let a Ctrl-C that has come act now."""
        noted, self._noted = self._noted, None
        if noted is not None:
            self._handler(*noted)

    def let_go(self) -> None:
        """Hold back no longer."""
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
        # Read only now: until the handler was back, one could still be noted.
        self.deliver()


class Exclusive:
    """A section that one thread at a time may enter, and in which Ctrl-C waits until its end.

    Sections with one lock exclude one another. Nobody waits: whoever comes second is told so.

    Parameters
    ----------
    lock : Lock
        What the section holds.
    before : callable, optional
        Called on the way in; what it raises keeps the section shut.
    after : callable, optional
        Called on the way out, whatever happened; the section is free then.
    """

    def __init__(
        self,
        lock: threading.Lock,
        before: Callable[[], object] = lambda: None,
        after: Callable[[], object] = lambda: None,
    ) -> None:
        self._lock = lock
        self._before = before
        self._after = after
        self._held: HeldBack | None = None

    def __enter__(self) -> None:
        # Held back before the lock is taken and until it is free again: a Ctrl-C in between would
        # leave it taken for good.
        held = HeldBack()
        if not self._lock.acquire(blocking=False):
            held.let_go()
            raise BusyError(
                "this stream is in the midst of another call: give each thread its own stream"
            )
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
        try:
            self._release()
        finally:
            self._after()

    def deliver(self) -> None:
        """Let a Ctrl-C that has come act now: nothing is half done at this moment."""
        if self._held is not None:
            self._held.deliver()

    def _release(self) -> None:
        held, self._held = self._held, None
        self._lock.release()
        if held is not None:
            held.let_go()
