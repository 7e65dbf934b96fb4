"""A group of commands that are imported when they are asked for: help needs their names alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup


class Place(NamedTuple):
    """Where a command is.

    Attributes
    ----------
    module : str
        The module, in which it has the command's own name; a group is its ``app``.
    says : str
        The first line of its help.
    """

    module: str
    says: str


def lazy(places: Mapping[str, Place], elsewhere: Mapping[str, str]) -> type[TyperGroup]:
    """A class of groups for commands that lie in modules of their own, in this order.

    Parameters
    ----------
    places : Mapping[str, Place]
        The commands by name.
    elsewhere : Mapping[str, str]
        Names that people bring along from other tools, and what to type here.
    """

    class Lazy(TyperGroup):
        def __init__(self, **attrs: Any) -> None:
            super().__init__(**attrs)
            self.commands = {
                name: TyperCommand(name, help=place.says) for name, place in places.items()
            }
            polished(self)
            self._lists = False

        def get_command(self, ctx: Any, cmd_name: str) -> Any:
            if self._lists or cmd_name not in places:
                return super().get_command(ctx, cmd_name)
            return polished_all(load(cmd_name, places[cmd_name]))

        def resolve_command(self, ctx: Any, args: list[str]) -> Any:
            if args[0] in elsewhere:
                ctx.fail(f"no command {args[0]!r}: here it is `{elsewhere[args[0]]}`")
            return super().resolve_command(ctx, args)

        def format_help(self, ctx: Any, formatter: Any) -> None:
            with self._listing():
                super().format_help(ctx, formatter)

        def shell_complete(self, ctx: Any, incomplete: str) -> Any:
            with self._listing():
                return super().shell_complete(ctx, incomplete)

        @contextmanager
        def _listing(self) -> Iterator[None]:
            self._lists = True
            try:
                yield
            finally:
                self._lists = False

    return Lazy


def load(name: str, place: Place) -> Any:
    """Import a command."""
    module = import_module(place.module)
    app: typer.Typer | None = getattr(module, "app", None)
    if app is not None:
        group = typer.main.get_group(app)
        group.name = name
        return group
    alone = typer.Typer(add_completion=False)
    command: Callable[..., None] = getattr(module, name)
    alone.command(name)(command)
    return typer.main.get_command(alone)


def polished_all(command: Any) -> Any:
    """A command, and those within it, `polished`."""
    for inner in getattr(command, "commands", {}).values():
        polished_all(inner)
    return polished(command)


def polished(command: Any) -> Any:
    """A command whose help is as people are used to it.

    Paragraphs wrap at the edge; what takes a value says of what kind, and a switch nothing; a
    default that is known by a word stands in brackets like the others.
    """
    command.help = "\n\n".join(
        " ".join(paragraph.split()) for paragraph in (command.help or "").split("\n\n")
    )
    for param in command.params:
        _polish(param)
    params_of = command.get_params  # among them one that no command states: --help
    command.get_params = lambda ctx: [_polish(param) for param in params_of(ctx)]
    return command


def _polish(param: Any) -> Any:
    if getattr(param, "is_flag", False) or param.param_type_name == "argument":
        param.display_type_rich = lambda ctx: ""
    shown = getattr(param, "show_default", None)
    if isinstance(shown, str):
        param.help = f"{param.help} [dim]\\[default: {shown}][/dim]"
        param.show_default = False
    return param
