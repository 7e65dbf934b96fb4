"""A chat with somebody at the keyboard, or a script at the other end of a pipe."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, TypeAlias

import typer

from streamsink.cli.keeping import Keeping
from streamsink.cli.options import discard_of, keep_of
from streamsink.errors import StreamsinkError, UsageError
from streamsink.session import shelf

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamsink.chat import Chat
    from streamsink.records import Event, Stats
    from streamsink.remains import Memory
    from streamsink.sampling import Sampling

    Write: TypeAlias = Callable[[str], object]

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
KEYS = "Ctrl-C stops an answer and keeps the conversation. Alt-Enter makes a new line."
EDGE = 38
"""Letters of a text's beginning and of its end that are shown."""


class Conversation:
    """A chat, and what is done with it.

    Parameters
    ----------
    chat : Chat
        The chat, perhaps out of a session.
    sampling : Sampling
        How answers are chosen.
    max_tokens : int
        Most tokens of an answer.
    cuts : list of Event
        Fills with the evictions that cut a turn in two.
    kept : shelf.Kept or None
        Session file that is written after every turn.
    """

    def __init__(
        self,
        chat: Chat,
        sampling: Sampling,
        max_tokens: int,
        cuts: list[Event],
        kept: shelf.Kept | None,
    ) -> None:
        self._chat = chat
        self._keeping = Keeping(chat, sampling, kept)
        self._max_tokens = max_tokens
        self._cuts = cuts

    def let_go(self) -> None:
        """Let others have the session file."""
        self._keeping.let_go()

    def piped(self) -> None:
        """Each line of stdin is a turn; what concerns the program goes to stderr.

        A command that cannot be carried out is told, and the next line is read; the exit code
        remembers it.
        """
        code = 0
        self._greet(sys.stderr.write)
        for line in sys.stdin:
            text = line.rstrip("\n")
            if not text.strip():
                continue
            if not text.startswith("/"):
                self._answer(text, sys.stderr.write)
                continue
            try:
                if not self._command(text, sys.stderr.write):
                    break
            except StreamsinkError as error:
                typer.echo(f"streamsink: {error}", err=True)
                code = error.exit_code
        raise typer.Exit(code)

    def interactive(self, title: str) -> None:
        """Line editing, history, a status line; Ctrl-C stops an answer, Ctrl-D leaves."""
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import WordCompleter
        from prompt_toolkit.history import FileHistory
        from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

        from streamsink.registry import models_dir

        keys = KeyBindings()

        @keys.add("escape", "enter")
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        history = models_dir().parent / "history"
        history.parent.mkdir(parents=True, exist_ok=True)
        history.touch(mode=0o600)
        prompt: PromptSession[str] = PromptSession(
            history=FileHistory(str(history)),
            completer=WordCompleter([f"/{name}" for name in COMMANDS], sentence=True),
            complete_while_typing=False,
            key_bindings=keys,
            bottom_toolbar=self._status,
        )
        print(f"{title}\n/help lists the commands, Ctrl-D leaves.")
        self._greet(sys.stdout.write)
        while True:
            try:
                text = prompt.prompt("> ").strip()
            except KeyboardInterrupt:
                continue
            except EOFError:
                return
            if not text:
                continue
            try:
                if not self._take(text):
                    return
            except StreamsinkError as error:
                print(f"streamsink: {error}", file=sys.stderr)

    def _take(self, text: str) -> bool:
        """Take a line from the keyboard; False ends the conversation."""
        try:
            if text.startswith("/"):
                return self._command(text, sys.stdout.write)
            self._answer(text, sys.stdout.write)
        except KeyboardInterrupt:
            print("\n(stopped)")
            self._tell_cuts(sys.stdout.write)
            self._save()
        return True

    def change_system(self, prompt: str) -> int:
        """Change the system prompt; return how many tokens were evaluated."""
        n_evaluated = self._chat.change_system(prompt)
        self._save()
        return n_evaluated

    def _greet(self, write: Write) -> None:
        """Say what came out of a session, if this is one."""
        restored = self._chat.stream.restored
        if restored is None:
            return
        write(f"gone on after {len(self._chat.turns)} turns; /history shows them\n")
        if restored.why:
            write(
                f"{restored.n_evaluated:,} visible tokens were evaluated again, and remember "
                f"nothing of what was evicted: {restored.why}\n"
            )

    def _answer(self, text: str, write: Write) -> None:
        # Plain writes: what a model says is never markup, nor an order to the terminal.
        shown = _harmless if sys.stdout.isatty() else str
        for step in self._chat.say(text, self._max_tokens, sampling=self._keeping.sampling):
            sys.stdout.write(shown(step.text))
            sys.stdout.flush()
        # Saved before the line ends: what stands there whole is in the file.
        self._save()
        sys.stdout.write("\n")
        sys.stdout.flush()
        self._tell_cuts(write)

    def _tell_cuts(self, write: Write) -> None:
        """Say that a turn or a sentence was cut in two."""
        if self._cuts:
            n_tokens = sum(event.n_tokens for event in self._cuts)
            self._cuts.clear()
            what = self._chat.stream.policy.n_discard
            write(f"({n_tokens:,} tokens of one {what} were cut off: it alone fills the window)\n")

    def _save(self) -> None:
        self._keeping.save()

    def _status(self) -> str:
        stats = self._chat.stream.stats
        return f"sees {_sees(stats)} · {stats.evicted:,} forgotten · {stats.rate:.0f} tok/s"

    # -- commands -------------------------------------------------------------------------------

    def _command(self, line: str, write: Write) -> bool:
        """Carry out a command; False ends the conversation."""
        name, _, argument = line[1:].partition(" ")
        if name in ("quit", "exit"):
            return False
        if name not in COMMANDS:
            raise UsageError(f"/{name} is no command: /help lists them")
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
            write(f"system: {_harmless(self._chat.system)}\n")
        for at in range(len(self._chat.turns)):
            write(self._turn(at, whole=True))

    def _do_recall(self, words: str, write: Write) -> None:
        if not words:
            raise UsageError("/recall takes words to look for, or the number of a turn to quote")
        if words.isdecimal():
            quote = self._chat.quote(int(words) - 1)
            self._save()
            write(f"{_harmless(quote)}your next turn begins with it\n")
            return
        found = self._chat.recall(words)
        for at in found:
            write(self._turn(at, whole=False))
        write(
            "/recall and a number quotes that turn\n" if found else "nothing like that was said\n"
        )

    def _do_keep(self, argument: str, write: Write) -> None:
        stream = self._chat.stream
        stream.change(n_keep=keep_of(argument))
        self._save()
        write(f"pinned: {stream.stats.pinned} tokens\n")

    def _do_discard(self, argument: str, write: Write) -> None:
        stream = self._chat.stream
        stream.change(n_discard=discard_of(argument))
        self._save()
        write(f"discard: {stream.policy.n_discard}\n")

    def _do_pin(self, _: str, write: Write) -> None:
        write(f"pinned: {self._chat.pin()} tokens\n")
        self._save()

    def _do_unpin(self, _: str, write: Write) -> None:
        write(f"pinned: {self._chat.unpin()} tokens\n")
        self._save()

    def _do_system(self, argument: str, write: Write) -> None:
        write(f"system prompt changed, {self.change_system(argument)} tokens evaluated\n")

    def _do_save(self, argument: str, write: Write) -> None:
        if argument:
            write(self._keeping.save_as(shelf.locate(argument)))
        elif path := self._keeping.save():
            write(f"saved: {path}\n")
        else:
            raise UsageError("/save needs a name, or a file")

    def _do_load(self, argument: str, write: Write) -> None:
        self._keeping.load(shelf.locate(argument), lambda: self._greet(write))

    def _do_reset(self, _: str, write: Write) -> None:
        write(self._keeping.reset())

    def _turn(self, at: int, *, whole: bool) -> str:
        """A turn for people."""
        turn = self._chat.turns[at]
        memory = self._chat.memory(turn)
        who = "> " if turn.role == "user" else ""
        text = _harmless(turn.text.strip()) if whole else _edges(turn.text)
        line = f"{at + 1} {_REMARKS[memory]}{who}{text}"
        if memory == "forgotten" and sys.stdout.isatty():
            return f"\x1b[2m{line}\x1b[0m\n"
        return f"{line}\n"


