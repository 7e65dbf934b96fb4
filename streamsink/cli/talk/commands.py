"""Commands in a chat: what begins with a slash."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from streamsink.cli.talk.talk import Talk
    from streamsink.cli.terminal import Write


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
) -> Callable[[Do], Command]:
    """Make a command of a function."""
    return lambda do: Command(name, argument, says, do, values, others, tells)
