"""Commands that save a chat, load another one, or begin anew."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamsink.cli import terminal
from streamsink.cli.talk.commands import After, command
from streamsink.session import shelf

if TYPE_CHECKING:
    from streamsink.cli.talk.talk import Talk
    from streamsink.cli.terminal import Write


def session_names(_: Talk, __: list[str]) -> dict[str, str]:
    """Names of sessions, to be completed."""
    return {shelf.name_of(path): "" for path in shelf.files()}


@command("save", "[NAME]", "save the session, by a name or into a file: ./FILE",
         values=session_names)  # fmt: skip
def _save(talk: Talk, argument: str, write: Write) -> None:
    if argument:
        write(talk.keeping.save_as(shelf.locate(argument)))
    elif path := talk.keeping.save_now():
        write(f"saved: {terminal.line(str(path))}\n")
    else:
        write("saved nowhere: /save NAME saves it, and then after every turn\n")


@command("load", "[NAME]", "go on with another session", values=session_names)
def _load(talk: Talk, argument: str, write: Write) -> None:
    if argument:
        talk.keeping.load(shelf.locate(argument), lambda: talk.greet(write))
        return
    write(f"session: {talk.keeping.name or 'none'}\n")
    if names := [shelf.name_of(path) for path in shelf.files()]:
        write(f"others: {', '.join(map(terminal.line, names))}\n")


@command("reset", "", "begin anew; a session that was saved stays as it is", "clear", "new")
def _reset(talk: Talk, _: str, write: Write) -> None:
    write(talk.keeping.reset())


@command("bye", "", "leave (also Ctrl-D)", "quit", "exit")
def _bye(_: Talk, __: str, ___: Write) -> After:
    return After(leaves=True)


COMMANDS = (_save, _load, _reset, _bye)
