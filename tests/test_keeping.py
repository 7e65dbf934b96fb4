"""Nothing that was saved is lost: new beginnings, copies, loading, and who writes meanwhile."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streamsink import session
from streamsink.chat.chat import Chat
from streamsink.errors import SessionError, UsageError
from streamsink.model import Model
from streamsink.session import shelf
from tests.talks import keeping, said, say

pytestmark = pytest.mark.usefixtures("at_home")


def test_a_new_beginning_is_another_session(chat: Chat) -> None:
    """What was saved stays where it is, and is let go."""
    conversation = keeping(chat, "a")
    assert conversation.reset() == "begun anew\n"
    shelf.take(shelf.locate("a-2")).release()
    shelf.locate("a-2").write_text("something else")
    before = "a"
    for n, name in enumerate(("a-1", "a-3", "a-4"), 1):
        say(chat, f"Word {n}.")
        conversation.save()
        assert conversation.reset() == f"begun anew as {name}; what was said stays in {before}\n"
        assert said(shelf.locate(before)) == [f"Word {n}."]
        shelf.take(shelf.locate(before)).release()
        with pytest.raises(SessionError, match="in use"):
            shelf.take(shelf.locate(name))
        before = name
    assert said(shelf.locate("a-4")) == []
    assert stat.S_IMODE(shelf.locate("a-4").stat().st_mode) == 0o600
    assert shelf.locate("a-2").read_text() == "something else"
    conversation.let_go()


def test_setting_aside_where_files_have_one_name(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on FAT."""

    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    say(chat, "One.")
    conversation = keeping(chat, "a")
    conversation.save()
    conversation.let_go()
    chat.reset()
    say(chat, "Other.")
    other = keeping(chat)
    assert "what was there is kept as a-1\n" in other.save_as(shelf.locate("a"))
    assert said(shelf.locate("a-1")) == ["One."]
    assert stat.S_IMODE(shelf.locate("a-1").stat().st_mode) == 0o600
    other.let_go()


def test_what_cannot_be_kept_is_not_given_up(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    conversation = keeping(chat, "a")
    say(chat, "One.")
    conversation.save()
    say(chat, "Two.")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(session, "write", lambda *_: (_ for _ in ()).throw(SessionError("full")))
        with pytest.raises(SessionError, match="full"):
            conversation.reset()
        with pytest.raises(SessionError, match="full"):
            conversation.load(shelf.locate("b"), lambda: None)
    with monkeypatch.context() as patched:
        patched.setattr(shelf, "Lock", full)
        with pytest.raises(SessionError, match="cannot be kept there: No space left"):
            conversation.reset()
    assert [turn.text for turn in chat.messages if turn.role == "user"] == ["One.", "Two."]
    conversation.save()
    conversation.let_go()
    assert said(shelf.locate("a")) == ["One.", "Two."]


def test_saving_over_another_conversation_keeps_it(chat: Chat) -> None:
    b, c = shelf.locate("b"), shelf.locate("c")
    say(chat, "One.")
    conversation = keeping(chat)
    assert "will be after every turn" in conversation.save_as(b)
    assert conversation.save_as(c).startswith("saved: ")
    say(chat, "Two.")
    assert "kept" not in conversation.save_as(c)  # all that was there is in what is written
    assert said(c) == ["One.", "Two."]
    conversation.reset()
    say(chat, "Other.")
    assert "what was there is kept as c-1\n" in conversation.save_as(c)
    b = shelf.locate("b-1")
    assert (said(c), said(shelf.locate("c-1"))) == (["Other."], ["One.", "Two."])
    shelf.take(c).release()
    with pytest.raises(SessionError, match="is in use"):
        shelf.take(b)
    conversation.let_go()


def test_what_somebody_else_has_written_meanwhile_is_kept(chat: Chat, model: Model) -> None:
    """By a program that asks for no lock."""
    a = shelf.locate("a")
    conversation = keeping(chat, "a")
    say(chat, "One.")
    conversation.save()
    with model.restore(a) as stream:
        stream.feed(range(10, 20))
        stream.save(a)
        n_tokens = stream.stats.index
    say(chat, "Two.")
    with pytest.raises(SessionError, match=r"written by somebody else.*kept as a-1"):
        conversation.save()
    assert said(a) == ["One.", "Two."]
    assert session.read(shelf.locate("a-1")).stream.n_tokens == n_tokens
    say(chat, "Three.")
    conversation.save()
    a.unlink()
    conversation.save()
    assert said(a) == ["One.", "Two.", "Three."]
    conversation.let_go()
    assert [path.stem for path in shelf.files()] == ["a", "a-1"]


def test_loading_takes_the_other_file_and_lets_this_one_go(chat: Chat) -> None:
    a, b = shelf.locate("a"), shelf.locate("b")
    say(chat, "One.")
    keeping(chat).save_as(b)
    chat.reset()
    say(chat, "Two.")
    with pytest.raises(UsageError, match="saved nowhere"):
        keeping(chat).load(b, lambda: None)
    conversation = keeping(chat, "a")
    told: list[str] = []
    with shelf_taken(b), pytest.raises(SessionError, match="is in use"):
        conversation.load(b, lambda: told.append("b"))
    with pytest.raises(SessionError, match="there is no session"):
        conversation.load(shelf.locate("none"), lambda: told.append("none"))
    assert not told
    assert chat.messages[0].text == "Two."
    with pytest.raises(SessionError, match="is in use"):
        shelf.take(a)
    shelf.take(shelf.locate("none")).release()
    conversation.load(b, lambda: told.append("b"))
    assert told == ["b"]
    assert chat.messages[0].text == "One."
    shelf.take(a).release()
    with pytest.raises(SessionError, match="is in use"):
        shelf.take(b)
    conversation.load(b, lambda: told.append("again"))
    say(chat, "Three.")
    conversation.save()
    conversation.let_go()
    assert (said(a), said(b)) == (["Two."], ["One.", "Three."])


@contextlib.contextmanager
def shelf_taken(path: Path) -> Iterator[None]:
    kept = shelf.take(path)
    yield
    kept.release()


@pytest.mark.usefixtures("ctrl_c_interrupts")
@pytest.mark.parametrize("place", ["take", "cells", "restore", "after"])
def test_ctrl_c_while_another_session_is_loaded(
    chat: Chat, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    a, b = shelf.locate("a"), shelf.locate("b")
    say(chat, "One.")
    keeping(chat).save_as(b)
    chat.reset()
    say(chat, "Two.")
    conversation = keeping(chat, "a")
    conversation.save()

    def pressed(call: Any) -> Any:
        def wrapped(*given: Any) -> Any:
            if place != "after":
                signal.raise_signal(signal.SIGINT)
            result = call(*given)
            if place == "after":
                signal.raise_signal(signal.SIGINT)
            return result

        return wrapped

    with monkeypatch.context() as patched:
        where: Any
        where, name = {
            "take": (shelf, "take"),
            "cells": (session.SessionFile, "cells"),
            "restore": (chat, "restore"),
            "after": (chat, "restore"),
        }[place]
        patched.setattr(where, name, pressed(getattr(where, name)))
        told: list[str] = []
        with pytest.raises(KeyboardInterrupt):
            conversation.load(b, lambda: told.append("b"))
    say(chat, "Three.")
    conversation.save()
    conversation.let_go()
    if told:
        assert (said(a), said(b)) == (["Two."], ["One.", "Three."])
    else:
        assert (said(a), said(b)) == (["Two.", "Three."], ["One."])
    for path in (a, b):
        shelf.take(path).release()
