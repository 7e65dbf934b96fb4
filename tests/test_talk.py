"""Commands of a chat, settings by their names, messages of many lines, JSON lines."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from streamsink.chat.template import ChatTemplate
from streamsink.cli.talk import jsonl
from streamsink.cli.talk.commands import After
from streamsink.cli.talk.messages import whole
from streamsink.cli.talk.settings import SETTINGS, read
from streamsink.cli.talk.table import COMMANDS, find
from streamsink.cli.talk.talk import Talk
from streamsink.core.policy import SinkPolicy
from streamsink.engine.stream import Stream
from streamsink.errors import UsageError
from tests.test_chat import SOURCE, Scripted, fed, open_chat

pytestmark = pytest.mark.usefixtures("at_home")


MODEL: Any = SimpleNamespace(
    path=Path("other.gguf"),
    description="llama 1K F32",
    chat_template=SOURCE,
    special_texts={},
    n_ctx_train=512,
)


class At:
    """A chat whose model says what it is told, and somebody at it."""

    def __init__(self, n_ctx: int = 400, **more: Any) -> None:
        self.chat, self.backend = open_chat(SinkPolicy("system"), n_ctx, system="Be kind.")
        self.others: list[Scripted] = []
        self.talk = Talk(self.chat, MODEL, [], None, self.open_other, silent=True, **more)
        self.after = After()

    @contextlib.contextmanager
    def open_other(self, name: str, policy: SinkPolicy, n_ctx: int) -> Iterator[Any]:
        if name == "none":
            raise UsageError("no model called none")
        self.others.append(Scripted(n_ctx))
        with Stream(self.others[-1], policy, n_ctx) as stream:
            yield MODEL, stream

    def says(self, question: str, answer: str, *, ends: bool = True) -> None:
        self.backend.says(answer, ends=ends)
        self.chat.change(max_tokens=len(answer) + ends)
        self.talk.say(question, self.write)

    def write(self, text: str, *, dim: bool = False) -> None:
        self.told += text

    def do(self, line: str, then: str = "") -> str:
        self.told = ""
        self.backend.says(then)
        command, argument = find(line)
        self.after = command.do(self.talk, argument, self.write) or After()
        return self.told

    told = ""


@pytest.fixture
def at() -> At:
    return At()


# -- what every command has in common -------------------------------------------------------------


def test_without_an_argument_nothing_changes() -> None:
    """A command with a value shows it; those that act have none."""
    acts = {"retry", "continue", "undo", "edit", "unpin", "reset", "bye", "copy"}
    for command in COMMANDS:
        if command.name in acts:
            continue
        at = At()
        at.says("One?", "It is one.")
        before = at.chat.conversation(), at.chat.stream.policy, fed(at.chat), at.talk.thoughts
        told = at.do(f"/{command.name}")
        now = at.chat.conversation(), at.chat.stream.policy, fed(at.chat), at.talk.thoughts
        assert told.strip(), command.name
        assert now == before, command.name


def test_every_name_finds_its_command_and_help_names_all(at: At) -> None:
    told = at.do("/?")
    for command in COMMANDS:
        for name in (command.name, *command.others):
            assert find(f"/{name}")[0] is command
            assert f"/{name}" in told
        assert command.says in told
    with pytest.raises(UsageError, match="//etc says it"):
        find("/etc")


# -- turns ----------------------------------------------------------------------------------------


def test_retry_takes_other_settings_this_once(at: At) -> None:
    at.says("One?", "It is two.")
    before = at.chat.sampling
    at.do("/retry temp 0.2 top-k=5 --seed 7", "It is one.")
    assert [one.text for one in at.chat.messages] == ["One?", "It is one."]
    assert at.chat.sampling == before
    assert "same answer" in at.do("/retry", "It is one.")
    with pytest.raises(UsageError, match="/set changes it"):
        at.do("/retry keep 5")
    with pytest.raises(UsageError, match="takes a value"):
        at.do("/retry temp")


def test_retry_under_a_seed_draws_another(at: At) -> None:
    at.chat.change(seed=5)
    at.says("One?", "It is two.")
    assert "seed 6 this once" in at.do("/retry", "It is one.")
    assert "seed 7 this once" in at.do("/retry", "It is 1.")
    assert "this once" not in at.do("/retry seed 5", "It is two.")
    at.chat.change(temperature=0)
    assert "this once" not in at.do("/retry", "It is one.")


def test_cut_off_and_gone_on_with(at: At) -> None:
    at.says("Count.", "One two", ends=False)
    assert "cut at 7 tokens: /continue goes on" in at.told
    at.do("/continue", " six")
    assert at.chat.messages[-1].text == "One two six"
    with pytest.raises(UsageError, match="complete"):
        at.do("/continue")


def test_undo_and_edit(at: At) -> None:
    at.says("One?", "It is one.")
    at.says("Tow?", "It is tow.")
    at.do("/edit")
    assert at.after.typed == "/edit Tow?"
    at.do("/edit Two?", "It is two.")
    assert [one.text for one in at.chat.messages[2:]] == ["Two?", "It is two."]
    assert "1 turn left" in at.do("/undo")
    assert len(at.chat.messages) == 2


# -- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda one: one.name)
def test_what_a_setting_shows_can_be_set(setting: Any, at: At) -> None:
    """Also by the names that others have for it."""
    shown = setting.of(at.chat)
    for name in (setting.name, setting.python, *setting.others):
        at.do(f"/set {name} {shown}")
        assert setting.of(at.chat) == shown
        assert at.do(f"/set {name}").startswith(f"{setting.name} {shown}")
    for value in setting.values:
        assert read([setting.name, value]).keys() == {setting.python}


def test_set_changes_several_or_none(at: At) -> None:
    at.do("/set temp 0.2 discard=turn 'stop' 'the end'")
    assert (at.chat.sampling.temperature, at.chat.stop) == (0.2, ("the end",))
    assert at.chat.stream.policy.n_discard == "turn"
    for bad in ("/set temp 3 keep 4000", "/set temp hot", "/set colour red", "/set temp 'a"):
        with pytest.raises(UsageError):
            at.do(bad)
    assert at.chat.sampling.temperature == 0.2
    at.do("/set parameter num_predict 9")  # as ollama has it
    assert at.chat.max_tokens == 9
    at.do("/set system Be brief.")
    assert at.chat.system == "Be brief."
    assert "nothing is pinned" in at.do("/set keep 0")
    assert "nothing is pinned" in at.do("/keep 0")


def test_think(at: At) -> None:
    assert "no switch" in at.do("/think")
    with pytest.raises(UsageError, match="no switch"):
        at.do("/think on")
    assert "hidden" in at.do("/think hide")
    assert not at.talk.thoughts
    switch = SOURCE + "{% if enable_thinking %}<think>{% endif %}"
    at.chat._template = ChatTemplate(switch, {})
    assert "thinking is on" in at.do("/think on")
    assert at.chat.template.thinking
    assert "as the template" in at.do("/think auto")


def test_pin_and_release(at: At) -> None:
    at.says("A secret?", "It is 7.")
    assert "/pin last" in at.do("/pin")
    assert "A secret?" in at.do("/pin last")
    assert at.do("/pin").count("A secret?") == 1
    with pytest.raises(UsageError, match="already"):
        at.do("/pin last")
    at.do("/unpin")
    assert "A secret?" not in at.do("/pin")
    with pytest.raises(UsageError, match="/pin all"):
        at.do("/pin all")


# -- another model --------------------------------------------------------------------------------


def test_another_model_goes_on(at: At) -> None:
    at.says("One?", "It is one.")
    first = at.chat.stream
    assert "other.gguf" in at.do("/model other")
    assert at.chat.stream is not first
    assert b"It is one." in fed(at.chat)
    second = at.chat.stream
    with pytest.raises(UsageError, match="none"):
        at.do("/model none")
    assert at.chat.stream is second
    at.do("/model third")
    with pytest.raises(Exception, match="closed"):
        second.feed("x")
    at.others[-1].says("Two.")
    at.talk.say("And?", at.write)
    assert [one.text for one in at.chat.messages] == ["One?", "It is one.", "And?", "Two."]


# -- messages -------------------------------------------------------------------------------------


def test_messages_of_many_lines() -> None:
    lines = ["one", '"""two', "lines", 'here""" and on', 'a "" b', '"""', "x", '"""', '"""y"""']
    assert list(whole(lines)) == ["one", "two\nlines\nhere and on", 'a "" b', "x", "y"]
    assert list(whole(['"""never', "ended"])) == ["never\nended"]


