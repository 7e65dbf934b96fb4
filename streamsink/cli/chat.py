"""``streamsink chat``: a conversation in the terminal, or line by line through a pipe."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from streamsink.cli.grouped import grouped
from streamsink.cli.options import (
    CacheOptions,
    EngineOptions,
    LogOptions,
    ModelName,
    PolicyOptions,
    SamplingOptions,
    discard_of,
    keep_of,
    opened,
    read_text,
)
from streamsink.errors import StreamsinkError, UsageError

if TYPE_CHECKING:
    from streamsink.chat import Chat
    from streamsink.records import Stats
    from streamsink.sampling import Sampling

COMMANDS = {
    "help": ("", "this text"),
    "stats": ("", "the stream in numbers"),
    "memory": ("", "what the model can see, and the edges of what it has forgotten"),
    "keep": ("N", "pin the first N visible tokens (or: system)"),
    "discard": ("N", "evict N tokens at once (or: half, turn, sentence)"),
    "pin": ("", "keep the last exchange for good"),
    "unpin": ("", "release what was pinned last"),
    "system": ("TEXT", "change the system prompt in mid-stream; what is visible stays"),
    "reset": ("", "begin anew"),
    "quit": ("", "leave (also Ctrl-D)"),
}
KEYS = "Ctrl-C stops an answer and keeps the conversation. Alt-Enter makes a new line."


@grouped
def chat(
    model: ModelName = "",
    system: Annotated[str | None, typer.Option("--system", help="System prompt.")] = None,
    system_file: Annotated[
        Path | None, typer.Option("--system-file", help="File with the system prompt.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 1024,
    *,
    memory: PolicyOptions,
    cache: CacheOptions,
    sample: SamplingOptions,
    engine: EngineOptions,
    log: LogOptions,
) -> None:
    """Talk with a model without end; it forgets the oldest words, never the pinned ones.

    When stdin is no terminal, each line is a turn and the answers go to stdout as plain text.
    """
    if system is not None and system_file is not None:
        raise UsageError("--system and --system-file exclude one another: give one")
    if max_tokens < 1:
        raise UsageError(f"--max-tokens {max_tokens} is not possible: 1 or more")
    policy = memory.policy(model, default_keep="system")
    prompt = read_text("system-file", system_file) if system_file else system or ""
    sampling = sample.sampling()
    with opened(model, policy, memory.ctx, engine, cache, log, chat=True) as (loaded, stream):
        from streamsink.chat import Chat
        from streamsink.template import ChatTemplate

        template = ChatTemplate(loaded.chat_template, loaded.special_texts)
        conversation = Conversation(Chat(stream, template, prompt), sampling, max_tokens)
        if sys.stdin.isatty():
            conversation.interactive(f"{loaded.path.name} · {loaded.description}")
        else:
            conversation.piped()


class Conversation:
    """A chat with somebody at the keyboard, or a script at the other end of a pipe."""

    def __init__(self, chat: Chat, sampling: Sampling, max_tokens: int) -> None:
        self._chat = chat
        self._sampling = sampling
        self._max_tokens = max_tokens

    def piped(self) -> None:
        """Each line of stdin is a turn; what concerns the program goes to stderr.

        A command that cannot be carried out is told, and the next line is read; the exit code
        remembers it.
        """
        code = 0
        for line in sys.stdin:
            text = line.rstrip("\n")
            if not text.strip():
                continue
            if not text.startswith("/"):
                self._answer(text)
                continue
            try:
                if not self._command(text, sys.stderr.write):
                    break
            except UsageError as error:
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
        session: PromptSession[str] = PromptSession(
            history=FileHistory(str(history)),
            completer=WordCompleter([f"/{name}" for name in COMMANDS], sentence=True),
            complete_while_typing=False,
            key_bindings=keys,
            bottom_toolbar=self._status,
        )
        print(f"{title}\n/help lists the commands, Ctrl-D leaves.")
        while True:
            try:
                text = session.prompt("> ").strip()
            except KeyboardInterrupt:
                continue
            except EOFError:
                return
            if not text:
                continue
            try:
                if text.startswith("/"):
                    if not self._command(text, sys.stdout.write):
                        return
                    continue
                self._answer(text)
            except KeyboardInterrupt:
                print("\n(stopped)")
            except StreamsinkError as error:
                print(f"streamsink: {error}", file=sys.stderr)

    def _answer(self, text: str) -> None:
        # Plain writes: what a model says is never markup, nor an order to the terminal.
        shown = _harmless if sys.stdout.isatty() else str
        for step in self._chat.say(text, self._max_tokens, sampling=self._sampling):
            sys.stdout.write(shown(step.text))
            sys.stdout.flush()
        sys.stdout.write("\n")
        sys.stdout.flush()

    def _status(self) -> str:
        stats = self._chat.stream.stats
        return f"sees {_sees(stats)} · {stats.evicted:,} forgotten · {stats.rate:.0f} tok/s"

    def _command(self, line: str, write: object) -> bool:
        """Carry out a command; False ends the conversation."""
        assert callable(write)
        name, _, argument = line[1:].partition(" ")
        argument = argument.strip()
        stream = self._chat.stream
        if name in ("quit", "exit"):
            return False
        if name == "help":
            for command, (argument, says) in COMMANDS.items():
                write(f"{f'/{command} {argument}':16} {says}\n")
            write(f"{KEYS}\n")
        elif name == "stats":
            write(_lines(stream.stats))
        elif name == "memory":
            write(self._memory())
        elif name == "keep":
            stream.change(n_keep=keep_of(argument))
            write(f"pinned: {stream.stats.pinned} tokens\n")
        elif name == "discard":
            stream.change(n_discard=discard_of(argument))
            write(f"discard: {stream.policy.n_discard}\n")
        elif name == "pin":
            write(f"pinned: {self._chat.pin()} tokens\n")
        elif name == "unpin":
            write(f"pinned: {self._chat.unpin()} tokens\n")
        elif name == "system":
            n_tokens = self._chat.change_system(argument)
            write(f"system prompt changed, {n_tokens} tokens evaluated\n")
        elif name == "reset":
            self._chat.reset()
            write("begun anew\n")
        else:
            raise UsageError(f"/{name} is no command: /help lists them")
        return True

    def _memory(self) -> str:
        lines = []
        for part in self._chat.stream.visible():
            text = " ".join(part.text.split())
            edges = text if len(text) <= 80 else f"{text[:38]} … {text[-38:]}"
            kind = "pinned" if part.pinned else "window"
            lines.append(f"{kind} {_range(part.start, part.stop)}: {edges}\n")
        lines.append(f"forgotten: {self._chat.stream.stats.evicted:,} tokens\n")
        return "".join(lines)


# What moves a cursor, changes colours or rings the bell: C0 and C1 but for new lines and tabs.
_CONTROLS = dict.fromkeys([*range(32), *range(127, 160)])
del _CONTROLS[ord("\n")], _CONTROLS[ord("\t")]


def _harmless(text: str) -> str:
    return text.translate(_CONTROLS)


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
