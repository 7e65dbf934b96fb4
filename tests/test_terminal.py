"""Foreign words on a terminal: whatever a stranger wrote, it orders nothing and hides nothing."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

import gguf
import pexpect
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import streamsink
from streamsink import SinkPolicy
from streamsink.cli import terminal
from streamsink.model import Model
from streamsink.registry.sources import UrlSource
from streamsink.session.conversation import Conversation, Message
from tests.pulls import RawServer

EVIL = (
    "\x1b]0;title\x07\x1b[2J\x1b[31m\x9b31m\x90q\x9c\x08\x7f\u202egpj.exe\u202c\u2066x\u2069\u200e"
    "\u200f\u061c\u2028two\u2029\x85[red]markup[/red]\U000e0041\U000e007f\ufeff\u200b\r\nend"
)
"""A window's title, a cleared screen, colours, C1, a name turned round, hidden text."""
SCREEN = 80 * 24


# -- the filter -----------------------------------------------------------------------------------


def steers(text: str) -> str:
    """What in a text moves a cursor, turns its order or is not seen."""
    ignorable = {*range(0xE0000, 0xE1000), 0xAD, 0x34F, 0x3164, *range(0x2060, 0x2070)}
    return "".join(
        letter
        for letter in text
        if (unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") and letter not in "\n\t")
        or unicodedata.bidirectional(letter) in ("LRE", "RLE", "LRO", "RLO", "PDF")
        or unicodedata.bidirectional(letter) in ("LRI", "RLI", "FSI", "PDI")
        or letter in "\u200b\u200e\u200f\u061c\ufeff"
        or ord(letter) in ignorable
    )


@settings(deadline=None)
@given(st.text(st.characters(), max_size=200))
def test_nothing_that_steers_is_left(text: str) -> None:
    for shown in (terminal.harmless(text), terminal.line(text)):
        assert steers(shown) == ""
        shown.encode()
    assert "\n" not in terminal.line(text)
    assert "\t" not in terminal.line(text)
    assert terminal.harmless(terminal.harmless(text)) == terminal.harmless(text)


def test_every_code_point() -> None:
    for first in range(0, sys.maxunicode + 1, 0x1000):
        text = "".join(map(chr, range(first, first + 0x1000)))
        assert steers(terminal.harmless(text)) == ""


@pytest.mark.parametrize(
    "text",
    [
        "two\nlines\tand a tab",
        "👩‍👩‍👧‍👦 ❤️ ❤️‍🔥 🏳️‍🌈 1️⃣ 👍🏽",  # joiners and selectors hold emoji together
        "می‌خواهم",  # Persian, by a non-joiner
        "क्‍ष",  # Devanagari, by a joiner
        "שלום עולם, مرحبا",
        "naïve e\u0301 ﷽ 日本語 ½ \u00a0 �",
        "؀١٢٣",  # a sign of format that is seen
    ],
)
def test_what_people_write_stays(text: str) -> None:
    assert terminal.harmless(text) == text


def test_what_becomes_of_the_rest() -> None:
    assert terminal.harmless("a\x1b[31mb\x07") == "a[31mb"
    assert terminal.harmless("a\udcffb\ud800") == "a�b�"
    assert terminal.harmless("a\u2028b") == "a\nb"
    assert terminal.harmless("a\ufe0f\ufe01\ufe02\ufe0fb") == "a\ufe0fb"
    assert terminal.harmless("a\u200c\u200d\u200c\u200db") == "a\u200cb"
    assert terminal.line(" a\r\n\tb\x85c\u2028d\x0be  f\x1b ") == "a b c d e  f"


def test_a_message_fits_a_screen() -> None:
    text = "begins " + "x" * 10**6 + " lower --ctx"
    shown = terminal.line(text)
    assert len(shown) < terminal.LONGEST + 50
    assert shown.startswith("begins x")
    assert shown.endswith("x lower --ctx")
    assert " … (999,219 letters left out) … " in shown
    assert terminal.line("x" * terminal.LONGEST) == "x" * terminal.LONGEST
    assert len(terminal.line("x" * 5000, None)) == 5000
    wide = terminal.line("漢" * 5000)
    assert sum(1 + (unicodedata.east_asian_width(one) in "WF") for one in wide) < SCREEN


def test_pieces_of_an_escape_are_as_harmless_as_the_whole() -> None:
    assert "".join(terminal.harmless(letter) for letter in EVIL) == terminal.harmless(EVIL)


# -- nobody goes past it --------------------------------------------------------------------------

ROOT = Path(streamsink.__file__).parent
PAST = {
    *("print", "typer.echo", "typer.secho", "typer.confirm", "typer.prompt", "input"),
    *("sys.stdout", "sys.stderr", "Console", "rich.print", "logging.StreamHandler"),
}
MAY = {
    "cli/terminal.py": PAST,
    "cli/main.py": {"sys.stdout", "sys.stderr"},  # to flush them
}


@pytest.mark.parametrize(
    "path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT))
)
def test_everything_goes_out_by_one_door(path: Path) -> None:
    used = {
        ast.unparse(node)
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, (ast.Name, ast.Attribute))
    }
    assert used & PAST <= MAY.get(str(path.relative_to(ROOT)), set())


