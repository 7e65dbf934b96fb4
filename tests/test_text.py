"""Bytes to text: characters and stop strings that span tokens."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamsink.engine.text import TextStream
from streamsink.errors import UsageError


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    """The bytes, cut at some places."""
    at = [0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    return [data[a:b] for a, b in pairwise(at)]


def run(parts: list[bytes], stop: list[str]) -> tuple[str, bool]:
    text = TextStream(stop)
    out = [text.push(part) for part in parts]
    return "".join([*out, text.push(b"", final=True)]), text.stopped


def test_a_character_waits_for_its_last_byte() -> None:
    text = TextStream()
    assert [text.push(bytes([byte])) for byte in "aé🙂".encode()] == [
        "a", "", "é", "", "", "", "🙂",
    ]  # fmt: skip


def test_a_broken_character_is_replaced() -> None:
    text = TextStream()
    assert text.push("🙂".encode()[:3]) == ""
    assert text.push(b"", final=True) == "\ufffd"
    assert TextStream().push(b"\xffa") == "\ufffda"


def test_a_stop_string_across_pieces() -> None:
    text = TextStream(["<end>"])
    assert [text.push(piece) for piece in (b"ab<", b"en", b"d>cd", b"ef")] == ["ab", "", "", ""]
    assert text.stopped
    assert text.push(b"x", final=True) == ""


def test_held_text_comes_when_no_stop_string_follows() -> None:
    text = TextStream(["<end>"])
    assert text.push(b"ab<en") == "ab"
    assert text.push(b"<e") == "<en"
    assert text.push(b"nt") == "<ent"
    assert not text.stopped


def test_held_text_comes_at_the_end() -> None:
    text = TextStream(["<end>"])
    assert text.push(b"ab<en") == "ab"
    assert text.push(b"", final=True) == "<en"
    assert not text.stopped


def test_the_last_piece_may_complete_a_stop_string() -> None:
    text = TextStream(["<end>"])
    assert text.push(b"ab<en") == "ab"
    assert text.push(b"d>", final=True) == ""
    assert text.stopped


def test_a_stop_string_of_several_bytes_a_character() -> None:
    data = "ja🙂nein".encode()
    assert run([bytes([byte]) for byte in data], ["🙂n"]) == ("ja", True)


def test_the_first_of_several_stop_strings_counts() -> None:
    assert run([b"a User: b End"], ["End", "User:"]) == ("a ", True)


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(UsageError, match="empty stop"):
        TextStream(["a", ""])


@given(st.text(), st.lists(st.integers(0, 100)))
def test_any_cut_gives_the_same_text(whole: str, cuts: list[int]) -> None:
    assert run(pieces(whole.encode(), cuts), []) == (whole, False)


@given(st.text("abé"), st.lists(st.integers(0, 100)), st.text("abé", min_size=1, max_size=4))
def test_any_cut_finds_the_stop_string(whole: str, cuts: list[int], stop: str) -> None:
    text, stopped = run(pieces(whole.encode(), cuts), [stop])
    assert text == whole.split(stop, 1)[0]
    assert stopped == (stop in whole)


@given(st.binary(), st.lists(st.integers(0, 100)))
def test_any_bytes_give_text(data: bytes, cuts: list[int]) -> None:
    assert run(pieces(data, cuts), [])[0] == data.decode("utf-8", "replace")
