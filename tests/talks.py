"""Short talks with the tiny model, for tests of where they are saved."""

from __future__ import annotations

from pathlib import Path

from streamsink import session
from streamsink.chat.chat import Chat
from streamsink.cli.talk.keeping import Keeping
from streamsink.session import shelf


def say(chat: Chat, text: str) -> None:
    for _ in chat.say(text, 4):
        pass


def said(path: Path) -> list[str]:
    """What a session's user has said."""
    conversation = session.read(path).conversation
    return (
        [turn.text for turn in conversation.messages if turn.role == "user"] if conversation else []
    )


def keeping(chat: Chat, name: str | None = None) -> Keeping:
    return Keeping(chat, shelf.take(shelf.locate(name)) if name else None)


def without_cuts(told: str) -> list[str]:
    """Lines of stderr but for those that tell of answers that were cut off."""
    return [line for line in told.splitlines() if not line.startswith("(cut at ")]
