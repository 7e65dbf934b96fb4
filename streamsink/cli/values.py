"""What the text of an option means."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from streamsink.core import policy as policies
from streamsink.errors import UsageError
from streamsink.gguf.settings import Threads
from streamsink.system.reading import given, read_whole

if TYPE_CHECKING:
    from streamsink.registry.entries import Entry

N_CTX = 2048
"""Tokens of context where nobody says how many."""


def usual_ctx(entry: Entry | None) -> int:
    """Tokens of context where none are asked for."""
    return entry.n_ctx if entry and entry.n_ctx else N_CTX


def keep_of(text: str) -> policies.Keep:
    """What ``--keep`` means."""
    return "system" if text == "system" else number("keep", text, "a number, -1 or 'system'")


def schema_of(text: str) -> str:
    """What ``--json-schema`` means: a schema, or a file with one."""
    text = given(text, "--json-schema")
    return text if text.lstrip().startswith("{") else read_whole(Path(text), "json-schema")


def discard_of(text: str) -> policies.Discard:
    """What ``--discard`` means."""
    if text in ("half", "turn", "sentence"):
        return cast(policies.Discard, text)
    return number("discard", text, "a number, 'half', 'turn' or 'sentence'")


def threads_of(option: str, text: str | None) -> Threads:
    """What ``--threads`` and ``--threads-batch`` mean."""
    if text is None or text == "auto":
        return cast(Threads, text)
    return number(option, text, "a number or 'auto'")


def number(option: str, text: str, possible: str = "a number") -> int:
    """A number that an option takes as text.

    Raises
    ------
    UsageError
        It is none.
    """
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"--{option} {text} is not possible: {possible}") from None


def stated(values: dict[str, Any]) -> dict[str, Any]:
    """Those that are stated."""
    return {name: value for name, value in values.items() if value is not None}
