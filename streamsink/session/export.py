"""A session's conversation as text for people, or for programs."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path

from streamsink.core.snapshot import Snapshot
from streamsink.session.conversation import Message
from streamsink.session.file import Session
from streamsink.session.remains import Memory, what_is_left


def left(turn: Message, stream: Snapshot) -> Memory:
    """What the model could still see of a turn."""
    return what_is_left(turn, stream.sees, stream.pinned_ranges)


def markdown(session: Session, title: str) -> str:
    """The conversation in Markdown; turns that were forgotten are said to be."""
    conversation = session.conversation
    lines = [f"# {title}", "", f"{Path(session.kind.path).name}, {saved(session)}", ""]
    if conversation and conversation.system:
        lines += ["**System**", "", conversation.system, ""]
    for turn in conversation.messages if conversation else ():
        who = "You" if turn.role == "user" else "Model"
        lines += [f"**{who}**{_remark(turn, session.stream)}", "", turn.text.strip(), ""]
    return "\n".join(lines)


def plain(session: Session) -> str:
    """The conversation in JSON, its messages as chat interfaces take them."""
    conversation = session.conversation
    system = (
        [{"role": "system", "content": conversation.system}]
        if conversation and conversation.system
        else []
    )
    turns = [
        {
            "role": turn.role,
            "content": turn.text,
            "tokens": [turn.start, turn.stop],
            "pinned": left(turn, session.stream) == "pinned",
            "forgotten": left(turn, session.stream) == "forgotten",
        }
        for turn in (conversation.messages if conversation else ())
    ]
    record = {"model": session.kind.path, "saved": saved(session), "messages": [*system, *turns]}
    return json.dumps(record, indent=2, ensure_ascii=False) + "\n"


def saved(session: Session) -> str:
    """When a session was saved."""
    return datetime.fromtimestamp(session.saved, timezone.utc).isoformat(timespec="seconds")


def _remark(turn: Message, stream: Snapshot) -> str:
    what = left(turn, stream)
    return "" if what == "visible" else f" ({what})"
