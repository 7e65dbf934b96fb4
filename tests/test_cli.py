"""The command line as a person meets it: pipes, a pseudo-terminal, and wrong input."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pexpect
import pyte
import pytest

from streamsink import session
from streamsink.cli import main
from streamsink.cli.lazy import load
from streamsink.cli.talk.conversation import fitting

STREAMSINK = [sys.executable, "-c", "from streamsink.cli.main import main; main()"]


def run(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*STREAMSINK, *arguments],
        input=given,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


COMMANDS = ["", "chat", "generate", "models", "models pull", "sessions", "doctor", "bench speed"]
HEAVY = ["llama_cpp", "numpy", "jinja2", "prompt_toolkit", "matplotlib", "rich.progress", "tomlkit"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_what_it_shows(command: str) -> None:
    """And nothing of another command."""
    code = (
        "import sys\nfrom streamsink.cli.main import app\n"
        "try:\n    app([*sys.argv[1:], '--help'], standalone_mode=False)\n"
        "except SystemExit:\n    pass\n"
        "print(*sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command.split()], capture_output=True, text=True, check=True
    )
    loaded = set(done.stderr.split())
    assert loaded.isdisjoint(HEAVY)
    assert not any(name.startswith("streamsink.bench") for name in loaded)
    others = {f"streamsink.cli.{one.partition(' ')[0]}" for one in COMMANDS if one}
    assert loaded & others == {f"streamsink.cli.{command.partition(' ')[0]}"} - {"streamsink.cli."}
    assert "Usage" in done.stdout


def test_the_list_of_commands_says_what_their_own_help_says() -> None:
    for name, place in main.COMMANDS.items():
        own = load(name, place).help
        assert own.partition("\n")[0].startswith(place.says.rstrip(".")), name


def test_a_command_that_is_none_names_the_near_ones() -> None:
    done = run("chta")
    assert done.returncode == 2
    assert "Did you mean 'chat'" in done.stderr


@pytest.mark.parametrize("name", main.ELSEWHERE)
def test_a_command_of_another_tool_is_told_what_it_is_here(name: str) -> None:
    done = run(name)
    here = main.ELSEWHERE[name]
    assert (done.returncode, done.stdout) == (2, "")
    assert f"`{here}`" in done.stderr
    command = [word for word in here.split()[1:] if word.isalpha() and word.islower()]
    assert run(*command, "--help").returncode == 0


def test_alone_it_shows_its_help_and_nothing_else() -> None:
    done = run()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == run("--help").stdout.strip()


def test_it_is_a_module_too() -> None:
    command = [sys.executable, "-m", "streamsink", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == run("--version").stdout


def test_one_question(tiny_path: Path, tmp_path: Path) -> None:
    """Its answer alone is on stdout; what comes through a pipe stands before it."""
    options = [str(tiny_path), "-c", "128", "-t", "1", "-ngl", "0", "-n", "9"]
    file = tmp_path / "one.session"
    done = run("chat", *options, "-p", "Sum up.", "--session", str(file), given="A text.\n\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    question, answer = session.read(file).conversation.messages  # type: ignore[union-attr]
    assert question.text == "A text.\n\nSum up."
    assert done.stdout.rstrip("\n") == answer.text
    alone = run("chat", *options, "-p", "/help", "--session", str(tmp_path / "two.session"))
    assert alone.returncode == 0, alone.stderr
    first = session.read(tmp_path / "two.session").conversation.messages[0]  # type: ignore[union-attr]
    assert first.text == "/help"


@pytest.mark.parametrize("width", range(100))
def test_a_line_that_fits(width: int) -> None:
    parts = (("12 of 128", " tokens"), ("", ": 4 pinned"), (" · 5 forgotten", ""), ("", " · more"))
    line = fitting(width, *parts)
    assert len(line) <= max(width, len("12 of 128"))
    assert line.startswith("12 of 128")
    if width >= 50:
        assert line == "12 of 128 tokens: 4 pinned · 5 forgotten · more"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["chat", "-p", "x", "-0"], 2, "--turns-separated-by"),
        (["chat", "-n", "0"], 2, "--max-tokens 0"),
        (["chat", "/nowhere/there.gguf"], 2, "no such file"),
        (["chat", "smollm2-135n"], 2, "smollm2-135m"),
        (["chat", "--keep", "512", "--ctx", "512"], 2, "--ctx"),
        (["chat", "--ctx", "-1"], 2, "--ctx -1"),
        (["chat", "--keep", "many"], 2, "--keep many"),
        (["chat", "--discard", "-2"], 2, "--discard -2"),
        (["chat", "--slack", "99999999999"], 2, "--slack"),
        (["chat", "--placement", "sideways"], 2, "reanchor"),
        (["chat", "--temp", "nan"], 2, "--temp"),
        (["generate"], 2, "-p TEXT"),
        (["generate", "-p", "x", "--keep", "system"], 2, "--keep system"),
        (["generate", "--no-such-option"], 2, "no-such-option"),
        (["generate", "-p", "x", "--cache-type-v", "q9"], 2, "q8_0"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], code: int, says: str) -> None:
    done = run(*arguments)
    assert done.returncode == code
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_files_that_are_no_models(tmp_path: Path, default_model: str) -> None:
    text = tmp_path / "text.gguf"
    text.write_text("Call me Ishmael.")
    torn = tmp_path / "torn.gguf"
    with open(default_model, "rb") as whole:
        torn.write_bytes(whole.read(40_000_000))
    for path, says in ((text, "not a GGUF"), (torn, "is damaged: it is cut short")):
        done = run("generate", str(path), "-p", "x")
        assert done.returncode == 1
        assert says in done.stderr
        assert done.stderr.count("\n") == 1


def test_a_grammar_that_is_none(tmp_path: Path, default_model: str) -> None:
    grammar = tmp_path / "bad.gbnf"
    grammar.write_text("root ::= [")
    done = run("generate", default_model, "-p", "x", "--grammar", str(grammar))
    assert done.returncode == 2
    assert "not GBNF" in done.stderr
    assert done.stderr.count("\n") == 1


def test_context_beyond_memory(default_model: str) -> None:
    done = run("generate", default_model, "-p", "x", "--ctx", "16000000")
    assert done.returncode == 1
    assert "lower --ctx" in done.stderr


@pytest.mark.parametrize(
    "policy", [["--keep", "4", "--discard", "1"], ["--keep", "system", "--discard", "half"]]
)
def test_piped_chat_past_five_contexts(
    policy: list[str], default_model: str, tmp_path: Path
) -> None:
    events = tmp_path / "events.jsonl"
    turns = "".join(f"Tell me story number {n}.\n" for n in range(30))
    done = run(
        "chat",
        default_model,
        *policy,
        *("--ctx", "128", "--seed", "1", "--max-tokens", "48", "--json-events", str(events)),
        given=turns + "/stats\n",
    )
    assert done.returncode == 0, done.stderr
    stats = dict(line.split(None, 1) for line in done.stderr.splitlines() if " " in line)
    assert int(stats["index"]) > 5 * 128
    assert int(stats["pinned"]) + int(stats["window"]) <= 128
    records = [json.loads(line) for line in events.read_text().splitlines()]
    evicted = [record for record in records if record["kind"] == "evict"]
    assert sum(record["n_tokens"] for record in evicted) == int(stats["evicted"])
    assert len(done.stdout.splitlines()) >= 30


def test_a_wrong_command_in_a_pipe_is_told_and_loses_nothing(default_model: str) -> None:
    lines = "Hi\n/kep 5\n/keep 99999999999\n\nSay yes.\n/stats\n/quit\nnever read\n"
    done = run("chat", default_model, "--ctx", "128", "--max-tokens", "5", given=lines)
    assert done.returncode == 2
    assert "/kep is no command" in done.stderr
    assert "--keep 99999999999" in done.stderr
    assert "pinned " in done.stderr
    assert len(done.stdout.splitlines()) >= 2


def test_names_are_completed() -> None:
    words = {"COMP_WORDS": "streamsink chat smol", "COMP_CWORD": "2"}
    program = [*STREAMSINK[:2], "import sys; sys.argv[0] = 'streamsink'\n" + STREAMSINK[2]]
    done = subprocess.run(
        program,
        env={**os.environ, **words, "_STREAMSINK_COMPLETE": "complete_bash"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "smollm2-135m" in done.stdout.split()


def test_generate_is_repeatable(default_model: str) -> None:
    arguments = ["generate", default_model, "-p", "Once upon a time", "--ctx", "64"]
    arguments += ["--max-tokens", "120", "--seed", "7"]
    first, second = run(*arguments), run(*arguments)
    assert first.returncode == 0
    assert first.stdout == second.stdout
    assert run(*arguments[:-1], "8").stdout != first.stdout


def test_generate_from_a_long_file(default_model: str, tmp_path: Path) -> None:
    text = tmp_path / "long.txt"
    text.write_text("The whale is white, and so is the sea in a storm.\n" * 100)
    options = ("--ctx", "128", "--max-tokens", "8", "--temp", "0")
    done = run("generate", default_model, "--file", str(text), *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    piped = run("generate", default_model, "--file", "-", *options, given=text.read_text())
    assert piped.stdout == done.stdout


class Terminal:
    """A program in a pseudo-terminal, and the screen that a person would see."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._child = pexpect.spawn(
            command[0],
            command[1:],
            env={**os.environ, **environment, "TERM": "xterm"},
            dimensions=(30, 110),
        )
        self._screen = pyte.HistoryScreen(110, 30, history=10_000)
        # A terminal answers when it is asked where its cursor stands.
        self._screen.write_process_input = lambda answer: self._child.send(answer)
        self._stream = pyte.ByteStream(self._screen)
        self.raw = b""

    @property
    def text(self) -> str:
        """All lines, those that have left the screen included."""
        above = [
            "".join(line[column].data for column in range(110)) for line in self._screen.history.top
        ]
        return "\n".join(line.rstrip() for line in [*above, *self._screen.display])

    def type(self, keys: str) -> None:
        self._child.send(keys)

    def wait_for(self, pattern: str, seconds: float = 120) -> str:
        """Look at the screen until it shows the pattern; what it matched."""
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self.text)):
            assert time.monotonic() < end, f"no {pattern!r} on the screen:\n{self.text}"
            with contextlib.suppress(pexpect.TIMEOUT):
                came = self._child.read_nonblocking(2**16, timeout=0.1)
                self.raw += came
                self._stream.feed(came)
        return found[0]

    def wait_for_end(self) -> int:
        self._child.expect(pexpect.EOF, timeout=60)
        self._child.close()
        assert isinstance(self._child.exitstatus, int)
        return self._child.exitstatus


def test_terminal_chat(default_model: str, tmp_path: Path) -> None:
    endless = tmp_path / "endless.gbnf"  # no seed's story ends before it is stopped
    endless.write_text("root ::= [a-zA-Z ,.] root")
    options = ["--ctx", "128", "--seed", "1", "--max-tokens", "5000", "--grammar", str(endless)]
    terminal = Terminal(
        [*STREAMSINK, "chat", default_model, *options], {"STREAMSINK_HOME": str(tmp_path)}
    )
    terminal.wait_for("0 of 128 tokens: 0 pinned")
    terminal.type("Tell me a very long story.\r")
    terminal.wait_for(r"> Tell me a very long story.\n(.*\w.*\n){3}")  # of the screen's width
    terminal.type("\x03")
    terminal.wait_for(r"\(stopped: /continue goes on\)")
    terminal.wait_for(r"\d+ of 128 tokens: \d+ pinned \+ \d+ recent · \d+ forgotten · \d+ tok/s")
    terminal.type("/memory\r")
    terminal.wait_for(r"pinned 0-\d+: <\|im_start\|>system")
    terminal.type("/nonsense\r")
    terminal.wait_for("/nonsense is no command")
    terminal.type("/quit\r")
    assert terminal.wait_for_end() == 0
