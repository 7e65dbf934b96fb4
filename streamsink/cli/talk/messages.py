"""What somebody types or sends: messages of one line or of many, and commands."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

MANY_LINES = '"""'
"""Opens and closes a message of many lines, as with ollama."""


def whole(lines: Iterable[str]) -> Iterator[str]:
    """Messages out of lines: one each, but for what stands between two marks of many lines."""
    gathered: list[str] | None = None
    for line in lines:
        if gathered is None:
            if not line.lstrip().startswith(MANY_LINES):
                yield line
                continue
            gathered, line = [], line.lstrip().removeprefix(MANY_LINES)
        before, closes, after = line.partition(MANY_LINES)
        gathered.append(before)
        if closes:
            yield "\n".join(gathered).strip("\n") + after
            gathered = None
    if gathered is not None:
        yield "\n".join(gathered).strip("\n")


def is_command(text: str) -> bool:
    """Whether a message is a command: with a second slash it is not."""
    return text.startswith("/") and not text.startswith("//")


def said(text: str) -> str:
    """What a message says: a second slash at its beginning tells it from a command."""
    return text.removeprefix("/")
