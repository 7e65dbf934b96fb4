"""Conversations on a stream."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """Import on first use: a command that only asks for a template loads no engine."""
    if name == "Chat":
        from streamsink.chat.chat import Chat

        return Chat
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
