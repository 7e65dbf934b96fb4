"""What the documents show works: Python runs in order, and commands are commands."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from streamsink.cli.lazy import load
from streamsink.cli.main import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)


def blocks(path: Path, language: str) -> list[str]:
    return [text for kind, text in _BLOCK.findall(path.read_text("utf-8")) if kind == language]


def test_python_runs_in_order(tmp_path: Path, default_model: str) -> None:
    """All of it in one process, as somebody would who reads on."""
    script = tmp_path / "readme.py"
    script.write_text("\n".join(blocks(ROOT / "README.md", "python")))
    done = subprocess.run(
        [sys.executable, "-W", "error::SyntaxWarning", str(script)],
        cwd=tmp_path, capture_output=True, text=True, timeout=250, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for says in (
        r"<Stream: 256 of 256 tokens: 4 pinned \+ 252 recent, \d+ forgotten>",
        r"Aligned\(n_kept=\d+, n_taken_out=\d+",
        r"\['pinned', 'pinned'\]",
    ):
        assert re.search(says, done.stdout), says
    evicted = re.search(r"(\d+)$", done.stdout.strip())  # by the Llama that was attached
    assert evicted
    assert int(evicted[1]) > 0


def shown_commands() -> list[tuple[str, list[str]]]:
    """Every line of a document that calls streamsink, and the words after that."""
    found = []
    for path in PAGES:
        for block in blocks(path, "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                for at, word in enumerate(words):
                    if word in ("streamsink", "scripts/run"):
                        rest = words[at + 1 :]
                        end = next((n for n, one in enumerate(rest) if one in "|<>&"), len(rest))
                        if words[max(0, at - 1)] not in ("install",):
                            found.append((f"{path.name}: {line.strip()}", rest[:end]))
    return found


@pytest.mark.parametrize(("line", "words"), shown_commands(), ids=lambda one: str(one)[:60])
def test_every_command_that_is_shown_is_one(line: str, words: list[str]) -> None:
    command: Any
    name, *rest = words or ["--help"]
    if name.startswith("-"):
        return
    command = load(name, COMMANDS[name])
    while commands := getattr(command, "commands", None):
        if not rest or rest[0] not in commands:
            assert not rest or name == "bench", line
            break
        name = rest.pop(0)
        command = commands[name]
    else:
        command.make_context(name, rest)  # which parses, and complains


def test_files_that_documents_point_to_are_there() -> None:
    for path in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8")):
            if not target.startswith(("http", "#")):
                assert (path.parent / target.partition("#")[0]).exists(), f"{path.name}: {target}"
