"""The page of all commands and options, and what every help text has in common."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streamsink.cli.lazy import load, polished_all
from streamsink.cli.main import COMMANDS
from tests.test_cli import run

SCRIPT = Path(__file__).parents[1] / "scripts" / "reference.py"


def commands() -> Iterator[tuple[str, Any]]:
    """Every command with its name, those within groups too."""
    left = [(name, polished_all(load(name, place))) for name, place in COMMANDS.items()]
    while left:
        name, command = left.pop()
        yield name, command
        left += [
            (f"{name} {inner}", one) for inner, one in getattr(command, "commands", {}).items()
        ]


def test_the_page_is_not_stale() -> None:
    spec = importlib.util.spec_from_file_location("reference", SCRIPT)
    assert spec
    assert spec.loader
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    assert reference.PAGE.read_text("utf-8") == reference.page(), reference.STALE


@pytest.mark.parametrize("name", [name for name, _ in commands()])
def test_every_help_text(name: str) -> None:
    command = dict(commands())[name]
    first = command.help.partition("\n")[0]
    assert first.endswith("."), first
    for param in command.params:
        if param.name != "help":
            assert re.search(r"[.…;)\]']$", param.help.replace("[/dim]", "")), param.name
        if param.param_type_name == "option" and not (param.is_flag or param.count):
            assert param.metavar, f"{param.name} does not say what it takes"


@pytest.mark.parametrize("command", ["chat", "generate", "models add", "doctor", "sessions rm"])
def test_no_help_speaks_of_types(command: str) -> None:
    done = run(*command.split(), "--help")
    assert not re.search(r"<(bool|int|float|str|path)>", done.stdout)
    assert "default: (" not in done.stdout


def test_generate_offers_nothing_that_it_refuses() -> None:
    shown = run("generate", "--help").stdout
    assert "system" not in shown
    assert "turn" not in shown.replace("return", "")
    assert "sentence" in shown
