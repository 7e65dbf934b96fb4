"""Ctrl-C and a second thread: neither tears a stream, and both are told."""

from __future__ import annotations

import asyncio
import itertools
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from streamsink.chat.template import ChatTemplate
from streamsink.core.events import Evicted, Step
from streamsink.core.policy import SinkPolicy
from streamsink.core.sampling import Sampling
from streamsink.engine.stream import Stream
from streamsink.errors import (
    BusyError,
)
from streamsink.system import interrupt
from streamsink.system.interrupt import Door, Exclusive
from tests.fake_backend import FakeBackend
from tests.test_stream_machine import N_CTX

pytestmark = pytest.mark.usefixtures("ctrl_c_interrupts")

GREEDY = Sampling(temperature=0)


def lines_within(section: Exclusive, act: Callable[[], object], nth: int) -> bool:
    """Enter and leave a section, and act at the nth line that is executed for it; whether it is."""
    n_lines = -1

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal n_lines
        if frame.f_code.co_filename != interrupt.__file__:
            return None
        n_lines += event == "line"
        if event == "line" and n_lines == nth:
            act()
        return trace

    sys.settrace(trace)
    try:
        with section:
            pass
    finally:
        sys.settrace(None)
    return n_lines >= nth


def test_ctrl_c_on_the_threshold() -> None:
    """Whichever line it meets, it is neither lost nor does it leave the section shut."""
    handler = signal.getsignal(signal.SIGINT)
    for nth in itertools.count():
        door = Door()
        interrupted = reached = False
        try:
            reached = lines_within(Exclusive(door), lambda: signal.raise_signal(signal.SIGINT), nth)
        except KeyboardInterrupt:
            interrupted = True
        assert not door.lock.locked(), nth
        assert signal.getsignal(signal.SIGINT) == handler, nth
        if not interrupted:
            assert not reached, nth
            break
    assert nth > 20


class Gate(FakeBackend):
    """A backend that stops within a chosen call until it is let go."""

    def __init__(self, call: str) -> None:
        super().__init__(N_CTX)
        self.inside = threading.Event()
        self.go = threading.Event()
        self.shut = False
        plain = getattr(self, call)

        def wait(*arguments: Any) -> Any:
            if self.shut:
                self.inside.set()
                assert self.go.wait(10)
            return plain(*arguments)

        setattr(self, call, wait)


def grown(stream: Stream) -> None:
    stream.policy = SinkPolicy(3)


def awaited(stream: Stream) -> list[Step]:
    async def steps() -> list[Step]:
        return [step async for step in stream.agenerate(2, sampling=GREEDY)]

    return asyncio.run(steps())


FILE = Path(tempfile.mkdtemp()) / "a.session"
SAVED = Stream(FakeBackend(N_CTX), SinkPolicy(4), N_CTX)._controller.snapshot()

OPERATIONS: dict[str, Callable[[Stream], object]] = {
    "feed": lambda stream: stream.feed("more"),
    "score": lambda stream: stream.score("more"),
    "generate": lambda stream: list(stream.generate(2, sampling=GREEDY)),
    "afeed": lambda stream: asyncio.run(stream.afeed("more")),
    "agenerate": awaited,
    "align": lambda stream: stream.align([1, 2, 3]),
    "aalign": lambda stream: asyncio.run(stream.aalign([1, 2, 3])),
    "fork": Stream.fork,
    "repin": lambda stream: stream.repin("other"),
    "pin": lambda stream: stream.pin(3, 6),
    "unpin": Stream.unpin,
    "swap_system": lambda stream: stream.swap_system([1, 2, 3], (0, 2)),
    "transaction": lambda stream: stream.transaction().__enter__(),
    "tokens_between": lambda stream: stream.tokens_between(1, 3),
    "pinned_ranges": lambda stream: stream.pinned_ranges,
    "begin_turn": Stream.begin_turn,
    "capture": Stream.capture,
    "logits": Stream.logits,
    "rewind": lambda stream: stream.rewind(stream._controller.ledger.next_index - 1),
    "save": lambda stream: stream.save(FILE),
    "restore": lambda stream: stream.restore(SAVED, FakeBackend(N_CTX).cache_key, None),
    "stats": lambda stream: stream.stats,
    "visible": Stream.visible,
    "visible_tokens": Stream.visible_tokens,
    "policy": grown,
    "change": lambda stream: stream.change(n_discard=2),
    "pin_system": lambda stream: stream.pin_system(3),
    "reset": Stream.reset,
    "close": Stream.close,
}


def carry_out(name: str, stream: Stream, results: list[object]) -> None:
    results.append(OPERATIONS[name](stream))


UNCHANGING = {"n_cells", "n_unread", "bos", "pins", "text", "tokenize", "tokenize_parts"}


