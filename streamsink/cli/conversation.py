"""A chat with somebody at the keyboard, or a script at the other end of a pipe."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING

import typer

from streamsink.chat.thinking import Thoughts
from streamsink.cli import terminal
from streamsink.cli.keeping import Keeping
from streamsink.cli.options import discard_of, keep_of
from streamsink.errors import StreamsinkError, UsageError
from streamsink.session import shelf
from streamsink.system.reading import typed
from streamsink.system.turns import turns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamsink.chat.chat import Chat
    from streamsink.cli.terminal import Write
    from streamsink.core.events import Event, Stats
    from streamsink.core.sampling import Sampling
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
LEAST_WINDOW = 64
"""Tokens beside what is pinned below which a chat is told that there are too few."""
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
    stop : sequence of str
        Texts that end an answer.
    """

    def __init__(
        self,
        chat: Chat,
        sampling: Sampling,
        max_tokens: int,
        cuts: list[Event],
        kept: shelf.Kept | None,
        stop: Sequence[str] = (),
    ) -> None:
        self._chat = chat
        self._keeping = Keeping(chat, sampling, kept)
        self._max_tokens = max_tokens
        self._cuts = cuts
        self._stop = stop
        self._window_told: int | None = None

    def let_go(self) -> None:
        """Let others have the session file."""
        self._keeping.let_go()

    def piped(self, separator: str = "\n") -> None:
        """Take turns from stdin; what concerns the program goes to stderr.

        A command that cannot be carried out is told, and the next turn is taken; the exit code
        remembers it.

        Parameters
        ----------
        separator : str
            What stands between two turns.
        """
        code = 0
        self._greet(terminal.err)
        for text in turns(separator, terminal.tell):
            if not text.strip():
                continue
            if not _is_command(text):
                self._answer(_said(text), terminal.err)
                continue
            try:
                if not self._command(text, terminal.err):
                    break
            except StreamsinkError as error:
                terminal.tell(str(error))
                code = error.exit_code
        raise typer.Exit(code)

    def interactive(self, title: str) -> None:
        """Line editing, history, a status line; Ctrl-C stops an answer, Ctrl-D leaves."""
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import WordCompleter
        from prompt_toolkit.history import FileHistory
        from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

        from streamsink.system.folders import data_dir

        keys = KeyBindings()

        @keys.add("escape", "enter")
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        history = data_dir() / "history"
        history.parent.mkdir(parents=True, exist_ok=True)
        history.touch(mode=0o600)
        prompt: PromptSession[str] = PromptSession(
            history=FileHistory(str(history)),
            completer=WordCompleter([f"/{name}" for name in COMMANDS], sentence=True),
            complete_while_typing=False,
            key_bindings=keys,
            bottom_toolbar=self._status,
        )
        terminal.say(title)
        terminal.say("/help lists the commands, Ctrl-D leaves.")
        self._greet(terminal.out)
        while True:
            try:
                text = typed(prompt.prompt("> ")).strip()
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
                terminal.tell(str(error))

    def _take(self, text: str) -> bool:
        """Take a line from the keyboard; False ends the conversation."""
        before = self._state()
        try:
            if _is_command(text):
                return self._command(text, terminal.out)
            self._answer(_said(text), terminal.out)
        except KeyboardInterrupt:
            if self._state() == before:
                terminal.out("\n(stopped: nothing of it was taken in)\n")
            else:
                terminal.out("\n(stopped)\n")
                self._tell_cuts(terminal.out)
                self._save()
        return True

    def _state(self) -> object:
        """What a line from the keyboard may change."""
        chat = self._chat
        return chat.talk(), chat.stream.policy, chat.stream.pinned_ranges

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
                f"nothing of what was evicted: {terminal.line(restored.why)}\n"
            )

    def _answer(self, text: str, write: Write) -> None:
        chat = self._chat
        steps = chat.say(text, self._max_tokens, self._stop, self._keeping.sampling)
        self._tell_what_is_seen(write)
        template = chat.template
        thoughts = Thoughts(template.thought_marks, inside=template.opens_thought)
        # In a pipe the answer goes on alone.
        think = terminal.out if terminal.is_terminal() else terminal.err
        finish, thinks, is_empty = None, False, True
        for step in steps:
            finish = step.finish
            for said in thoughts.push(step.text, final=finish is not None):
                if thinks and not said.thought:
                    think("\n\n")
                thinks = said.thought
                (think if thinks else terminal.out)(said.text, dim=thinks)
                is_empty &= thinks or not said.text.strip()
        # Saved before the line ends: what stands there whole is in the file.
        self._save()
        terminal.out("\n")
        if finish == "length":
            write(f"(cut at --max-tokens {self._max_tokens}: say something to go on)\n")
        elif finish == "grammar":
            write("(the grammar lets nothing follow)\n")
        elif is_empty:
            write("(the model had nothing to say)\n")
        self._tell_cuts(write)

    def _tell_what_is_seen(self, write: Write) -> None:
        """Say where the window is too small for what is said in it."""
        stats, n_ctx = self._chat.stream.stats, self._chat.stream.n_ctx
        window = n_ctx - stats.pinned
        if window < LEAST_WINDOW and window != self._window_told:
            self._window_told = window
            write(
                f"(of --ctx {n_ctx} tokens {stats.pinned} are pinned, and {window} are left to talk"
                " in: raise --ctx, or pin less by --keep or a shorter --system)\n"
            )
        *_, question, _ = self._chat.turns
        if self._chat.memory(question) in ("cut", "forgotten"):
            seen = sum(
                max(0, min(stop, question.stop) - max(start, question.start))
                for start, stop in stats.sees
            )
            write(f"(longer than the window: the model sees the last {seen:,} tokens of it)\n")

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
            self._save()
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


MEMORIES: tuple[Memory, ...] = ("pinned", "visible", "cut", "forgotten")
_REMARKS = {"pinned": "(pinned) ", "visible": "", "cut": "(cut) ", "forgotten": "(forgotten) "}


def _is_command(text: str) -> bool:
    return text.startswith("/") and not text.startswith("//")


def _said(text: str) -> str:
    """What a turn says: a second slash at its beginning tells it from a command."""
    return text.removeprefix("/")


def _edges(text: str) -> str:
    """A text on one line; of a long one, beginning and end."""
    line = " ".join(text.split())
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
