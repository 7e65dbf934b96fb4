"""A llama-cpp-python that is missing, broken or too old is named as such, with what mends it."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from streamsink.system import installing
from tests.test_cli import STREAMSINK

NEEDED = [
    ["chat", "{model}", "-p", "Hi"],
    ["generate", "{model}", "-p", "Hi"],
    ["doctor", "{model}"],
    ["doctor"],
    ["bench", "speed", "{model}"],
]
NOT_NEEDED = [["--help"], ["--version"], ["chat", "--help"], ["models"], ["sessions"]]
BROKEN = {
    "missing": ("raise ModuleNotFoundError('gone', name='llama_cpp')", "is not installed"),
    "broken": ("raise RuntimeError('libllama.so: no such file')", "cannot be loaded (libllama.so"),
    "lacking": ("import diskcache_that_is_not_there", "lacks diskcache_that_is_not_there"),
    "old": ("__version__ = '0.2.90'", "0.2.90 is too old"),
}


def run(
    arguments: list[str], code: str, folder: Path, model: Path
) -> subprocess.CompletedProcess[str]:
    """A command where ``llama_cpp`` is a module with this code."""
    (folder / "llama_cpp").mkdir(exist_ok=True)
    (folder / "llama_cpp" / "__init__.py").write_text(code)
    (folder / "llama_cpp" / "llama_cpp.py").write_text(code)
    return subprocess.run(
        [*STREAMSINK, *(word.format(model=model) for word in arguments)],
        env={**os.environ, "PYTHONPATH": str(folder), "STREAMSINK_HOME": str(folder)},
        capture_output=True, text=True, check=False, timeout=60, input="", cwd=folder,
    )  # fmt: skip


@pytest.mark.parametrize("arguments", NEEDED, ids=" ".join)
@pytest.mark.parametrize("how", BROKEN)
def test_it_is_named(how: str, arguments: list[str], tmp_path: Path, tiny_path: Path) -> None:
    if how == "old" and arguments == ["doctor", "{model}"]:
        pytest.skip("a child process goes by the metadata, which are the installed package's")
    code, says = BROKEN[how]
    done = run(arguments, code, tmp_path, tiny_path)
    assert done.returncode == 1
    assert says in done.stderr
    assert "pip install" in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize("arguments", NOT_NEEDED, ids=" ".join)
def test_what_does_not_need_it_works(arguments: list[str], tmp_path: Path, tiny_path: Path) -> None:
    assert run(arguments, BROKEN["broken"][0], tmp_path, tiny_path).returncode == 0


@pytest.mark.parametrize(
    ("prefix", "has_pip", "command"),
    [
        ("/home/me/venv", True, "{python} -m pip install 'a[b]>=1'"),
        ("/home/me/venv", False, "uv pip install --python {python} 'a[b]>=1'"),
        ("/home/me/.local/share/pipx/venvs/streamsink", True, "pipx inject streamsink 'a[b]>=1'"),
        ("/home/me/.local/share/uv/tools/streamsink", False,
         "uv tool install --with 'a[b]>=1' streamsink"),
    ],
)  # fmt: skip
def test_the_command_is_that_of_the_environment(
    prefix: str, has_pip: bool, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = f"{prefix}/bin/python"
    monkeypatch.setattr(sys, "prefix", prefix)
    monkeypatch.setattr(sys, "executable", python)
    monkeypatch.setattr(installing, "find_spec", lambda _: object() if has_pip else None)
    found = installing.how_to_install("a[b]>=1")
    assert found == command.format(python=python)
    assert "a[b]>=1" in shlex.split(found)


def test_the_command_works_from_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv" / "bin" / "python"))
    assert installing.how_to_install("x").startswith(".venv/bin/python -m pip install")
