"""``chat --session`` and ``streamsink sessions``, as a person meets them."""

from __future__ import annotations

import json
import random
import re
import signal
import stat
import subprocess
import time
from pathlib import Path

from msgspec.structs import replace

from streamsink import session
from tests.conftest import Run
from tests.talks import without_cuts
from tests.test_cli import STREAMSINK, Terminal
from tests.tiny_gguf import TinyModel

CHAT = (
    *("--ctx", "128", "--max-tokens", "12", "--seed", "3"),
    # Of f16 keys the rounding depends on which cell a token is in.
    *("--cache-type-k", "f32", "--cache-type-v", "f32"),
)
TURNS = [f"Tell me story number {n}.\n" for n in range(10)]


def test_broken_off_and_gone_on_with_it_is_the_same_conversation(
    run: Run, tiny_path: Path, home: Path
) -> None:
    whole = run("chat", str(tiny_path), *CHAT, given="".join(TURNS))
    parts = [
        run("chat", str(tiny_path), *CHAT, "--session", "a", given="".join(TURNS[:4])),
        run("chat", "--session", "a", "--max-tokens", "12", given="".join(TURNS[4:7])),
        run("chat", "--session", "a", "--max-tokens", "12", given="".join(TURNS[7:])),
    ]
    assert [part.returncode for part in parts] == [0, 0, 0], parts
    assert "".join(part.stdout for part in parts) == whole.stdout
    assert "going on after 7 turns" in parts[2].stderr
    assert "evaluated again" not in parts[2].stderr
    file = home / "sessions" / "a.session"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert list(file.parent.iterdir()) == [file]


def test_options_win_over_what_was_saved(run: Run, tiny_path: Path) -> None:
    run("chat", str(tiny_path), *CHAT, "--session", "a", given="".join(TURNS))
    done = run(
        *("chat", "--session", "a", "--ctx", "64", "--discard", "half", "--system", "Be."),
        given="/stats\n/history\n/discard\n",
    )
    assert "visible tokens were evaluated again" in done.stderr
    assert "n_ctx is 64" in done.stderr
    assert "system: Be." in done.stderr
    assert int(re.search(r"window +(\d+)", done.stderr)[1]) < 64  # type: ignore[index]
    again = run("chat", "--session", "a", given="Hi\n/stats\n")
    assert again.returncode == 0
    assert "evaluated again" not in again.stderr


def test_another_template_wins_too(run: Run, tiny_path: Path, tmp_path: Path) -> None:
    run("chat", str(tiny_path), *CHAT, "--session", "a", given="Hi\n")
    done = run("chat", "--session", "a", "--chat-template", "llama3", given="Ho\n/save\n")
    assert done.returncode == 0, done.stderr
    file = tmp_path / "home" / "sessions" / "a.session"
    found = session.read(file)
    assert found.conversation
    assert found.conversation.template == "llama3"
    wrong = run("chat", "--session", "a", "--chat-template", "nope", given="")
    assert wrong.returncode == 2
    assert "neither a file nor a template of llama.cpp: " in wrong.stderr
    own = tmp_path / "own.jinja"
    own.write_text("{% for message in messages %}{{ message.content }}\n{% endfor %}")
    again = run("chat", "--session", "a", "--chat-template", str(own), given="Hm\n")
    assert again.returncode == 0, again.stderr
    found = session.read(file)
    assert found.conversation
    assert found.conversation.template == own.read_text()


def test_a_session_with_a_broken_template_is_not_loaded(
    run: Run, tiny_path: Path, tmp_path: Path
) -> None:
    run("chat", str(tiny_path), *CHAT, given=f"Hi\n/save {tmp_path}/a.session\n")
    file = tmp_path / "a.session"
    found, cells = session.read(file), session.read_cells(file)
    assert found.conversation
    evil = replace(found.conversation, template="{% for %}")
    session.write(file, found.kind, found.stream, evil, cells)
    given = f"One\nTwo\n/load {file}\n"
    done = run("chat", str(tiny_path), *CHAT, "--session", "b", given=given)
    assert done.returncode == 1
    assert "chat template cannot be read" in done.stderr
    assert len(without_cuts(done.stderr)) == 1