# -- every command --------------------------------------------------------------------------------

RUNNER = """
import json, sys
from streamsink.cli.main import main
for at, words in enumerate(json.load(open(sys.argv[1], encoding="utf-8"))):
    sys.argv[1:] = words
    try:
        main()
    except SystemExit as leave:
        print(f"=== {at} {leave.code}", flush=True)
"""
"""Runs commands one after another, as if each were typed."""


def rewritten(source: Path, target: Path, **changes: str) -> Path:
    """A copy of a GGUF file with other texts in its metadata; ``__`` stands for a dot."""
    theirs = gguf.GGUFReader(source)
    texts = {key.replace("__", "."): value for key, value in changes.items()}
    writer = gguf.GGUFWriter(target, texts.pop("general.architecture", "llama"))
    for field in theirs.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            kind, *of = field.types
            writer.add_key_value(field.name, texts.pop(field.name, field.contents()), kind, *of)
    for key, text in texts.items():
        writer.add_string(key, text)
    for tensor in theirs.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_path: Path) -> Path:
    """A home in which a stranger named, described and said everything."""
    folder = tmp_path_factory.mktemp("home")
    name = EVIL.replace("/", "|")[:80]
    shutil.copy(tiny_path, folder / f"{name}.gguf")
    rewritten(tiny_path, folder / "architecture.gguf", general__architecture=EVIL)
    rewritten(tiny_path, folder / "tokenizer.gguf", tokenizer__ggml__pre=EVIL)
    rewritten(tiny_path, folder / "model.gguf", tokenizer__ggml__model=EVIL)
    rewritten(tiny_path, folder / "size.gguf", general__size_label=EVIL, general__name=EVIL)
    raises = "{{ raise_exception(messages[0].content and '" + EVIL + "' * 20000) }}"
    rewritten(tiny_path, folder / "template.gguf", tokenizer__chat_template=raises)
    (folder / "evil.gbnf").write_text(
        r'root ::= "\x1b]0;t\x07\x1b[2J\x9b\u202Eevil\u2066\u2028\r" "end"'
    )
    (folder / "bad.gbnf").write_text(f"root ::= {EVIL}", "utf-8")
    (folder / "sessions").mkdir()
    with Model.open(tiny_path) as model, model.stream(SinkPolicy(), 128) as stream:
        stream.feed("Hi")
        conversation = Conversation(
            (Message("user", EVIL, 0, 2), Message("assistant", EVIL, 2, 4)), EVIL
        )
        stream.save(folder / "sessions" / f"{name}.session", conversation=conversation)
        stream.save(folder / "sessions" / "good.session", conversation=conversation)
    words = json.dumps(EVIL, ensure_ascii=False).replace("\x7f", "\\u007f")
    (folder / "models.toml").write_text(
        f'[evil]\nurl = "http://127.0.0.1:9/m.gguf"\ndescription = {words}\nlicence = {words}\n'
        f"[{words}]\nsise = {words}\n",
        "utf-8",
    )
    return folder