def test_json_lines(
    at: At, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        '"Hi"',
        '{"role": "user", "content": "/help"}',
        '{"prompt": "three"}',
        '{"role": "system", "content": "Be brief."}',
        '{"command": "/keep"}',
        '{"command": "/undo"}',
        '{"command": "/what"}',
        '{"content": 1}',
        '{"content": "x", "more": "y"}',
        "[]",
        "{",
        '{"command": "/bye"}',
        '"never read"',
    ]
    monkeypatch.setattr(jsonl, "turns", lambda *_: iter(lines))
    at.backend.says("ABC", ends=False)
    at.chat.change(max_tokens=1)
    with pytest.raises(typer.Exit) as ended:
        jsonl.jsonl(at.talk)
    assert ended.value.exit_code == 2
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record.get("content") for record in records[:3]] == ["A", "B", "C"]
    assert records[0]["finish_reason"] == "length"
    assert records[0]["usage"]["completion_tokens"] == 1
    assert records[3]["usage"]["prompt_tokens"] > 0
    assert "keep system" in records[4]["text"]
    assert "taken back" in records[5]["text"]
    assert [set(record) for record in records[6:]] == [{"error"}] * 5
    assert [one.text for one in at.chat.messages] == ["Hi", "A", "/help", "B"]


def test_copying(at: At, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By the system's tool, and where there is none by the terminal."""
    with pytest.raises(UsageError, match="no answer"):
        at.do("/copy")
    at.says("One?", "It is one.")
    tool = tmp_path / "xclip"
    tool.write_text(f"#!/bin/sh\ncat > {tmp_path}/copied\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.delenv("SSH_TTY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert "It is one." in at.do("/copy")
    assert (tmp_path / "copied").read_text() == "It is one."
    asked: list[str] = []
    monkeypatch.setattr("streamsink.cli.terminal.to_clipboard", asked.append)
    monkeypatch.setenv("SSH_TTY", "/dev/pts/0")  # then the clipboard is elsewhere
    at.do("/copy")
    tool.write_text("#!/bin/sh\nexit 1\n")
    monkeypatch.delenv("SSH_TTY")
    at.do("/copy")
    assert asked == ["It is one."] * 2
