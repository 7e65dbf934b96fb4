"""Text from outside: one line that says what is wrong with it, or U+FFFD; and nothing is lost."""

from __future__ import annotations

import codecs
import io
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streamsink import SinkPolicy, session
from streamsink.errors import UsageError
from streamsink.model import Model
from streamsink.system import reading
from streamsink.system.reading import read_text, read_whole
from streamsink.system.turns import separator_of, turns
from tests.test_cli import STREAMSINK

Say: TypeAlias = Callable[..., "subprocess.CompletedProcess[bytes]"]
CHAT = ("--ctx", "256", "--max-tokens", "2", "--seed", "1", "--threads", "1")


class Trickle(io.RawIOBase):
    """Bytes that come as a slow pipe gives them."""

    def __init__(self, data: bytes, step: int) -> None:
        self._data, self._step = data, step

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        n = min(self._step, len(buffer), len(self._data))
        buffer[:n], self._data = self._data[:n], self._data[n:]
        return n


def taken(data: bytes, separator: str = "\n", step: int = 2**16) -> tuple[list[str], list[str]]:
    """The turns in some bytes, and what was told of them."""
    told: list[str] = []
    before = sys.stdin
    sys.stdin = io.TextIOWrapper(io.BufferedReader(Trickle(data, step)))
    try:
        return list(turns(separator, told.append)), told
    finally:
        sys.stdin = before


# -- turns ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 2, 3, 2**16])
@pytest.mark.parametrize(
    ("data", "separator", "expected"),
    [
        (b"a\nb\n", "\n", ["a", "b"]),
        (b"a\r\nb\r\n", "\n", ["a", "b"]),
        (b"a\nno end", "\n", ["a", "no end"]),
        (b"a\r\nno end\r", "\n", ["a", "no end"]),
        (b"\xef\xbb\xbf/stats\n\xef\xbb\xbfb\n", "\n", ["/stats", "\ufeffb"]),
        (b"\xef\xbb\xbf", "\n", [""]),
        (b"", "\n", []),
        (b"\n\n a \n", "\n", ["", "", " a "]),
        (b"a\rb\n", "\n", ["a\rb"]),
        ("grüße 👍\n".encode(), "\n", ["grüße 👍"]),
        (b"a\nb\n\0c\0", "\0", ["a\nb", "c"]),
        (b"a\nb\n---\nc\n---\n", "\n---\n", ["a\nb", "c"]),
        (b"a\r\nb\r\n---\r\nc\r\n---\r\n", "\n---\n", ["a\nb", "c"]),
        (b"a\nb\n\nc\n\n", "\r\n\r\n", ["a\nb", "c"]),
        (b"a--b-c----d", "--", ["a", "b-c", "", "d"]),
        ("a¶b§c".encode(), "§", ["a¶b", "c"]),
    ],
)
def test_turns(data: bytes, separator: str, expected: list[str], step: int) -> None:
    assert taken(data, separator, step) == (expected, [])


@settings(deadline=None)
@given(st.binary(max_size=60), st.integers(1, 5), st.sampled_from(["\n", "\0", "\n\n", "ab", "é"]))
@example(b"a\xc3\n\xa9b\n", 1, "\n")
def test_turns_are_the_bytes_whatever_they_are(data: bytes, step: int, separator: str) -> None:
    """However they come, and whatever they are: nothing is lost, and all is text."""
    found, told = taken(data, separator, step)
    assert found == taken(data, separator)[0]
    plain = data.removeprefix(codecs.BOM_UTF8).replace(b"\r\n", b"\n")
    whole = plain.split(separator.encode())
    if not whole[-1]:
        whole.pop()
    expected = [one.decode("utf-8", "replace").replace("\0", "\ufffd") for one in whole]
    assert [one for one in found if one] == [t for one in expected if (t := one.strip("\r\n"))]
    damaged = any(t.encode() != one for t, one in zip(expected, whole, strict=True))
    assert len(told) == damaged


def test_what_is_no_text_is_told_once_and_named() -> None:
    found, told = taken(b"fine\nHi \xff\xfe you\nA\0B\n\xc3")
    assert found == ["fine", "Hi \ufffd\ufffd you", "A\ufffdB", "\ufffd"]
    assert len(told) == 1
    assert "turn 2 of standard input is not all UTF-8 text" in told[0]


def test_a_replacement_mark_that_was_sent_is_text() -> None:
    assert taken("a\ufffdb\n".encode()) == (["a\ufffdb"], [])


def test_a_turn_comes_before_the_next_is_sent() -> None:
    """A program at the other end waits for its answer."""
    end, begin = os.pipe()
    before = sys.stdin
    sys.stdin = os.fdopen(end)
    got: list[str] = []
    came = threading.Event()

    def take() -> None:
        for text in turns("\n", got.append):
            got.append(text)
            came.set()

    thread = threading.Thread(target=take)
    thread.start()
    try:
        os.write(begin, b"one\ntw")
        assert came.wait(10)
        assert got == ["one"]
    finally:
        os.close(begin)
        thread.join(10)
        sys.stdin = before
    assert got == ["one", "tw"]


