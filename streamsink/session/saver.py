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
        self._changed = threading.Condition()
        self._waiting: Callable[[], object] | None = None
        self._is_busy = False
        self._error: BaseException | None = None

    @property
    def is_busy(self) -> bool:
        """Whether something is under way."""
        return self._is_busy

    def give(self, work: Callable[[], object]) -> None:
        """Have something done, soon; it takes the place of what waits."""
        with self._changed:
            self._waiting = work
            if self._is_busy:
                return
            self._is_busy = True
        try:
            # Not a daemon: a process that ends waits for it.
            threading.Thread(target=self._work, name="streamsink-saver").start()
        except RuntimeError:  # no thread is to be had
            self._work()

    def check(self) -> None:
        """Raise what was raised in the thread, once; the newest error if there are several."""
        with self._changed:
            error, self._error = self._error, None
        if error is not None:
            raise error

    def wait(self) -> None:
        """Wait until all is done; raise as `check` does."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_busy)
        self.check()

    def close(self) -> None:
        """Wait until all is done; raise as `check` does."""
        self.wait()

    def _work(self) -> None:
        while True:
            with self._changed:
                work, self._waiting = self._waiting, None
                if work is None:
                    self._is_busy = False
                    self._changed.notify_all()
                    return
            try:
                work()
            except BaseException as error:
                with self._changed:
                    self._error = error
