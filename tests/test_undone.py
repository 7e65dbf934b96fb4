"""Whatever ends a call on a chat: it is carried out or undone, and there is nothing between.

Every call on a conversation meets Ctrl-C, a failed decode and a lack of memory at the calls that it
makes of the engine; afterwards turns and stream are those of before or those of after.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

import pytest

import streamsink.engine.base
from streamsink import session
from streamsink.chat.chat import Chat
from streamsink.chat.template import ChatTemplate
from streamsink.core.events import Step
from streamsink.core.policy import SinkPolicy
from streamsink.core.sampling import Sampling
from streamsink.engine import undo
from streamsink.engine.stream import Stream
from streamsink.errors import StreamsinkError, UsageError
from streamsink.system.interrupt import DeferredSignals
from tests.fake_backend import FakeBackend
from tests.faulty_backend import FAULTS, FaultyBackend
from tests.test_chat import SOURCE, Scripted

pytestmark = pytest.mark.usefixtures("ctrl_c_interrupts")

N_CTX = 150
MET = (KeyboardInterrupt, MemoryError, StreamsinkError)
STRIKES = [
    fault
    for fault in FAULTS
    if fault.name in ("aborted", "no-change", "no-memory", "ctrl-c-before", "ctrl-c-after")
]
BROKEN = next(fault for fault in FAULTS if fault.name == "no-memory")
LONG = "A long question, of which a part is fed before somebody loses patience: " * 2


@pytest.fixture(scope="module")
def template() -> ChatTemplate:
    """Asked for the same again and again, so it remembers what it wrote."""
    found = ChatTemplate(SOURCE, {})
    write, known = found._renderer._write, {}

    def remembered(*given: Any, **more: Any) -> str:
        key = repr((given, {**more, "now": None}))
        if key not in known:
            known[key] = write(*given, **more)
        return known[key]

    found._renderer._write = remembered  # type: ignore[method-assign]
    return found


def begun(template: ChatTemplate, policy: SinkPolicy, n_turns: int) -> tuple[Chat, FaultyBackend]:
    """A chat that has some turns."""
    fake = Scripted(N_CTX)
    backend = FaultyBackend(fake)
    chat = Chat(Stream(backend, policy, N_CTX), template, "Be kind.")
    for n in range(n_turns):
        said(chat, fake, f"Question {n}?", f"Answer {n}.")
    return chat, backend


def said(chat: Chat, fake: FakeBackend, text: str, answer: str) -> None:
    assert isinstance(fake, Scripted)
    fake.says(answer)
    assert "".join(step.text for step in chat.say(text)) == answer


def state(chat: Chat) -> Any:
    conversation = chat.conversation()
    return conversation, chat.stream.visible_tokens(), chat.stream.pins, chat.stream.policy


def saved(template: ChatTemplate, path: Path) -> tuple[session.Session, memoryview | None]:
    chat, _ = begun(template, SinkPolicy("system"), 1)
    chat.save(path)
    return session.read(path), session.read_cells(path)


OPERATIONS: dict[str, Callable[[Chat], object]] = {
    "say": lambda chat: chat.say("And so?"),
    "say long": lambda chat: chat.say(LONG),
    "pin": Chat.pin,
    "unpin": Chat.unpin,
    "change_system": lambda chat: chat.change_system("Be a pirate, and a good one."),
    "change_system exact": lambda chat: chat.change_system("Be brief.", exact=True),
    "quote": lambda chat: chat.quote(0),
    "reset": Chat.reset,
    "undo": Chat.undo,
    "retry": Chat.retry,
    "edit": lambda chat: chat.edit("Or rather?"),
    "edit long": lambda chat: chat.edit(LONG),
    "take_in": lambda chat: chat.take_in("A question from elsewhere?", "Its answer."),
}


@pytest.mark.parametrize("n_turns", [0, 1, 4])
@pytest.mark.parametrize("name", OPERATIONS)
def test_before_or_after(template: ChatTemplate, name: str, n_turns: int) -> None:
    policy = SinkPolicy("system", 8, "reanchor", 12)

    def opened() -> tuple[Chat, FaultyBackend]:
        chat, backend = begun(template, policy, n_turns)
        if name == "unpin" and n_turns:
            chat.pin()
        return chat, backend

    chat, backend = opened()
    before, n_before = state(chat), len(backend.calls)
    try:
        OPERATIONS[name](chat)
    except UsageError:  # there is nothing to do it to
        assert state(chat) == before
        return
    after = state(chat)
    ends = []
    calls = list(enumerate(backend.calls[n_before:]))
    for at, call in calls[:: 1 + len(calls) // 20]:
        for fault in STRIKES if n_turns else STRIKES[:2]:
            if call not in fault.calls:
                continue
            chat, backend = opened()
            backend.strike_in(at, fault)
            where = f"{fault} at call {at}, {call}"
            # However short it is, it may be interrupted, and the cells are copied.
            with patch.object(undo, "SHORT", -1.0):
                try:
                    OPERATIONS[name](chat)
                except MET:
                    assert state(chat) in (before, after), where
                else:
                    assert state(chat) == after, where
            ends.append(state(chat) == after)
            # It goes on from there.
            said(chat, backend.fake, "Really?", "Yes.")
            roles = [turn.role for turn in chat.messages]
            assert roles == ["user", "assistant"] * (len(roles) // 2), where
            cells = [cell.token for cell in backend.stream_cells()]
            assert cells == chat.stream.visible_tokens()[: len(cells)], where
    assert False in ends or not ends or name == "reset"


def test_what_was_evicted_comes_back(template: ChatTemplate) -> None:
    """A long question is broken off when it has pushed others out; the next logits tell."""
    policy = SinkPolicy("system", 1, "reanchor", 4)
    foreseen = []
    for interrupted in (False, True):
        chat, backend = begun(template, policy, 6)
        evicted = chat.stream.stats.evicted
        if interrupted:
            backend.strike_in(40, next(f for f in FAULTS if f.name == "ctrl-c-after"))
            with patch.object(undo, "SHORT", -1.0), pytest.raises(KeyboardInterrupt):
                chat.say(LONG)
            assert backend.struck
        assert chat.stream.stats.evicted == evicted
        said(chat, backend.fake, "And?", "So.")
        foreseen.append(chat.stream.logits().tolist())
    assert foreseen[0] == foreseen[1]


def test_a_short_question_is_taken_in_whole(template: ChatTemplate) -> None:
    """What could not be undone exactly and is done in no time is done."""
    chat, backend = begun(template, SinkPolicy("system", 1, "reanchor", 4), 6)
    backend.strike_in(9, next(f for f in FAULTS if f.name == "ctrl-c-after"))
    with pytest.raises(KeyboardInterrupt):
        chat.say("And so?")
    assert [turn.text for turn in chat.messages[-2:]] == ["And so?", ""]


def test_an_answer_that_nobody_asked_for(template: ChatTemplate) -> None:
    """An iterator that is never started, or closed before its first step."""
    policy = SinkPolicy("system")
    for close in (False, True):
        chat, backend = begun(template, policy, 1)
        steps = chat.say("Never mind.")
        if close:
            steps.close()  # type: ignore[attr-defined]
        said(chat, backend.fake, "And?", "So.")
        text = bytes(token for token in chat.stream.visible_tokens() if token < 256)
        assert b"Never mind.</s>[assistant]</s>[user]And?</s>" in text
        assert [turn.text for turn in chat.messages[2:]] == ["Never mind.", "", "And?", "So."]
        if not close:
            with pytest.raises(UsageError, match="has gone on"):
                next(steps)


def test_an_answer_has_what_the_stream_has(template: ChatTemplate) -> None:
    """Ctrl-C falls between the stream's step and the caller's note of it."""
    chat, backend = begun(template, SinkPolicy("system"), 1)
    assert isinstance(backend.fake, Scripted)
    backend.fake.says("One two three.")
    steps = chat.say("Count.")
    for _ in range(5):
        next(steps)
    answer = chat.messages[-1]
    assert answer.text == "One t"
    assert bytes(chat.stream.tokens_between(answer.start, answer.stop)) == b"One t"


def test_restoring_is_undone_too(template: ChatTemplate, tmp_path: Path) -> None:
    path = tmp_path / "a.session"
    file, cells = saved(template, path)
    for given in (cells, None):  # put back, or evaluated again
        chat, backend = begun(template, SinkPolicy("system"), 3)
        before = state(chat)
        backend.strike_in(0, BROKEN)
        fails = patch.object(backend, "load", side_effect=MemoryError) if given else nullcontext()
        with patch.object(undo, "SHORT", -1.0), pytest.raises(MemoryError), fails:
            chat.restore(file, given)
        assert state(chat) == before
        backend.due.clear()
        said(chat, backend.fake, "And?", "So.")
        assert chat.restore(file, cells).n_evaluated == 0
        assert [turn.text for turn in chat.messages] == ["Question 0?", "Answer 0."]


# -- signals ------------------------------------------------------------------------------------


class Lost(Exception):
    """What ends a transaction."""


@pytest.mark.parametrize("n_tokens", [N_CTX - 2, 2 * N_CTX])
def test_rewound_below_its_beginning(n_tokens: int) -> None:
    """What a transaction takes back of before, and overwrites, is there again once it fails."""
    text = [7 * at % 250 for at in range(n_tokens)]
    fake = FakeBackend(N_CTX + 7, 8, 8)
    with Stream(fake, SinkPolicy(4, 1, "reanchor", 9), N_CTX) as stream:
        stream.feed(text)
        logits, visible = stream.logits(), stream.visible_tokens()
        with suppress(Lost), stream.transaction():
            stream.rewind(n_tokens - 5)
            stream.feed([1, 2, 3])
            raise Lost
        assert (stream.visible_tokens(), stream.stats.index) == (visible, n_tokens)
        # Evaluated anew, the last five no longer remember what was evicted.
        assert (stream.logits() == logits).all() == (n_tokens < N_CTX)


@pytest.mark.parametrize("number", [signal.SIGALRM, signal.SIGUSR1, signal.SIGTERM])
def test_handlers_that_raise_wait_too(number: signal.Signals) -> None:
    """Any handler may raise anything, between any two bytecodes."""

    class Stop(BaseException):
        pass

    def handler(signum: int, frame: FrameType | None) -> None:
        while frame:
            if frame.f_code.co_filename == streamsink.engine.base.__file__:
                raise Stop
            frame = frame.f_back

    def disturb() -> None:
        while not over.wait(0.002):
            os.kill(os.getpid(), number)

    over = threading.Event()
    disturber = threading.Thread(target=disturb)
    before = signal.signal(number, handler)
    raised = 0
    try:
        disturber.start()
        with Stream(FakeBackend(64), SinkPolicy(4), 48) as stream:
            for fed in range(3000):
                try:
                    stream.feed([fed % 250])
                except Stop:
                    raised += 1
                assert stream._context.end(0) == stream._controller.ledger.next_pos
            over.set()
            disturber.join()
            assert stream.stats.index > 2900
    finally:
        over.set()
        signal.signal(number, before)
    assert raised > 5


def test_all_handlers_come_back() -> None:
    def one(signum: int, frame: object) -> None:
        raise RuntimeError("one")

    before = signal.signal(signal.SIGUSR1, one)
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    try:
        held = DeferredSignals()
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(RuntimeError, match="one"):
            held.let_go()
        assert [signal.getsignal(number) for number in signal.valid_signals()] == handlers
    finally:
        signal.signal(signal.SIGUSR1, before)


# -- event loops ----------------------------------------------------------------------------------


class Slow(FakeBackend):
    """A model that takes its time."""

    def sample(self, sampler: Any, index: int) -> int:
        time.sleep(0.05)
        return super().sample(sampler, index)


@pytest.mark.parametrize("n_cancels", [1, 2, 5])
def test_cancelled_however_often(n_cancels: int) -> None:
    async def play(stream: Stream) -> list[Step]:
        seen: list[Step] = []

        async def listen() -> None:
            greedy = Sampling(temperature=0)
            async for step in stream.agenerate(50, sampling=greedy, ignore_eos=True):
                seen.append(step)

        task = asyncio.create_task(listen())
        await asyncio.sleep(0.12)
        for _ in range(n_cancels):
            task.cancel()
            await asyncio.sleep(0.005)
        with pytest.raises(asyncio.CancelledError):
            await task
        return seen

    with Stream(Slow(64), SinkPolicy(4), 48) as stream:
        stream.feed("to begin with")
        index = stream.stats.index
        seen = asyncio.run(play(stream))
        assert seen
        assert stream.stats.index == index + len(seen)
        assert stream.visible_tokens()[index:] == [step.token for step in seen]
        stream.feed("more")
