"""Which model a command line means, and one that is not here offered and pulled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pexpect
import pytest

from streamsink.cli.choosing import ModelOptions
from streamsink.errors import FetchError, UsageError
from streamsink.registry import edit
from streamsink.registry.catalog import load_registry
from streamsink.registry.repository import named
from streamsink.registry.sources import HfSource, UrlSource
from tests.pulls import FileServer, sha256
from tests.test_cli import STREAMSINK

pytestmark = pytest.mark.usefixtures("bare_home")
SHORT = ["-c", "128", "-n", "4", "-t", "1", "--seed", "1"]


# -- the words of a command line ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "options", "model", "prompt"),
    [
        ([], {}, "", None),
        (["m"], {}, "m", None),
        (["m", "Why", "so?"], {}, "m", "Why so?"),
        (["Why is it so?"], {}, "", "Why is it so?"),
        (["-"], {}, "", "-"),
        (["m", "-"], {}, "m", "-"),
        (["Why?"], {"model": "m"}, "m", "Why?"),
        ([], {"model": "m"}, "m", None),
    ],
)
def test_model_and_prompt(
    words: list[str], options: dict[str, Any], model: str, prompt: str | None
) -> None:
    assert ModelOptions(**options).choose(words, None) == (model, prompt)
    if prompt is None:
        assert ModelOptions(**options).choose(words, "Why?") == (model, "Why?")
    else:
        with pytest.raises(UsageError, match="given twice"):
            ModelOptions(**options).choose(words, "Why?")


def test_a_file_whose_name_has_blanks_is_a_model(tmp_path: Path) -> None:
    (tmp_path / "my own model").touch()
    assert ModelOptions().choose(["my own model"], None).model == "my own model"


# -- repositories of the Hub ----------------------------------------------------------------------


def about(*files: str, **more: Any) -> bytes:
    listed = [{"rfilename": name, "size": 7, "lfs": {"sha256": "a" * 64}} for name in files]
    return json.dumps({"siblings": listed, "sha": "c0ffee", **more}).encode()


FILES = (
    *("README.md", "mmproj-it-f16.gguf", "it-Q8_0.gguf", "it-Q4_K_M.gguf", "it-Q4_K_S.gguf"),
    "big-00001-of-00002.gguf",
)


@pytest.fixture
def hub(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> FileServer:
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    server.body = about(*FILES, cardData={"license": "mit"})
    return server


@pytest.mark.parametrize(
    ("asked", "name", "file"),
    [
        ("me/It-GGUF", "it", "it-Q4_K_M.gguf"),
        ("me/It-GGUF:Q8_0", "it-q8_0", "it-Q8_0.gguf"),
        ("me/it:q4_k_s", "it-q4_k_s", "it-Q4_K_S.gguf"),
    ],
)
def test_a_repository_gets_a_name(hub: FileServer, asked: str, name: str, file: str) -> None:
    assert named(asked) == name
    entry = load_registry()[name]
    assert entry.source == HfSource(asked.partition(":")[0], file, "c0ffee")
    assert (entry.size, entry.sha256, entry.licence) == (7, "a" * 64, "mit")
    assert hub.requests[0][0] == f"/api/models/{asked.partition(':')[0]}?blobs=true"
    assert named(asked) == name
    assert len(hub.requests) == 1  # the second time nobody is asked


def test_the_only_file_is_taken_and_no_other(hub: FileServer) -> None:
    hub.body = about("one.gguf", "mmproj-one.gguf")
    named("me/one")
    assert load_registry()["one"].source == HfSource("me/one", "one.gguf", "c0ffee")


@pytest.mark.parametrize(
    ("asked", "body", "error", "says"),
    [
        ("me", b"", UsageError, "OWNER/NAME"),
        ("me/it:Q9", about(*FILES), UsageError, "no file for Q9: big-00001.*not pulled"),
        ("me/it", about("README.md"), UsageError, "no .gguf file"),
        ("me/it", about("a-00001-of-00002.gguf"), UsageError, "parts are not pulled"),
        ("me/it", b"<html>", FetchError, "not JSON"),
        ("me/it", b"[]", FetchError, "no description"),
        (
            "me/it",
            json.dumps({"siblings": [1, {}, {"rfilename": 2}]}).encode(),
            UsageError,
            "no .g",
        ),
    ],
)
def test_a_repository_that_is_none(
    hub: FileServer, asked: str, body: bytes, error: type[Exception], says: str
) -> None:
    hub.body = body
    with pytest.raises(error, match=says):
        named(asked)


# -- offered and pulled ---------------------------------------------------------------------------


@pytest.fixture
def served(server: FileServer, tiny_path: Path) -> FileServer:
    """A web server with a model that has a name."""
    server.body = tiny_path.read_bytes()
    known: dict[str, Any] = {"size": len(server.body), "licence": "MIT", "parameters": "9K"}
    edit.add("m", UrlSource(f"{server.url}/m.gguf"), sha256=sha256(server.body), **known)
    return server


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*STREAMSINK, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        input="",
    )


def test_a_script_pulls_only_what_it_says_it_wants(served: FileServer) -> None:
    for command in (["chat", "m", "-p", "Hi"], ["generate", "m", "-p", "Hi"]):
        done = run(*command, *SHORT)
        assert done.returncode == 2
        assert "models pull m" in done.stderr
        assert "-y" in done.stderr
    assert not served.requests
    done = run("chat", "m", "-y", "-p", "Hi", *SHORT)
    assert done.returncode == 0, done.stderr
    assert len(served.requests) == 1
    assert run("generate", "m", "-p", "Hi", *SHORT).returncode == 0
    assert len(served.requests) == 1


def test_somebody_at_the_terminal_is_asked(served: FileServer) -> None:
    for answer in ("n", ""):
        child = pexpect.spawn(
            sys.executable,
            [*STREAMSINK[1:], "chat", "m", *SHORT],
            env={**os.environ, "TERM": "dumb"}, timeout=60, encoding="utf-8",
        )  # fmt: skip
        child.expect(r"m is not here yet: .*9K parameters\), licence MIT, from http.*Pull it\?")
        child.sendline(answer)
        if not answer:
            child.expect("> ")
            child.sendline("/bye")
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == (1 if answer else 0)
    assert len(served.requests) == 1


def test_a_repository_is_pulled_in_one_go(
    server: FileServer, tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    server.body = tiny_path.read_bytes()
    listed = {"rfilename": "it.gguf", "size": len(server.body)}
    server.bodies["/api/models/me/it"] = json.dumps({"siblings": [listed]}).encode()
    done = run("generate", "-hf", "me/it", "-y", "-p", "Hi", *SHORT)
    assert done.returncode == 0, done.stderr
    assert [path for path, _ in server.requests][1] == "/me/it/resolve/main/it.gguf"
