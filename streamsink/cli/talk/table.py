"""All commands of a chat."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from streamsink.cli.talk import changing, looking, saving, turning
from streamsink.cli.talk.commands import Command, command
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


@command("help", "", "this text", "?")
def _help(_: Talk, __: str, write: Write) -> None:
    width = max(len(f"{one.name} {one.argument}") for one in COMMANDS)
    for one in COMMANDS:
        others = f" (also /{', /'.join(one.others)})" if one.others else ""
        write(f"/{f'{one.name} {one.argument}':{width}} {one.says}{others}\n")
    write(f"{KEYS}\n")


COMMANDS: tuple[Command, ...] = (
    _help,
    *looking.COMMANDS,
    *turning.COMMANDS,
    *changing.COMMANDS,
    *saving.COMMANDS,
)
"""In the order in which they are shown."""


def named(name: str) -> Command | None:
    """The command of a name, or of another name that it has."""
    return next((one for one in COMMANDS if name in (one.name, *one.others)), None)


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
    command = named(name)
    if command is None:
        raise UsageError(f"/{name} is no command: /help lists them, and //{name} says it")
    return command, argument.strip()
