"""How far something is: tokens that are read, weights that are loaded, and a line that tells it."""

from __future__ import annotations

import io
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from streamsink.cli import life, terminal
from streamsink.core.policy import SinkPolicy
from streamsink.engine.stream import Stream
from streamsink.model import Model
from tests.fake_backend import FakeBackend


class SlowBackend(FakeBackend):
    """Decodes when it may."""

    def __init__(self, n_cells: int) -> None:
        super().__init__(n_cells)
        self.may = threading.Semaphore(0)

    def decode(self, *given: Any, **more: Any) -> None:
        assert self.may.acquire(timeout=30)
        super().decode(*given, **more)


def test_another_thread_sees_how_much_is_unread() -> None:
    backend = SlowBackend(128)
    stream = Stream(backend, SinkPolicy(4), 128)
    feeding = threading.Thread(target=stream.feed, args=([7] * 100,))
    feeding.start()
    seen = []
    while feeding.is_alive():
        seen.append(stream.n_unread)
        backend.may.release()
        time.sleep(0.01)
    assert max(seen) == 100
    assert seen[1:] == sorted(seen[1:], reverse=True)
    assert stream.n_unread == 0


def test_loading_tells_how_far_it_is_and_can_be_ended(tiny_path: Path) -> None:
    seen: list[float] = []
    with Model.open(tiny_path, progress=seen.append):
        pass
    assert (seen, seen[-1]) == (sorted(seen), 1.0)

    class Enough(BaseException):
        pass

    def stop(done: float) -> None:
        raise Enough

    with pytest.raises(Enough):
        Model.open(tiny_path, progress=stop)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A terminal."""
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80)
    monkeypatch.setattr(terminal, "is_shown", lambda: True)
    monkeypatch.setattr(terminal, "console", lambda **_: console)
    monkeypatch.setattr(life, "EVERY", 0.01)
    return screen


def test_what_is_quick_says_nothing(shown: io.StringIO) -> None:
    with life.Life(lambda: "slow"):
        pass
    assert shown.getvalue() == ""


def test_what_is_slow_says_how_far_it_is(
    shown: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(life, "AFTER", 0.0)
    backend = SlowBackend(128)
    stream = Stream(backend, SinkPolicy(4), 128)
    with life.reading(stream, "other"):
        feeding = threading.Thread(target=stream.feed, args=([7] * 100,))
        feeding.start()
        deadline = time.monotonic() + 30
        while "reading 0 of 100 tokens" not in shown.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
        backend.may.release(1000)
        feeding.join()
        while "other" not in shown.getvalue().rpartition("tokens")[2]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert shown.getvalue().endswith("\x1b[2K")  # wiped out


def test_beside_no_terminal_it_is_silent() -> None:
    with life.Life(lambda: pytest.fail("nobody asked")):
        pass


def test_ctrl_c_while_weights_are_loaded_is_never_lost(
    tiny_path: Path, ctrl_c_interrupts: None
) -> None:
    """llama.cpp calls back all the time, and what is raised in a callback is gone."""
    for at in range(12):
        seen: list[float] = []

        def strike(done: float, at: int = at, seen: list[float] = seen) -> None:
            seen.append(done)
            if len(seen) == at + 1:
                signal.raise_signal(signal.SIGINT)

        try:
            with Model.open(tiny_path, progress=strike):
                pass
        except KeyboardInterrupt:
            continue
        assert len(seen) <= at, "it was lost"
