"""Ctrl-C must not tear cache and ledger apart."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from streamsink.errors import StreamsinkError


class Exclusive:
    """A section that one thread at a time may enter, and in which Ctrl-C waits until its end.

    Python raises `KeyboardInterrupt` between any two bytecodes of the main thread, so also between
    a change of the cache and its entry in the ledger. Inside this section the signal is noted, and
    handed to its own handler when the section ends.

    Parameters
    ----------
    busy : str
        What a second thread is told.
    before, after : callable
        Called on the way in and, whatever happened, on the way out; the section is free then.
    """

    def __init__(
        self, busy: str, before: Callable[[], object], after: Callable[[], object]
    ) -> None:
        self._busy = busy
        self._before = before
        self._after = after
        self._lock = threading.Lock()
        self._noted: tuple[int, FrameType | None] | None = None
        self._handler: Any = None

    def __enter__(self) -> None:
        self._before()
        if not self._lock.acquire(blocking=False):
            raise StreamsinkError(self._busy)
        self._noted = self._handler = None
        if threading.current_thread() is threading.main_thread():
            handler = signal.getsignal(signal.SIGINT)
            # Only a Python handler can tear anything; one set from C (None) or SIG_IGN cannot.
            if callable(handler):
                self._handler = handler
                signal.signal(signal.SIGINT, self._note)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        handler, noted = self._handler, self._noted
        if handler is not None:
            signal.signal(signal.SIGINT, handler)
        self._lock.release()
        try:
            if noted is not None:
                handler(*noted)
        finally:
            self._after()

    def deliver(self) -> None:
        """Let a Ctrl-C that has come act now: nothing is half done at this moment."""
        noted, self._noted = self._noted, None
        if noted is not None:
            self._handler(*noted)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self._noted = (signum, frame)
