"""Cut off at any line of core and engine, a stream goes on as if nothing had happened.

Signals wait until a step is done (`streamsink.system.interrupt`), but nothing depends on it: here a
tracer raises at a line, and the script then goes on.
"""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import streamsink.core
import streamsink.engine
from streamsink.core.policy import SinkPolicy
from streamsink.engine.stream import Stream
from tests.fake_backend import FakeBackend
from tests.faulty_backend import MET, FaultyBackend
from tests.test_faults import Played, Script, assert_agreement, begin_again, flat, walk
from tests.test_stream_machine import N_CTX

HOMES = tuple(
    str(Path(package.__file__ or "").parent) for package in (streamsink.core, streamsink.engine)
)
STRIDE = 29
"""Every so many lines are tried, from another first one for each setting."""


class CutOff(KeyboardInterrupt):
    """What the tracer raises, as the handler of Ctrl-C does."""


class Raised(Exception):
    """What it raises as a handler of one's own may."""


KINDS = (CutOff, Raised)


class Tracer:
    """Raises at the nth line that is executed in core or engine, once."""

    def __init__(self, nth: int) -> None:
        self.nth = nth
        self.n_lines = 0
        self.where = ""

    def __call__(self, frame: FrameType, event: str, _: object) -> Any:
        if not frame.f_code.co_filename.startswith(HOMES):
            return None
        if event == "line":
            self.n_lines += 1
            if self.n_lines == self.nth and _looks(frame):
                self.nth += 1
            elif self.n_lines == self.nth:
                self.where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
                raise KINDS[self.nth % 2]("cut off")
        return self


def _looks(frame: FrameType | None) -> bool:
    """Whether this is a look at the stream, or a change of its policy, between two calls.

    Or a step that is about to be given out, or a section about to be left: there Python does not
    look for signals, but a tracer is told of the line.
    """
    assert frame
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
    if line == "yield step" or line.startswith("with self._"):
        return True
    while frame:
        code = frame.f_code
        if code.co_filename.endswith("reporting.py"):
            return True
        called = frame.f_locals.get("body")  # streamsink.engine.task: call
        if called is not None and code.co_name == "called" and _is_look(called):
            return True
        frame = frame.f_back
    return False


def _is_look(called: Callable[..., object]) -> bool:
    return called.__name__ == "change" or called.__module__.endswith("reporting")


@contextmanager
def traced(nth: int) -> Iterator[Tracer]:
    """Trace, but not what closes the stream."""
    tracer = Tracer(nth)
    sys.settrace(tracer)
    try:
        yield tracer
    finally:
        sys.settrace(None)


class CutOffPlayed(Played):
    """What a script came to that may be cut off anywhere."""

    def reset(self, stream: Stream) -> None:
        """Begin anew; cut off, the stream is as before or empty."""
        before = (stream.stats.index, stream.visible_tokens())
        try:
            stream.reset()
        except KINDS as error:
            self.errors.append(error)
            assert (stream.stats.index, stream.visible_tokens()) in (before, (0, []))
            stream.reset()
        self.tokens.clear()
        self.gone.clear()


def play(script: Script, policy: SinkPolicy, n_lanes: int, nth: int) -> tuple[Played, Tracer]:
    """Follow a script that is cut off at one line."""
    played = CutOffPlayed(FaultyBackend(FakeBackend(N_CTX + n_lanes - 1, n_lanes, 8)))
    with Stream(played.backend, policy, N_CTX, on_evict=played.gone.append, rebase_at=60) as stream:
        with traced(nth) as tracer:
            script(stream, played)
        played.feed(stream, [1])
        assert_agreement(stream, played.backend)
        played.evicted = stream.stats.evicted
        cells = played.backend.stream_cells()
        played.cells = [(cell.pos - cells[0].pos, cell.token, cell.value) for cell in cells]
    return played, tracer


SETTINGS = [
    (SinkPolicy(2, 1, "rotate", slack=0), 1),
    (SinkPolicy(2, 1, "reanchor", slack=5), 8),
    (SinkPolicy(2, 3, "reanchor", slack=9), 8),
    (SinkPolicy(1, 1, "rotate", slack=30), 8),
]


@pytest.mark.parametrize("first", range(len(SETTINGS)))
@pytest.mark.parametrize("script", [walk, begin_again])
def test_cut_off_at_a_line(script: Script, first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # What a call has left is looked at when all of it is over: cut off, cells are put right later.
    monkeypatch.setattr("tests.test_faults.assert_agreement", lambda *_: None)
    monkeypatch.setattr("tests.test_faults.MET", (*MET, Raised))
    flawless, tracer = play(script, *SETTINGS[first], 0)
    assert not flawless.errors
    n_anew = 0
    for nth in range(1 + first, tracer.n_lines, STRIDE):
        played, cut = play(script, *SETTINGS[first], nth)
        if not cut.where:  # all that was left are looks
            break
        where = f"line {nth}, {cut.where}"
        assert len(played.errors) == 1, where
        assert [token for token in played.tokens if token >= 0], where
        assert len(played.tokens) == len(flawless.tokens), where
        if played.backend.calls.count("clear") > flawless.backend.calls.count("clear"):
            n_anew += 1  # a shift, or cells on the move: nobody knows how far it came
            continue
        assert played.tokens == flawless.tokens, where
        assert played.cells == flawless.cells, where
        assert played.evicted == flawless.evicted, where
    assert n_anew < 0.1 * tracer.n_lines / STRIDE
    assert flat(flawless.gone)
