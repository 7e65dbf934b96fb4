"""Commands that show how a chat stands, and change nothing."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from streamsink.cli.talk.clipboard import copy
from streamsink.cli.talk.commands import command
from streamsink.cli.talk.settings import SETTINGS
from streamsink.errors import UsageError

if TYPE_CHECKING:
    from streamsink.cli.talk.talk import Talk
    from streamsink.cli.terminal import Write
    from streamsink.core.events import Stats
    from streamsink.session.remains import Memory

EDGE = 38
"""Letters of a text's beginning and of its end that are shown."""

MEMORIES: tuple[Memory, ...] = ("pinned", "visible", "cut", "forgotten")
_REMARKS = {"pinned": "(pinned) ", "visible": "", "cut": "(cut) ", "forgotten": "(forgotten) "}
_PARTS = {
    "info": "the model, and how much the context holds",
    "settings": "how answers are chosen, and what is kept",
    "system": "the system prompt",
    "template": "the chat template",
}


@command("show", "[PART]", "the model, the settings, the prompt", values=lambda _, __: _PARTS)
def _show(talk: Talk, part: str, write: Write) -> None:
    chat = talk.chat
    if part not in ("", "parameters", *_PARTS):
        raise UsageError(f"/show {part} is not possible: {', '.join(_PARTS)}")
    if part in ("", "info"):
        stats = chat.stream.stats
        write(f"model     {talk.model.path.name} · {talk.model.description}\n")
        write(f"file      {talk.model.path}\n")
        write(
            f"context   {chat.stream.n_ctx:,} tokens, trained on {talk.model.n_ctx_train:,}: "
            f"{stats.pinned:,} pinned + {stats.window:,} recent, {stats.evicted:,} forgotten\n"
        )
        write(f"placement {stats.placement} ({stats.why})\n")
        write(f"session   {talk.keeping.name or 'none: /save NAME'}\n")
    if part in ("", "system"):
        write(f"system    {chat.system or '(left to the template)'}\n")
    if part == "template":
        write(f"{chat.template.source.rstrip()}\n")
    if part in ("", "settings", "parameters"):
        for setting in SETTINGS:
            write(f"{setting.name:18} {setting.of(chat)}\n")


@command("stats", "", "the stream in numbers")
def _stats(talk: Talk, _: str, write: Write) -> None:
    write(_lines(talk.chat.stream.stats))


@command("memory", "", "what the model can see, and the edges of what it has forgotten")
def _memory(talk: Talk, _: str, write: Write) -> None:
    chat = talk.chat
    for part in chat.stream.visible():
        kind = "pinned" if part.pinned else "window"
        write(f"{kind} {_range(part.start, part.stop)}: {_edges(part.text)}\n")
    write(f"forgotten: {chat.stream.stats.evicted:,} tokens\n")
    found = [chat.memory(message) for message in chat.messages]
    counted = [f"{found.count(what)} {what}" for what in MEMORIES if what in found]
    if counted:
        write(f"messages: {', '.join(counted)}\n")


@command("history", "", "all that was said, what is forgotten greyed")
def _history(talk: Talk, _: str, write: Write) -> None:
    if talk.chat.system:
        write(f"system: {talk.chat.system}\n")
    for at in range(len(talk.chat.messages)):
        _show_message(talk, at, write, whole=True)


@command("recall", "WORDS|N", "find messages with all these words; a number quotes that message")
def _recall(talk: Talk, words: str, write: Write) -> None:
    chat = talk.chat
    if not words:
        quoted = chat.conversation().quoted
        write(f"{quoted}your next message begins with it\n" if quoted else "nothing is quoted\n")
    elif words.isdecimal() and len(words) < 10:
        quote = chat.quote(int(words) - 1)
        talk.keeping.save()
        write(f"{quote}your next message begins with it\n")
    elif found := chat.recall(words):
        for at in found:
            _show_message(talk, at, write, whole=False)
        write("/recall and a number quotes that message\n")
    else:
        write("nothing like that was said\n")


@command("copy", "", "copy the last answer to the clipboard")
def _copy(talk: Talk, _: str, write: Write) -> None:
    messages = talk.chat.messages
    if not messages or not messages[-1].text.strip():
        raise UsageError("there is no answer to copy yet")
    text = talk.chat.template.past(messages[-1].text).strip()
    copy(text)
    write(f"copied: {_edges(text)}\n")


def _show_message(talk: Talk, at: int, write: Write, *, whole: bool) -> None:
    message = talk.chat.messages[at]
    memory = talk.chat.memory(message)
    who = "> " if message.role == "user" else ""
    text = message.text.strip() if whole else _edges(message.text)
    write(f"{at + 1} {_REMARKS[memory]}{who}{text}\n", dim=memory == "forgotten")


def _edges(text: str) -> str:
    """A text on one line; of a long one, beginning and end."""
    line = " ".join(text.split())
    return line if len(line) <= 2 * EDGE + 4 else f"{line[:EDGE]} … {line[-EDGE:]}"


def _lines(stats: Stats) -> str:
    values = dataclasses.asdict(stats)
    values["sees"] = sees(stats)
    values["threads"] = str(stats.threads)
    return "".join(
        f"{name:12} {value:.1f}\n" if isinstance(value, float) else f"{name:12} {value}\n"
        for name, value in values.items()
    )


def sees(stats: Stats) -> str:
    """What the next token can see, in a few words."""
    return " and ".join(_range(start, stop) for start, stop in stats.sees) or "nothing yet"


def _range(start: int, stop: int) -> str:
    """Indices of a part of the stream; a prefix that was swapped has none of its own."""
    return f"{start:,}-{stop - 1:,}" if start >= 0 else f"prefix of {stop - start:,}"


COMMANDS = (_show, _stats, _memory, _history, _recall, _copy)