MEMORIES: tuple[Memory, ...] = ("pinned", "visible", "cut", "forgotten")
_REMARKS = {"pinned": "(pinned) ", "visible": "", "cut": "(cut) ", "forgotten": "(forgotten) "}

# What moves a cursor, changes colours or rings the bell: C0 and C1 but for new lines and tabs.
_CONTROLS = dict.fromkeys([*range(32), *range(127, 160)])
del _CONTROLS[ord("\n")], _CONTROLS[ord("\t")]


def _harmless(text: str) -> str:
    return text.translate(_CONTROLS)


def _edges(text: str) -> str:
    """A text on one line; of a long one, beginning and end."""
    line = _harmless(" ".join(text.split()))
    return line if len(line) <= 2 * EDGE + 4 else f"{line[:EDGE]} … {line[-EDGE:]}"


def _lines(stats: Stats) -> str:
    values = dataclasses.asdict(stats)
    values["sees"] = _sees(stats)
    return "".join(
        f"{name:12} {value:.1f}\n" if isinstance(value, float) else f"{name:12} {value}\n"
        for name, value in values.items()
    )


def _sees(stats: Stats) -> str:
    return " and ".join(_range(start, stop) for start, stop in stats.sees) or "nothing yet"


def _range(start: int, stop: int) -> str:
    """Indices of a part of the stream; a prefix that was swapped has none of its own."""
    return f"{start:,}-{stop - 1:,}" if start >= 0 else f"prefix of {stop - start:,}"
