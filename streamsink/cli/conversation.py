"""A chat with somebody at the keyboard, or a script at the other end of a pipe."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import typer

from streamsink.chat.thought_stream import Thoughts
from streamsink.cli import terminal
from streamsink.cli.commands import COMMANDS, Commands, is_command, said
from streamsink.cli.keeping import Keeping
from streamsink.errors import StreamsinkError
from streamsink.session import shelf
from streamsink.system.reading import typed
from streamsink.system.turns import turns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamsink.chat.chat import Chat
    from streamsink.cli.terminal import Write
    from streamsink.core.events import Event
    from streamsink.core.sampling import Sampling

LEAST_WINDOW = 64
"""Tokens beside what is pinned below which a chat is told that there are too few."""


def fitting(width: int, *parts: tuple[str, str]) -> str:
    """A line of parts, each of what has to be said and what may be, as much as there is room for.

    What may be said is dropped from the end on, and then what has to be.
    """
    shown = [(must, may) for must, may in parts]
    for at in reversed(range(len(shown))):
        if sum(len(must) + len(may) for must, may in shown) > width:
            shown[at] = (shown[at][0], "")
    while len(shown) > 1 and sum(len(must) for must, _ in shown) > width:
        shown.pop()
    return "".join(must + may for must, may in shown)


class Conversation:
    """A chat, and what is done with it.

    Parameters
    ----------
    chat : Chat
        The chat, perhaps out of a session.
    sampling : Sampling
        How answers are chosen.
    max_tokens : int or None
        Most tokens of an answer; None: as many as it takes.
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
        max_tokens: int | None,
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
        self._commands = Commands(chat, self._keeping, self._greet)

    def let_go(self) -> None:
        """Let others have the session file, once it is written."""
        try:
            self._keeping.let_go()
        except StreamsinkError as error:
            terminal.tell(str(error))

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
            if not is_command(text):
                self._answer(said(text), terminal.err)
                continue
            try:
                if not self._commands.run(text, terminal.err):
                    break
            except StreamsinkError as error:
                terminal.tell(str(error))
                code = error.exit_code
        raise typer.Exit(code)

    def once(self, question: str) -> None:
        """Answer one question; what concerns the program goes to stderr."""
        try:
            self._answer(question, terminal.err)
        except KeyboardInterrupt:
            terminal.out("\n")
            raise

    def interactive(self, title: str, advice: str = "") -> None:
        """Line editing, history, a status line; Ctrl-C stops an answer, Ctrl-D leaves.

        Parameters
        ----------
        title, advice : str
            What is said first.
        """
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
        self._keeping.aside = True
        terminal.say(title)
        if advice:
            terminal.say(advice)
        terminal.say("/help lists the commands, Ctrl-D leaves.")
        self._greet(terminal.out)
        while True:
            self._tell_what_went_wrong()
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

    def _tell_what_went_wrong(self) -> None:
        """Tell of a session that could not be written meanwhile."""
        try:
            self._keeping.check()
        except StreamsinkError as error:
            terminal.tell(str(error))

    def _take(self, text: str) -> bool:
        """Take a line from the keyboard; False ends the conversation."""
        before = self._state()
        try:
            if is_command(text):
                return self._commands.run(text, terminal.out)
            self._answer(said(text), terminal.out)
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
        return chat.conversation(), chat.stream.policy, chat.stream.pinned_ranges

    def change_system(self, prompt: str) -> int:
        """Change the system prompt; return how many tokens were evaluated."""
        n_evaluated = self._chat.change_system(prompt)
        self._save()
        return n_evaluated

    def _greet(self, write: Write) -> None:
        """Tell what came out of a session, if this is one."""
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
            for part in thoughts.push(step.text, final=finish is not None):
                if thinks and not part.thought:
                    think("\n\n")
                thinks = part.thought
                (think if thinks else terminal.out)(part.text, dim=thinks)
                is_empty &= thinks or not part.text.strip()
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
        """Tell when the window is too small for what is said in it."""
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
        """Tell of a turn or a sentence that was cut in two."""
        if self._cuts:
            n_tokens = sum(event.n_tokens for event in self._cuts)
            self._cuts.clear()
            what = self._chat.stream.policy.n_discard
            write(f"({n_tokens:,} tokens of one {what} were cut off: it alone fills the window)\n")

    def _save(self) -> None:
        self._keeping.save()

    def _status(self) -> str:
        stats, n_ctx = self._chat.stream.stats, self._chat.stream.n_ctx
        n_seen, threads = stats.pinned + stats.window, stats.threads
        return fitting(
            shutil.get_terminal_size().columns,
            (f"{n_seen:,} of {n_ctx:,}", " tokens"),
            ("", f": {stats.pinned:,} pinned + {stats.window:,} recent"),
            (f" · {stats.evicted:,} forgotten", ""),
            (f" · {stats.rate:.0f} tok/s", ""),
            ("", f" · {threads.n} of {threads.n_max} threads: {threads.why}" * bool(threads.why)),
        )
