"""Signs of life: what takes longer than half a second says what it is, and how far."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from streamsink.cli import terminal
from streamsink.system.closing import Closing

if TYPE_CHECKING:
    from streamsink.engine.stream import Stream

AFTER, EVERY = 0.5, 0.1
"""Seconds until it is shown, and between two looks."""


class Life(Closing):
    """A line on a terminal while something is under way; nothing where nobody looks.

    Parameters
    ----------
    says : callable
        What to say, asked for again and again, in a thread of its own.
    """

    def __init__(self, says: Callable[[], str]) -> None:
        self._says = says
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        if terminal.is_shown():
            self._thread = threading.Thread(target=self._watch, name="streamsink-life", daemon=True)
            self._thread.start()

    def _watch(self) -> None:
        if self._over.wait(AFTER):
            return
        console = terminal.console(stderr=True)
        with console.status(self._line(), spinner_style="dim") as status:
            while not self._over.wait(EVERY):
                status.update(self._line())

    def _line(self) -> str:
        return terminal.line(self._says())

    def close(self) -> None:
        """Wipe it out. Twice is fine."""
        self._over.set()
        if self._thread:
            self._thread.join()


def speed(n_read: int, seconds_reading: float, n_said: int, seconds_saying: float) -> str:
    """How fast it went, in numbers for people."""
    return (
        f"read {n_read:,} tokens in {seconds_reading:.1f} s{_rate(n_read, seconds_reading)}, "
        f"wrote {n_said:,} in {seconds_saying:.1f} s{_rate(n_said, seconds_saying)}"
    )


def _rate(n: int, seconds: float) -> str:
    return f" ({n / seconds:,.0f} tok/s)" if seconds > 0 and n else ""


def reading(stream: Stream, otherwise: str = "thinking") -> Life:
    """Tell how much of what a stream was given is read; or something else, where nothing waits."""
    most = 0

    def says() -> str:
        nonlocal most
        left = stream.n_unread
        most = max(most, left)
        return f"reading {most - left:,} of {most:,} tokens" if most > 1 and left else otherwise

    return Life(says)
