"""What is written while somebody types: in order, the newest last, and no error is lost."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from streamsink import session
from streamsink.chat.chat import Chat
from streamsink.chat.template import ChatTemplate
from streamsink.cli.talk.keeping import Keeping
from streamsink.core.policy import SinkPolicy
from streamsink.core.sampling import Sampling
from streamsink.errors import SessionError
from streamsink.model import Model
from streamsink.session import shelf
from streamsink.session.saver import Saver

GREEDY = Sampling(temperature=0)


class Disk:
    """Writes when it is let go."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.written: list[int] = []

    def write(self, what: int) -> None:
        assert self.go.wait(30)
        self.written.append(what)


def test_the_newest_takes_the_place_of_what_waits() -> None:
    disk = Disk()
    with Saver() as saver:
        for at in range(5):
            saver.give(lambda at=at: disk.write(at))  # type: ignore[misc]
            time.sleep(0.01)
        assert saver.is_busy
        disk.go.set()
    assert disk.written == [0, 4]
    assert not saver.is_busy


def test_an_error_is_raised_once() -> None:
    def fail() -> None:
        raise SessionError("the disk is full")

    saver = Saver()
    saver.give(fail)
    with pytest.raises(SessionError, match="full"):
        saver.wait()
    saver.check()
    done: list[int] = []
    saver.give(lambda: done.append(1))
    saver.wait()
    assert done == [1]


def test_without_threads_it_is_done_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    done: list[int] = []
    with Saver() as saver:
        saver.give(lambda: done.append(1))
        assert done == [1]


def test_a_process_ends_when_all_is_written(tmp_path: Path) -> None:
    path = tmp_path / "a"
    program = f"""
import pathlib, time
from streamsink.session.saver import Saver
def work():
    time.sleep(0.5)
    pathlib.Path({str(path)!r}).write_text("whole")
Saver().give(work)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    assert path.read_text() == "whole"


def said(chat: Chat, text: str) -> str:
    return "".join(step.text for step in chat.say(text, 4, sampling=GREEDY))


def test_a_slow_disk_does_not_delay_a_conversation(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, write = Disk(), session.write

    def slowly(*given: Any) -> None:
        assert disk.go.wait(30)
        write(*given)

    path = tmp_path / "slow.session"
    with model.stream(SinkPolicy(4, 1), 64) as stream:
        chat = Chat(stream, ChatTemplate(model.chat_template, model.special_texts))
        keeping = Keeping(chat, shelf.take(path), aside=True)
        monkeypatch.setattr(session, "write", slowly)
        for turn in range(4):
            said(chat, f"turn {turn}")
            keeping.save()
        assert not path.exists()
        disk.go.set()
        keeping.let_go()
        saved = session.read(path)
        assert saved.conversation
        assert saved.conversation.messages == tuple(chat.messages)
        assert saved.stream.index == stream.stats.index
        shelf.take(path).release()


def test_what_cannot_be_written_is_told_later(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise SessionError("no room")

    path = tmp_path / "full.session"
    with model.stream(SinkPolicy(4, 1), 64) as stream:
        chat = Chat(stream, ChatTemplate(model.chat_template, model.special_texts))
        keeping = Keeping(chat, shelf.take(path), aside=True)
        with monkeypatch.context() as broken:
            broken.setattr(session, "write", fail)
            said(chat, "hello")
            keeping.save()
            with pytest.raises(SessionError, match="no room"):
                keeping.save_now()
        keeping.check()
        keeping.save()
        keeping.let_go()
        assert session.read(path).conversation