def test_no_operation_is_forgotten() -> None:
    kinds = [kind for kind in Stream.__mro__ if kind.__module__.startswith("streamsink.engine")]
    public = {name for kind in kinds for name in vars(kind) if not name.startswith("_")}
    assert public == {*OPERATIONS, *UNCHANGING}


@pytest.mark.parametrize("second", OPERATIONS)
@pytest.mark.parametrize(
    ("first", "call"),
    [("feed", "decode"), ("score", "remove"), ("generate", "sample"), ("reset", "clear")],
)
def test_a_second_thread_is_told_so_and_the_first_goes_on(
    first: str, call: str, second: str
) -> None:
    ends: list[object] = []
    for disturbed in (False, True):
        backend = Gate(call)
        stream = Stream(backend, SinkPolicy(2), N_CTX)
        stream.feed("to begin with")
        backend.shut = disturbed
        results: list[object] = []
        thread = threading.Thread(target=carry_out, args=(first, stream, results))
        thread.start()
        if disturbed:
            assert backend.inside.wait(10)
            with pytest.raises(BusyError, match="in the midst of another call"):
                OPERATIONS[second](stream)
            for name in UNCHANGING:
                getattr(stream, name)
            backend.go.set()
        thread.join(10)
        assert len(results) == 1
        cells = [(cell.token, cell.pos, cell.value) for cell in backend.cells]
        ends.append((repr(results), cells, replace(stream.stats, feed_rate=0, rate=0)))
        stream.feed("it goes on")
    assert ends[0] == ends[1]


def test_a_generation_between_two_steps_is_not_busy() -> None:
    backend = FakeBackend(N_CTX)
    with Stream(backend, SinkPolicy(2), N_CTX) as stream:
        stream.feed("to begin with")
        steps = stream.generate(5, sampling=GREEDY, ignore_eos=True)
        said = [next(steps).token]
        threads = [
            threading.Thread(target=stream.feed, args=("more",)),
            threading.Thread(target=lambda: said.append(next(steps).token)),
        ]
        for thread in threads:
            thread.start()
            thread.join(10)
        assert stream.visible_tokens()[-6:] == [said[0], *b"more", said[1]]


def test_what_is_told_of_a_full_stream_can_be_asked_for() -> None:
    """The section is free again when callbacks are called."""
    seen: list[int] = []
    with Stream(
        FakeBackend(N_CTX),
        SinkPolicy(2),
        N_CTX,
        on_evict=lambda gone: seen.append(stream.stats.evicted),
    ) as stream:
        stream.feed(list(range(N_CTX + 2)))
    assert seen == [2, 2]


def test_a_token_that_nobody_has_seen_is_not_in_the_stream() -> None:
    """A callback fails on the way out of the step that sampled it."""

    def fail(gone: Evicted) -> None:
        raise RuntimeError("the disk is full")

    with Stream(FakeBackend(N_CTX), SinkPolicy(2), N_CTX, on_evict=fail) as stream:
        stream.feed(list(range(N_CTX)))
        steps = stream.generate(5, sampling=GREEDY, ignore_eos=True)
        said = [next(steps).token]
        with pytest.raises(RuntimeError, match="disk"):
            next(steps)
        assert stream.visible_tokens()[-1:] == said
        assert stream.stats.index == N_CTX + 1


def test_a_closed_stream_still_tells_what_it_was() -> None:
    stream = Stream(FakeBackend(N_CTX), SinkPolicy(2), N_CTX)
    stream.feed([1, 2, 3])
    stream.close()
    assert (stream.stats.index, stream.visible_tokens()) == (3, [1, 2, 3])


def test_one_chat_template_from_several_threads() -> None:
    template = ChatTemplate("", {})

    def renders(name: str) -> bool:
        said = [f"{name}{at}" for at in range(150)]
        found = [template.render([{"role": "user", "content": text}], False) for text in said]
        return found == [f"<|im_start|>user\n{text}<|im_end|>\n" for text in said]

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(renders, "abcd"))


def until_interrupted(template: ChatTemplate, timer: threading.Timer) -> None:
    timer.start()
    while True:
        template.render([{"role": "user", "content": "before"}], False)


def test_after_an_interrupted_template_the_next_text_is_its_own() -> None:
    template = ChatTemplate("{{ messages[0].content }}", {})
    endless = ChatTemplate(
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", {}
    )
    for chosen, delay in [(template, 1e-4), (template, 5e-4), (endless, 0.2), (template, 2e-3)]:
        timer = threading.Timer(delay, lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            until_interrupted(chosen, timer)
        timer.join()
        assert template.render([{"role": "user", "content": "after"}], False) == "after"