def test_commands_of_a_session(run: Run, tiny_path: Path, tmp_path: Path) -> None:
    lines = [*TURNS, "/save a\n", "My cat is Miso.\n", "/pin last\n", f"/save {tmp_path}/copy\n"]
    lines += ["/save\n", "/memory\n", "/history\n", "/recall number 3\n", "/recall 7\n"]
    lines += ["/recall\n", "/recall 99\n", "/load nothing\n"]
    done = run("chat", str(tiny_path), *CHAT, given="".join(lines))
    assert done.returncode == 1  # that of the last mistake
    assert "saved, and will be after every turn: " in done.stderr
    assert re.search(r"messages: 2 pinned, \d+ visible, .*\d+ forgotten", done.stderr)
    assert "1 (forgotten) > Tell me story number 0." in done.stderr
    assert "21 (pinned) > My cat is Miso." in done.stderr
    assert "7 (forgotten) > Tell me story number 3." in done.stderr
    assert "Earlier I said:\n> Tell me story number 3.\n\nyour next message begins" in done.stderr
    assert done.stderr.count("your next message begins") == 2  # said, and shown
    assert "no message 99" in done.stderr
    assert "there is no session" in done.stderr
    loaded = run("chat", str(tiny_path), *CHAT, given="/load a\nWho?\n/history\n")
    assert loaded.returncode == 0, loaded.stderr
    assert "going on after 11 turns" in loaded.stderr
    assert "> Earlier I said:\n> Tell me story number 3.\n\nWho?" in loaded.stderr
    copy = session.read(tmp_path / "copy")
    assert copy.conversation
    assert len(copy.conversation.messages) == 22


def test_listing_showing_exporting_deleting(run: Run, tiny_path: Path, tmp_path: Path) -> None:
    assert run("sessions").stdout == ""
    run("chat", str(tiny_path), *CHAT, "--session", "a b", "--system", "Be.", given="".join(TURNS))
    listed = run("sessions").stdout.split("\t")
    assert listed[:3] == ["a b", tiny_path.name, "10"]
    record = json.loads(run("sessions", "list", "--json").stdout)[0]
    assert record == json.loads(run("sessions", "show", "a b", "--json").stdout)
    assert record["forgotten"] > 0
    assert "number 9" in run("sessions", "show", "a b").stdout
    text = run("sessions", "export", "a b").stdout
    assert text.startswith("# a b\n")
    assert "**System**\n\nBe." in text
    assert "**You** (forgotten)\n\nTell me story number 0." in text
    assert "**You**\n\nTell me story number 9." in text
    out = tmp_path / "talk.json"
    assert run("sessions", "export", "a b", "--json", "--out", str(out)).returncode == 0
    messages = json.loads(out.read_text())["messages"]
    assert messages[0] == {"role": "system", "content": "Be."}
    assert [one["role"] for one in messages[1:]] == ["user", "assistant"] * 10
    assert messages[1]["forgotten"]
    refused = run("sessions", "delete", "a b")
    assert refused.returncode == 2
    assert "--yes" in refused.stderr
    assert run("sessions", "delete", "a b", "--yes").returncode == 0
    assert run("sessions").stdout == ""