def test_a_turn_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamsink.system.turns.LONGEST_TURN", 1000)
    with pytest.raises(UsageError, match="no end within 1,000 bytes"):
        taken(b"a" * 5000, step=500)


@pytest.mark.parametrize(
    ("given_text", "means"),
    [("---", "---"), (r"\n---\n", "\n---\n"), (r"\0", "\0"), (r"\t\r\\n", "\t\r\\n"), ("é", "é")],
)
def test_separators(given_text: str, means: str) -> None:
    assert separator_of(given_text) == means


@pytest.mark.parametrize("given_text", ["", r"\q", "a\\", "\udcff"])
def test_separators_that_are_none(given_text: str) -> None:
    with pytest.raises(UsageError, match="--turns-separated-by"):
        separator_of(given_text)


# -- files ----------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(data: bytes) -> Path:
        (tmp_path / "f").write_bytes(data)
        return tmp_path / "f"

    return write


def test_a_byte_order_mark_is_no_text(file: Callable[[bytes], Path], tmp_path: Path) -> None:
    path = file(b"\xef\xbb\xbfroot\r\nleaf\n")
    assert read_whole(path, "grammar") == "root\nleaf\n"
    assert "".join(read_text([str(path), str(path)], "file")) == "root\r\nleaf\n" * 2
    assert "".join(read_text([str(path)], "text", "replace")) == "root\r\nleaf\n"
    assert read_whole(file(b"a\xef\xbb\xbfb"), "file") == "a\ufeffb"
    assert read_whole(file(b"\xef\xbb\xbf"), "file") == ""


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"ab\xff", r"--x .*f is not UTF-8 text: .* near byte 2 \(0xff\)"),
        (b"\xef\xbb\xbfab\xff", r"near byte 5 \(0xff\)"),
        (b"ab\xc3", r"unexpected end of data near byte 2 \(0xc3\)"),
        (b"ab\xed\xa0\x80", r"near byte 2 \(0xed\)"),  # a surrogate
        ("né\0".encode(), "is not text: a NUL at byte 3"),
        ("text".encode("utf-16"), "is not UTF-8 text but UTF-16: convert it"),
        (codecs.BOM_UTF16_BE + "text".encode("utf-16-be"), "UTF-16: convert it"),
        ("text".encode("utf-16-le"), "a NUL at byte 1"),
        ("text".encode("utf-32"), "UTF-16|NUL"),
        (b"a" * 2**17 + b"\xff", r"near byte 131072 \(0xff\)"),
    ],
)
def test_bytes_that_are_no_text(file: Callable[[bytes], Path], data: bytes, says: str) -> None:
    for read in (
        lambda path: list(read_text([str(path)], "x")),
        lambda path: read_whole(path, "x"),
    ):
        with pytest.raises(UsageError, match=says):
            read(file(data))
    assert "\0" not in "".join(read_text([str(file(data))], "x", "replace"))