@pytest.fixture
def server() -> Iterator[RawServer]:
    with RawServer() as raw:
        threading.Thread(target=raw.serve_forever, args=(0.02,), daemon=True).start()
        said = EVIL.replace("\r\n", "").replace("\x85", "").encode()
        raw.answers = [b"HTTP/1.1 404 " + said * 90 + b"\r\nETag: " + said + b"\r\n\r\n"]
        yield raw
        raw.shutdown()


def shown(home: Path, commands: Sequence[Sequence[str]]) -> list[str]:
    """What a terminal gets of each command."""
    listed = home / "commands.json"
    listed.write_text(json.dumps(commands), "utf-8")
    # A terminal without any escapes of its own: one that comes is a stranger's.
    came, code = pexpect.run(
        f"{sys.executable} -c '{RUNNER}' {listed}",
        env={**os.environ, "STREAMSINK_HOME": str(home), "TERM": "dumb", "PYTHONUTF8": "1"},
        timeout=120,
        withexitstatus=True,
        cwd=str(home),
    )
    text = came.decode("utf-8").replace("\r\n", "\n")
    parts = re.split(r"^=== \d+ (?:\d+|None)\n", text, flags=re.M)
    assert code == 0, text
    assert len(parts) == len(commands) + 1, text
    return parts[:-1]


def test_every_command_on_a_terminal(home: Path, server: RawServer) -> None:
    assert isinstance(server.entry.source, UrlSource)
    odd = next(path.name for path in home.glob("*gpj*.gguf"))
    name = next(path.stem for path in (home / "sessions").glob("*gpj*"))
    with (home / "models.toml").open("a", encoding="utf-8") as file:
        file.write(f'[pulled]\nurl = "{server.entry.source.url}"\n')
    generate = ("--max-tokens", "6", "--ctx", "64", "--seed", "1", "--threads", "1")
    commands = [
        ["doctor", odd],
        ["doctor", "size.gguf"],
        ["doctor", "tokenizer.gguf"],
        ["doctor", "template.gguf"],
        ["generate", odd, "-p", "Hi", *generate, "--grammar", "evil.gbnf", "--max-tokens", "60"],
        ["generate", odd, "-p", "Hi", *generate, "--grammar", "bad.gbnf"],
        ["generate", odd, "-p", "Hi", "--ignore-eos", *generate[2:], "--max-tokens", "300"],
        ["generate", f"{EVIL}.gguf", "-p", "Hi"],
        ["generate", EVIL, "-p", "Hi"],
        ["generate", "~nobody-here/x.gguf", "-p", "Hi"],
        ["generate", "x" * 4000 + EVIL, "-p", "Hi"],
        ["chat", odd, "--chat-template", "x" * 4000],
        ["chat", odd, "--session", "x" * 4000 + "/" + EVIL],
        ["bench", "ppl", odd, "--text", "x" * 4000],
        ["models", "add", "new", "--path", "x" * 4000],
        ["generate", odd, "-p", "Hi", "--placement", EVIL],
        ["generate", odd, "-p", "Hi", "--ctx", EVIL],
        ["generate", odd, "-p", "Hi", f"--{EVIL}"],
        ["generate", odd, "--file", EVIL],
        ["generate", odd, "-p", "Hi", "--json-events", f"models.toml/{EVIL}"],
        [EVIL],
        ["models"],
        ["models", "list"],
        ["models", "path", EVIL],
        ["models", "path", odd],
        ["models", "pull", "pulled"],
        ["models", "pull", EVIL],
        ["models", "add", EVIL, "--path", odd],
        ["models", "add", "new", "--path", EVIL],
        ["models", "add", "new", "--url", f"http://h/{EVIL}"],
        ["models", "rm", EVIL],
        ["sessions"],
        ["sessions", "show", f"sessions/{name}.session"],
        ["sessions", "show", EVIL],
        ["sessions", "export", f"sessions/{name}.session"],
        ["sessions", "export", "good"],
        ["sessions", "export", "good", "--json"],
        ["sessions", "export", "good", "--out", f"models.toml/{EVIL}"],
        ["chat", "--session", f"models.toml/{EVIL}"],
        ["chat", odd, "--chat-template", EVIL],
        ["chat", odd, "--system-file", EVIL],
        ["bench", "compare", EVIL, EVIL],
        ["bench", "report", EVIL],
        ["bench", "ppl", odd, "--policy", EVIL],
        ["bench", "ppl", odd, "--text", EVIL],
        ["bench", "--resume", EVIL],
        ["generate", odd, "-p", "Hi", *generate, "--verbose"],
        ["generate", "tokenizer.gguf", "-p", "Hi", "--verbose"],
        ["generate", "architecture.gguf", "-p", "Hi"],
        ["generate", "model.gguf", "-p", "Hi"],
    ]
    for words, said in zip(commands, shown(home, commands), strict=True):
        assert said.strip(), words
        assert steers(said) == "", (words, said)
        if words[:2] not in (["sessions", "export"], ["generate", odd]) and words[0] != "doctor":
            assert max(map(len, said.splitlines())) < SCREEN, (words, said)
        assert "Traceback" not in said, said
        assert "a fault of streamsink" not in said, said


