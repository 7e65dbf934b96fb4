"""A chat with somebody at the keyboard, or a script at the other end of a pipe."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from typing import TYPE_CHECKING

import typer

from streamsink.cli import terminal
from streamsink.cli.life import reading
from streamsink.cli.talk.commands import After
from streamsink.cli.talk.messages import is_command, said, whole
from streamsink.cli.talk.table import find
from streamsink.errors import StreamsinkError
from streamsink.system.turns import turns

if TYPE_CHECKING:
    from streamsink.cli.talk.speaking import Spoken
    from streamsink.cli.talk.talk import Talk
    from streamsink.cli.terminal import Write

STAYS = After()


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


def piped(talk: Talk, separator: str = "\n") -> None:
    """Take messages from stdin; what concerns the program goes to stderr.

    A command that cannot be carried out is told, and the next message is taken; the exit code
    remembers it.

    Parameters
    ----------
    talk : Talk
        The chat.
    separator : str
        What stands between two messages.
    """
    code = 0
    write = terminal.err
    talk.greet(write)
    lines = turns(separator, terminal.tell)
    for text in whole(lines) if separator == "\n" else lines:
        if not text.strip():
            continue
        if not is_command(text):
            talk.say(said(text), write)
            continue
        try:
            if _carry_out(talk, text, write).leaves:
                break
        except StreamsinkError as error:
            terminal.tell(error)
            code = error.exit_code
    raise typer.Exit(code)


def once(talk: Talk, question: str) -> Spoken:
    """Answer one question; what concerns the program goes to stderr."""
    try:
        return talk.say(question, terminal.err)
    except KeyboardInterrupt:
        terminal.out("\n")
        raise


def interactive(talk: Talk, title: str, advice: str = "") -> None:
    """Line editing, history, a status line; Ctrl-C stops an answer, Ctrl-D leaves.

    Parameters
    ----------
    talk : Talk
        The chat.
    title, advice : str
        What is said first.
    """
    from streamsink.cli.talk.prompt import Prompt

    write = terminal.Flow()
    prompt = Prompt(talk, lambda: status(talk))
    talk.keeping.aside = True
    for line in (title, advice, "/help lists the commands, Ctrl-D leaves."):
        if line:
            write(f"{terminal.line(line)}\n")
    talk.greet(write)
    typed = ""
    while True:
        _tell_what_went_wrong(talk)
        try:
            text = prompt.ask(typed).strip()
        except KeyboardInterrupt:
            typed = ""
            continue
        except EOFError:
            return
        typed = ""
        if not text:
            continue
        try:
            leaves, typed = _take(talk, text, write)
        except StreamsinkError as error:
            terminal.tell(error)
            continue
        if leaves:
            return


def status(talk: Talk) -> str:
    """The line at the bottom: how full the context is, and with what."""
    stats, n_ctx = talk.chat.stream.stats, talk.chat.stream.n_ctx
    n_seen, threads = stats.pinned + stats.window, stats.threads
    return fitting(
        shutil.get_terminal_size().columns,
        (f"{n_seen:,} of {n_ctx:,}", " tokens"),
        ("", f": {stats.pinned:,} pinned + {stats.window:,} recent"),
        (f" · {stats.evicted:,} forgotten", ""),
        (f" · {stats.rate:.0f} tok/s", ""),
        ("", f" · {threads.n} of {threads.n_max} threads: {threads.why}" * bool(threads.why)),
    )


def _tell_what_went_wrong(talk: Talk) -> None:
    """Tell of a session that could not be written meanwhile."""
    try:
        talk.keeping.check()
    except StreamsinkError as error:
        terminal.tell(error)


def _take(talk: Talk, text: str, write: terminal.Flow) -> After:
    """Take a message from the keyboard."""
    before = _state(talk)
    try:
        if is_command(text):
            return _carry_out(talk, text, write)
        talk.say(said(text), write)
    except KeyboardInterrupt:
        if _state(talk) == before:
            write("\n(stopped: nothing of it was taken in)\n")
        else:
            write("\n(stopped: /continue goes on)\n")
            talk.tell_cuts(write)
            talk.keeping.save()
    return STAYS


def _carry_out(talk: Talk, line: str, write: Write) -> After:
    """Carry out a command; what takes long shows how far it is."""
    command, argument = find(line)
    if command.tells:
        return command.do(talk, argument, write) or STAYS
    with ExitStack() as shown:
        life = shown.enter_context(reading(talk.chat.stream, f"/{command.name}"))

        def write_alone(text: str, *, dim: bool = False) -> None:
            life.close()
            write(text, dim=dim)

        return command.do(talk, argument, write_alone) or STAYS


def _state(talk: Talk) -> object:
    """What a message from the keyboard may change."""
    chat = talk.chat
    return chat.conversation(), chat.stream.policy, chat.stream.pinned_ranges
