"""A session's conversation as text for people, or for programs."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path

from streamsink.session.file import Session
from streamsink.snapshot import Snapshot, Turn


def forgotten(turn: Turn, stream: Snapshot) -> bool:
    """Whether nothing of a turn could be seen any more."""
    if turn.pinned and stream.pinned.spans:
        return False
    ranges = [(piece.index, piece.index + len(piece.tokens)) for piece in stream.pieces]
    ranges.append((stream.n_tokens, stream.n_tokens + len(stream.pending)))
    return not any(start < turn.stop and turn.start < stop for start, stop in ranges)


def markdown(session: Session, title: str) -> str:
    """The conversation in Markdown; turns that were forgotten are said to be."""
    talk = session.talk
    lines = [f"# {title}", "", f"{Path(session.kind.path).name}, {saved(session)}", ""]
    if talk and talk.system:
        lines += ["**System**", "", talk.system, ""]
    for turn in talk.turns if talk else ():
        who = "You" if turn.role == "user" else "Model"
        lines += [f"**{who}**{_remark(turn, session.stream)}", "", turn.text.strip(), ""]
    return "\n".join(lines)


def plain(session: Session) -> str:
    """The conversation in JSON, its messages as chat interfaces take them."""
    talk = session.talk
    system = [{"role": "system", "content": talk.system}] if talk and talk.system else []
    turns = [
        {
            "role": turn.role,
            "content": turn.text,
            "tokens": [turn.start, turn.stop],
            "pinned": turn.pinned,
            "forgotten": forgotten(turn, session.stream),
        }
        for turn in (talk.turns if talk else ())
    ]
    record = {"model": session.kind.path, "saved": saved(session), "messages": [*system, *turns]}
    return json.dumps(record, indent=2, ensure_ascii=False) + "\n"


def saved(session: Session) -> str:
    """When a session was saved."""
    return datetime.fromtimestamp(session.saved, timezone.utc).isoformat(timespec="seconds")


def _remark(turn: Turn, stream: Snapshot) -> str:
    if turn.pinned and stream.pinned.spans:
        return " (pinned)"
    return " (forgotten)" if forgotten(turn, stream) else ""