def test_bytes_stay_untouched_in_a_pipe(home: Path, tiny_path: Path) -> None:
    odd = next(path.name for path in home.glob("*gpj*.gguf"))
    options = ("--grammar", "evil.gbnf", "--ctx", "64", "--threads", "1")
    listed = home / "piped.json"
    commands = [
        ["generate", str(tiny_path), "-p", "Hi", *options],
        ["models", "path", odd],
        ["models", "list"],
        ["sessions", "export", "good"],
        ["sessions", "export", "good", "--json"],
    ]
    listed.write_text(json.dumps(commands), "utf-8")
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, str(listed)],
        stdout=subprocess.PIPE,
        env={**os.environ, "STREAMSINK_HOME": str(home), "PYTHONUTF8": "1"},
        cwd=home,
        check=True,
    )
    generated, path, models, exported, as_json = re.split(
        rb"^=== \d+ \S+\n", done.stdout, flags=re.M
    )[:-1]
    assert generated == "\x1b]0;t\x07\x1b[2J\x9b\u202eevil\u2066\u2028\rend\n".encode()
    assert path == os.fsencode(odd) + b"\n"
    assert EVIL.encode() in exported
    assert json.loads(as_json)["messages"][0] == {"role": "system", "content": EVIL}
    assert steers(models.decode()) == ""
    assert all(row.count(b"\t") == 5 for row in models.splitlines())


def test_a_chat_on_a_terminal(home: Path) -> None:
    odd = next(path.name for path in home.glob("*gpj*.gguf"))
    child = pexpect.spawn(
        sys.executable,
        ["-c", "from streamsink.cli.main import main; main()", "chat", odd,
         "--grammar", "evil.gbnf", "--max-tokens", "60", "--threads", "1"],
        env={**os.environ, "STREAMSINK_HOME": str(home), "TERM": "dumb", "PYTHONUTF8": "1"},
        cwd=str(home), timeout=60, dimensions=(50, 200), encoding="utf-8",
    )  # fmt: skip
    typed = [
        *("/load good", "Hello", "/history", "/memory", "/recall gpj", "/recall 1"),
        *("/save /no\u202e/w", "/load \u202enone", "/\u202ewhat", "/keep \u202e", "/stats"),
    ]
    said = ""
    for words in [*typed, "/quit"]:
        child.expect_exact("> ")
        said += child.before
        child.sendline(words)
    child.expect(pexpect.EOF)
    said += child.before
    for words in typed:  # which the terminal itself echoes
        said = said.replace(words, "")
    assert "going on after 1 turn;" in said
    assert "evil\nend" in said.replace("\r", "")
    assert "]0;title[2J[31m" in said
    # The editor of lines asks for a cursor and hides it.
    assert steers(re.sub(r"\x1b\[[?\d;]*[a-zA-Z]|\r", "", said)) == "", said