def test_what_cannot_be_gone_on_with_is_one_line(
    run: Run, tiny_path: Path, tmp_path: Path, home: Path
) -> None:
    run("chat", str(tiny_path), *CHAT, "--session", "a", given="Hi\n")
    file = home / "sessions" / "a.session"
    whole = file.read_bytes()

    def fails(code: int, says: str, *arguments: str) -> None:
        done = run("chat", *arguments, given="Hi\n")
        assert done.returncode == code
        assert re.search(says, done.stderr)
        assert len(done.stderr.splitlines()) == 1

    other = TinyModel.create(seed=9).write(tmp_path / "other.gguf")
    fails(1, r"another model: .*tiny\.gguf", str(other), "--session", "a")
    file.write_bytes(whole[:-30])
    fails(1, "torn or damaged", "--session", "a")
    fails(1, "not writable|cannot be kept|not found|No such", "--session", "/nowhere/at/all/x.y")
    fails(2, "needs a name", "--session", "")
    assert file.read_bytes() == whole[:-30]
    listed = run("sessions").stdout
    assert "torn or damaged" in listed
    moved = tmp_path / "moved.gguf"
    moved.write_bytes(tiny_path.read_bytes())
    run("chat", str(moved), *CHAT, "--session", "b", given="Hi\n")
    moved.unlink()
    fails(2, "is not there any more: name the model", "--session", "b")
    assert run("chat", str(tiny_path), "--session", "b", given="").returncode == 0


def test_a_session_in_use_is_left_alone(
    run: Run, tiny_path: Path, environment: dict[str, str]
) -> None:
    command = [*STREAMSINK, "chat", str(tiny_path), *CHAT, "--session", "a"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
    ) as first:
        assert first.stdin
        assert first.stdout
        first.stdin.write("Hi\n")
        first.stdin.flush()
        assert first.stdout.readline()
        second = run("chat", str(tiny_path), "--session", "a", given="Hi\n")
        first.stdin.close()
    assert second.returncode == 1
    assert "is in use" in second.stderr
    assert run("chat", "--session", "a", given="").returncode == 0


def test_killed_at_any_moment_every_turn_that_was_answered_is_there(
    tiny_path: Path, environment: dict[str, str], home: Path
) -> None:
    """What stands on stdout as a whole line is in the file."""
    file = home / "sessions" / "a.session"
    draw = random.Random(1)
    n_turns = 0
    command = [*STREAMSINK, "chat", str(tiny_path), *CHAT, "--session", "a", "--temp", "0"]
    for _ in range(8):
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        assert process.stdin
        assert process.stdout
        process.stdin.write(b"Say a word.\n" * 2000)
        process.stdin.close()
        answered = process.stdout.readline()
        time.sleep(draw.random())
        process.send_signal(signal.SIGKILL)
        answered += process.stdout.read()
        process.wait()
        found = session.read(file)
        assert found.conversation
        # An answer may hold newlines of its own, so of lines there may be more.
        assert len(found.conversation.messages) > n_turns
        n_turns = len(found.conversation.messages)
        assert found.conversation.messages[-1].role == "assistant"
        lines = answered.decode(errors="replace").split("\n")[:-1]
        said = [turn.text for turn in found.conversation.messages if turn.role == "assistant"]
        assert "\n".join(lines) in "\n".join(said)
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment
    )
    process.communicate(b"Say a word.\n")
    assert list(file.parent.iterdir()) == [file], "drafts of killed processes stay"


def test_forgotten_turns_are_grey(tiny_path: Path, environment: dict[str, str]) -> None:
    terminal = Terminal([*STREAMSINK, "chat", str(tiny_path), *CHAT, "--session", "a"], environment)
    terminal.wait_for("0 of .* tokens")
    for n in range(6):
        terminal.type(f"Tell me number {n} now.\r")
        terminal.wait_for(rf"> Tell me number {n} now\.(.*\n)+.* of .* tokens")
        time.sleep(0.3)
    terminal.type("/history\r")
    terminal.wait_for(r"1 \(forgotten\) > Tell me number 0 now\.")
    terminal.wait_for(r"11 > Tell me number 5 now\.")
    assert b"\x1b[2m1 (forgotten) > Tell me number 0 now.\x1b[0m" in terminal.raw
    assert b"\x1b[2m11" not in terminal.raw
    terminal.type("/quit\r")
    assert terminal.wait_for_end() == 0
