"""Every command and option of streamsink in Markdown, from the commands themselves."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from streamsink.cli.lazy import load
from streamsink.cli.main import COMMANDS
from streamsink.cli.talk.settings import SETTINGS
from streamsink.cli.talk.table import COMMANDS as IN_A_CHAT
from streamsink.cli.talk.table import KEYS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference.md"
STALE = "docs/reference.md is stale: scripts/reference writes it anew"
HEAD = """# Reference

Every command and option, written by `scripts/reference` from the commands themselves. `--help` says
the same in a terminal.
"""


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for name, place in COMMANDS.items():
        parts += _command(load(name, place), f"streamsink {name}")
    parts += _in_a_chat()
    return "\n".join(parts).rstrip() + "\n"


def _command(command: Any, name: str, level: int = 2) -> Iterator[str]:
    yield f"{'#' * level} `{name}`\n"
    yield from (f"{' '.join(part.split())}\n" for part in (command.help or "").split("\n\n"))
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    options = [one for one in command.params if one.param_type_name == "option"]
    if arguments:
        yield "| argument | |\n|---|---|"
        yield from (
            f"| `{one.metavar or one.name.upper()}` | {_cell(one.help)} |" for one in arguments
        )
        yield ""
    panels = dict.fromkeys(_panel(one) for one in options)
    for panel in panels:
        yield f"| {panel} | | default |\n|---|---|---|"
        for one in options:
            if _panel(one) == panel:
                yield f"| {_names(one)} | {_cell(one.help)} | {_default(one)} |"
        yield ""
    for inner_name, inner in sorted(getattr(command, "commands", {}).items()):
        if not inner.hidden:
            yield from _command(inner, f"{name} {inner_name}", level + 1)


def _panel(option: Any) -> str:
    return option.rich_help_panel or "Options"


def _names(option: Any) -> str:
    takes = "" if option.is_flag or option.count else f" {option.metavar or 'VALUE'}"
    names = sorted(option.opts, key=len, reverse=True) + option.secondary_opts
    return _cell(f"`{', '.join(names)}{takes}`")


def _default(option: Any) -> str:
    if isinstance(option.show_default, str):
        return _cell(option.show_default)
    value = option.default
    if option.is_flag or option.count or value in (None, ()) or not option.show_default:
        return ""
    return f"`{value}`"


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


def _in_a_chat() -> Iterator[str]:
    yield "## In a chat\n"
    yield f"{' '.join(KEYS.split())}\n"
    yield "| command | | also |\n|---|---|---|"
    for one in IN_A_CHAT:
        others = ", ".join(f"`/{name}`" for name in one.others)
        yield f"| `/{_cell(f'{one.name} {one.argument}'.strip())}` | {_cell(one.says)} | {others} |"
    yield "\n`/set`, and `/retry` for one answer, take these settings:\n"
    yield "| setting | | also |\n|---|---|---|"
    for setting in SETTINGS:
        others = ", ".join(f"`{name}`" for name in setting.others)
        yield f"| `{setting.name}` | {_cell(setting.says)} | {others} |"


if __name__ == "__main__":
    text = page()
    if "--check" in sys.argv[1:]:
        sys.exit(0 if PAGE.read_text("utf-8") == text else STALE)
    PAGE.write_text(text, "utf-8")
