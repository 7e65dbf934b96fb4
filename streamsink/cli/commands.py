"""Commands in a chat: what begins with a slash."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING

from streamsink.cli import terminal
from streamsink.cli.keeping import Keeping
from streamsink.cli.options import discard_of, keep_of
from streamsink.errors import UsageError
from streamsink.session import shelf

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamsink.chat.chat import Chat
    from streamsink.cli.terminal import Write
    from streamsink.core.events import Stats
    from streamsink.session.remains import Memory

COMMANDS = {
    "help": ("", "this text"),
    "stats": ("", "the stream in numbers"),
    "memory": ("", "what the model can see, and the edges of what it has forgotten"),
    "history": ("", "all that was said, what is forgotten greyed"),
    "recall": ("WORDS", "find turns that hold all these words; a number quotes that turn"),
    "keep": ("N", "pin the first N visible tokens (or: system)"),
    "discard": ("N", "evict N tokens at once (or: half, turn, sentence)"),
    "pin": ("", "keep the last exchange for good"),
    "unpin": ("", "release what was pinned last"),
    "system": ("TEXT", "change the system prompt in mid-stream; what is visible stays"),
    "save": ("NAME", "save the session, by a name or into a file: ./FILE"),
    "load": ("NAME", "go on with another session"),
    "reset": ("", "begin anew; what a session holds is kept beside it"),
    "quit": ("", "leave (also Ctrl-D)"),
}
KEYS = (
    "Ctrl-C stops an answer and keeps the conversation. Alt-Enter makes a new line.\n"
    "A message that begins with a slash is typed with two: //etc says /etc."
)
_COMMAND = re.compile(r"/(\S*)\s*(.*)", re.S)
EDGE = 38
"""Letters of a text's beginning and of its end that are shown."""

MEMORIES: tuple[Memory, ...] = ("pinned", "visible", "cut", "forgotten")
_REMARKS = {"pinned": "(pinned) ", "visible": "", "cut": "(cut) ", "forgotten": "(forgotten) "}


class Commands:
    """What can be done with a chat beside talking.

    Parameters
    ----------
    chat : Chat
        The chat.
    keeping : Keeping
        Where it is saved, after every change.
    greet : callable
        Tells what came out of a session.
    """

    def __init__(self, chat: Chat, keeping: Keeping, greet: Callable[[Write], object]) -> None:
        self._chat = chat
        self._keeping = keeping
        self._greet = greet

    def run(self, line: str, write: Write) -> bool:
        """Carry out a command; False ends the conversation."""
        found = _COMMAND.match(line)
        assert found
        name, argument = found.groups()
        if name in ("quit", "exit"):
            return False
        if name not in COMMANDS:
            raise UsageError(f"/{name} is no command: /help lists them, and //{name} says it")
        getattr(self, f"_do_{name}")(argument.strip(), write)
        return True

    def _do_help(self, _: str, write: Write) -> None:
        for command, (argument, says) in COMMANDS.items():
            write(f"{f'/{command} {argument}':16} {says}\n")
        write(f"{KEYS}\n")

    def _do_stats(self, _: str, write: Write) -> None:
        write(_lines(self._chat.stream.stats))

    def _do_memory(self, _: str, write: Write) -> None:
        stream = self._chat.stream
        for part in stream.visible():
            kind = "pinned" if part.pinned else "window"
            write(f"{kind} {_range(part.start, part.stop)}: {_edges(part.text)}\n")
        write(f"forgotten: {stream.stats.evicted:,} tokens\n")
        found = [self._chat.memory(turn) for turn in self._chat.turns]
        counted = [f"{found.count(what)} {what}" for what in MEMORIES if what in found]
        if counted:
            write(f"turns: {', '.join(counted)}\n")

    def _do_history(self, _: str, write: Write) -> None:
        if self._chat.system:
            write(f"system: {self._chat.system}\n")
        for at in range(len(self._chat.turns)):
            self._show_turn(at, write, whole=True)

    def _do_recall(self, words: str, write: Write) -> None:
        if not words:
            raise UsageError("/recall takes words to look for, or the number of a turn to quote")
        if words.isdecimal() and len(words) < 10:
            quote = self._chat.quote(int(words) - 1)
            self._keeping.save()
            write(f"{quote}your next turn begins with it\n")
            return
        found = self._chat.recall(words)
        for at in found:
            self._show_turn(at, write, whole=False)
        write(
            "/recall and a number quotes that turn\n" if found else "nothing like that was said\n"
        )

    def _do_keep(self, argument: str, write: Write) -> None:
        stream = self._chat.stream
        stream.change(n_keep=keep_of(argument))
        self._keeping.save()
        write(f"pinned: {stream.stats.pinned} tokens\n")

    def _do_discard(self, argument: str, write: Write) -> None:
        stream = self._chat.stream
        stream.change(n_discard=discard_of(argument))
        self._keeping.save()
        write(f"discard: {stream.policy.n_discard}\n")

    def _do_pin(self, _: str, write: Write) -> None:
        write(f"pinned: {self._chat.pin()} tokens\n")
        self._keeping.save()

    def _do_unpin(self, _: str, write: Write) -> None:
        write(f"pinned: {self._chat.unpin()} tokens\n")
        self._keeping.save()

    def _do_system(self, argument: str, write: Write) -> None:
        n_evaluated = self._chat.change_system(argument)
        self._keeping.save()
        write(f"system prompt changed, {n_evaluated} tokens evaluated\n")

    def _do_save(self, argument: str, write: Write) -> None:
        if argument:
            write(self._keeping.save_as(shelf.locate(argument)))
        elif path := self._keeping.save_now():
            write(f"saved: {terminal.line(str(path))}\n")
        else:
            raise UsageError("/save needs a name, or a file")

    def _do_load(self, argument: str, write: Write) -> None:
        self._keeping.load(shelf.locate(argument), lambda: self._greet(write))

    def _do_reset(self, _: str, write: Write) -> None:
        write(self._keeping.reset())

    def _show_turn(self, at: int, write: Write, *, whole: bool) -> None:
        turn = self._chat.turns[at]
        memory = self._chat.memory(turn)
        who = "> " if turn.role == "user" else ""
        text = turn.text.strip() if whole else _edges(turn.text)
        write(f"{at + 1} {_REMARKS[memory]}{who}{text}\n", dim=memory == "forgotten")


def is_command(text: str) -> bool:
    """Whether a turn is a command: with a second slash it is not."""
    return text.startswith("/") and not text.startswith("//")


def said(text: str) -> str:
    """What a turn says: a second slash at its beginning tells it from a command."""
    return text.removeprefix("/")


def _edges(text: str) -> str:
    """A text on one line; of a long one, beginning and end."""
    line = " ".join(text.split())
    return line if len(line) <= 2 * EDGE + 4 else f"{line[:EDGE]} … {line[-EDGE:]}"


def _lines(stats: Stats) -> str:
    values = dataclasses.asdict(stats)
    values["sees"] = sees(stats)
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
