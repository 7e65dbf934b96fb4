"""Writing that is done while somebody reads or types: one thing at a time, the newest wins."""

from __future__ import annotations

import threading
from collections.abc import Callable

from streamsink.system.closing import Closing


class Saver(Closing):
    """Does what it is given in a thread of its own, one after another.

    What waits while something is under way gives place to what comes after it: of many states of a
    conversation only the newest has to be written. At its end, and at that of the process, what was
    given last is done.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: Callable[[], object] | None = None
        # Not a daemon: a process that ends waits for it.
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def is_busy(self) -> bool:
        """Whether something is under way."""
        return self._thread is not None

    def give(self, work: Callable[[], object]) -> None:
        """Have something done, soon; it takes the place of what waits."""
        with self._lock:
            self._waiting = work
            thread = self._thread
            if thread is not None and thread.ident is not None:
                return
            self._thread = thread = threading.Thread(target=self._work, name="streamsink-saver")
        try:
            thread.start()
        except RuntimeError:  # no thread is to be had
            self._work()

    def check(self) -> None:
        """Raise what was raised in the thread, once; the newest error if there are several."""
        with self._lock:
            error, self._error = self._error, None
        if error is not None:
            raise error

    def wait(self) -> None:
        """Wait until all is done; raise as `check` does."""
        while (thread := self._thread) is not None:
            if thread.ident is None:  # Ctrl-C came before it was started
                self._work()
            else:
                thread.join()
        self.check()

    def close(self) -> None:
        """Wait until all is done; raise as `check` does."""
        self.wait()

    def _work(self) -> None:
        while True:
            with self._lock:
                work, self._waiting = self._waiting, None
                if work is None:
                    self._thread = None
                    return
            try:
                work()
            except BaseException as error:
                with self._lock:
                    self._error = error