def test_a_file_that_never_ends_is_not_read_whole(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(reading, "LONGEST_FILE", 1000)
    (tmp_path / "f").write_text("a\n" * 3000)
    with pytest.raises(UsageError, match="is too long: 1,000 characters"):
        read_whole(tmp_path / "f", "grammar")
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        read_whole(tmp_path, "grammar")
    with pytest.raises(UsageError, match="a NUL at byte 0"):
        read_whole(Path("/dev/zero"), "grammar")


def test_words_of_the_command_line() -> None:
    assert reading.given("\ufeffHi 👍", "-p") == "Hi 👍"
    with pytest.raises(UsageError, match="-p is not UTF-8 text: byte 0xff after 2 characters"):
        reading.given("Hi\udcff", "-p")


def test_words_from_the_keyboard() -> None:
    """A terminal that is not UTF-8 hands on bytes as surrogates, which no session can hold."""
    assert reading.typed("caf\udce9 👍\0\ud800") == "caf\ufffd 👍\ufffd\ufffd"


# -- the commands ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In which a model that was tried once is known."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def say(home: Path) -> Say:
    def call(
        *words: str | bytes, given: bytes | None = b"", closed: bool = False
    ) -> subprocess.CompletedProcess[bytes]:
        command = [*STREAMSINK, *words]
        if closed:
            command = ["sh", "-c", 'exec "$@" <&-', "sh", *STREAMSINK, *words]
        return subprocess.run(
            command,
            input=None if closed else given,
            capture_output=True,
            timeout=120,
            env={**os.environ, "STREAMSINK_HOME": str(home)},
        )

    return call


def test_a_conversation_through_a_pipe(say: Say, tiny_path: Path, tmp_path: Path) -> None:
    file = tmp_path / "s.session"
    given = (
        b"\xef\xbb\xbf/keep 5\r\n"
        b"Hi \xff there\r\n"
        b"   \r\n"
        b"//usr/bin is what?\r\n"
        b"/usr/bin\r\n"
        b"/system Be brief.\r\n"
        b"N\0L\r\n"
        b"the end"
    )
    done = say("chat", str(tiny_path), *CHAT, "--session", str(file), given=given)
    assert done.returncode == 2  # of the command that is none
    told = done.stderr.decode()
    assert told.startswith("keep 5: 0 tokens are pinned\n")  # nothing was said yet
    assert told.count("is not all UTF-8 text") == 1
    assert "/usr/bin is no command: /help lists them, and //usr/bin says it" in told
    conversation = session.read(file).conversation
    assert conversation is not None
    assert conversation.system == "Be brief."
    asked = [turn.text for turn in conversation.messages if turn.role == "user"]
    assert asked == ["Hi \ufffd there", "/usr/bin is what?", "N\ufffdL", "the end"]


def test_turns_of_several_lines_through_a_pipe(say: Say, tiny_path: Path, tmp_path: Path) -> None:
    for at, (options, mark) in enumerate(
        [(["-0"], b"\0"), (["--turns-separated-by", r"\n%%\n"], b"\n%%\n")]
    ):
        file = tmp_path / f"{at}.session"
        given = mark.join(
            [b"two\nlines", b"/system You are\nmany.", b"//a\n/b", b"", b"last\r\none"]
        )
        done = say("chat", str(tiny_path), *CHAT, "--session", str(file), *options, given=given)
        assert done.returncode == 0, done.stderr
        conversation = session.read(file).conversation
        assert conversation is not None
        assert conversation.system == "You are\nmany."
        asked = [turn.text for turn in conversation.messages if turn.role == "user"]
        assert asked == ["two\nlines", "/a\n/b", "last\none"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["chat", "TINY"], "standard input is closed"),
        (["models", "rm", "smollm2-135m", "--forget"], "nobody to ask"),
        (["bench", "ppl", "TINY", "--text", "-", "--out", "OUT"], "standard input is closed"),
    ],
)
def test_a_closed_standard_input(
    say: Say, tiny_path: Path, home: Path, tmp_path: Path, words: list[str], says: str
) -> None:
    (home / "models" / "smollm2-135m").mkdir(parents=True, exist_ok=True)
    names = {"TINY": str(tiny_path), "OUT": str(tmp_path / "run")}
    done = say(*(names.get(word, word) for word in words), closed=True)
    assert done.returncode == 2
    assert says in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([b"-p", b"a\xff"], "--prompt is not UTF-8 text: byte 0xff"),
        ([b"-p", b"a", b"--grammar", b"BAD"], "--grammar BAD is not UTF-8 text"),
    ],
)
def test_words_that_are_no_text(
    say: Say,
    tiny_path: Path,
    tmp_path: Path,
    words: list[bytes],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("BAD").write_bytes(b"root ::= \xff")
    done = say("generate", str(tiny_path), *words)
    assert done.returncode == 2
    assert says in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1


def test_a_file_name_need_not_be_text(say: Say, tiny_path: Path, tmp_path: Path) -> None:
    odd = os.fsencode(tmp_path) + b"/n\xff\x1b[2Jm.gguf"
    with open(odd, "wb") as file:
        file.write(tiny_path.read_bytes())
    kept = tmp_path / "s.session"
    done = say("chat", odd, *CHAT, "--session", str(kept), given=b"Hi\n")
    assert done.returncode == 0, done.stderr
    again = say("chat", odd, "--session", str(kept), "--max-tokens", "2", given=b"/history\n")
    assert again.returncode == 0, again.stderr
    assert b"1 > Hi" in again.stderr


# -- a whole prompt, in pieces --------------------------------------------------------------------


def test_a_prompt_out_of_a_file_is_pinned_whole(say: Say, tiny_path: Path, tmp_path: Path) -> None:
    text = "".join(f"Line {n} of the prompt.\n" for n in range(3))
    path = tmp_path / "prompt"
    path.write_text(text)
    options = ("--keep", "-1", "--ctx", "64", "--max-tokens", "40", "--seed", "1", "--ignore-eos")
    events = tmp_path / "events"
    by_words = say("generate", str(tiny_path), "-p", text, *options, "--json-events", str(events))
    assert by_words.returncode == 0, by_words.stderr
    with Model.open(tiny_path) as model, model.stream(SinkPolicy(-1), 64) as stream:
        n_prompt = stream.feed(text)
    assert f'"index": {n_prompt}, "n_tokens": 1,' in events.read_text().splitlines()[0]
    for name, data in (str(path), b""), ("-", text.encode()):
        done = say("generate", str(tiny_path), "--file", name, *options, given=data)
        assert (done.stdout, done.stderr) == (by_words.stdout, by_words.stderr)


def test_a_prompt_that_cannot_be_pinned_is_not_read_to_its_end(tiny_path: Path) -> None:
    words = ["generate", str(tiny_path), "--file", "-", "--keep", "-1", "--ctx", "64"]
    with subprocess.Popen(["yes"], stdout=subprocess.PIPE) as yes:
        done = subprocess.run(
            [*STREAMSINK, *words], stdin=yes.stdout, capture_output=True, timeout=60
        )
        yes.kill()
    assert done.returncode == 2
    assert b"--keep -1 pins the whole prompt" in done.stderr
    assert done.stderr.count(b"\n") == 1
