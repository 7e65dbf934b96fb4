"""Commands in a chat: what begins with a slash."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from streamsink.errors import UsageError

if TYPE_CHECKING:
    from streamsink.cli.talk.talk import Talk
    from streamsink.cli.terminal import Write

KEYS = (
    "Ctrl-C stops an answer and keeps the conversation. Alt-Enter makes a new line, and "
    '""" opens and closes many. Ctrl-X Ctrl-E opens your editor. Ctrl-L clears the screen.\n'
    "A message that begins with a slash is typed with two: //etc says /etc."
)
_COMMAND = re.compile(r"/(\S*)\s*(.*)", re.S)


class After(NamedTuple):
    """What follows a command.

    Attributes
    ----------
    leaves : bool
        Whether the conversation ends.
    typed : str
        What stands on the next line already, to be changed.
    """

    leaves: bool = False
    typed: str = ""


Do: TypeAlias = "Callable[[Talk, str, Write], After | None]"


@dataclass(frozen=True)
class Command:
    """Something that can be done with a chat beside talking.

    Attributes
    ----------
    name : str
        Without its slash.
    argument : str
        What follows it, for people.
    says : str
        What it does.
    do : callable
        Does it.
    values : callable
        Words that may stand where an argument is being typed, each with what it means, by the words
        before it.
    others : tuple of str
        Other names.
    tells : bool
        Whether it tells of itself how far it is, as answers do.
    """

    name: str
    argument: str
    says: str
    do: Do
    values: Values
    others: tuple[str, ...] = ()
    tells: bool = False


Values: TypeAlias = "Callable[[Talk, list[str]], dict[str, str]]"
_COMMANDS: dict[str, Command] = {}


def no_values(_: Talk, __: list[str]) -> dict[str, str]:
    """Nothing that could be completed."""
    return {}


def command(
    name: str,
    argument: str,
    says: str,
    *others: str,
    values: Values = no_values,
    tells: bool = False,
) -> Callable[[Do], Do]:
    """Enter a function as a command."""

    def enter(do: Do) -> Do:
        _COMMANDS[name] = Command(name, argument, says, do, values, others, tells)
        return do

    return enter


def commands() -> dict[str, Command]:
    """All commands by name, in the order in which they are shown."""
    # Importing a module is what enters its commands.
    from streamsink.cli.talk import looking, turning, changing, saving  # noqa: F401, I001

    return _COMMANDS


def find(line: str) -> tuple[Command, str]:
    """The command of a line, and its argument.

    Raises
    ------
    UsageError
        There is none.
    """
    found = _COMMAND.match(line)
    assert found
    name, argument = found.groups()
    for known in commands().values():
        if name in (known.name, *known.others):
            return known, argument.strip()
    raise UsageError(f"/{name} is no command: /help lists them, and //{name} says it")


def is_command(text: str) -> bool:
    """Whether a message is a command: with a second slash it is not."""
    return text.startswith("/") and not text.startswith("//")


def said(text: str) -> str:
    """What a message says: a second slash at its beginning tells it from a command."""
    return text.removeprefix("/")
