"""Words at a terminal's edge, drawn by a terminal."""

from __future__ import annotations

from unicodedata import normalize

import pyte
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamsink.cli.wrapping import NARROWEST, Wrapper

LETTERS = st.sampled_from([*"abcdefgh,.", "é", "e\u0301", "漢", "字", " ", " ", " ", "\n", "\t"])
TEXTS = st.lists(LETTERS, max_size=300).map("".join)


def drawn(text: str, width: int, cuts: list[int]) -> list[str]:
    """What stands on a terminal after a text that came in pieces."""
    screen = pyte.Screen(width, 400)
    stream = pyte.Stream(screen)
    wrapper = Wrapper(lambda: width)
    for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True):
        stream.feed(wrapper.push(text[start:stop]).replace("\n", "\r\n"))
    # What stands behind a wide letter is an empty cell.
    rows = [
        "".join(screen.buffer[at][x].data for x in range(width)).rstrip()
        for at in range(screen.lines)
    ]
    return rows[: max((at + 1 for at, row in enumerate(rows) if row), default=0)]


@given(TEXTS, st.integers(NARROWEST + 1, 40), st.data())
def test_words_stay_whole(text: str, width: int, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=20)))
    rows = drawn(text, width, cuts)
    assert rows == drawn(text, width, [])
    # Nothing is lost or added but blanks.
    assert normalize("NFC", "".join("".join(rows).split())) == normalize(
        "NFC", "".join(text.split())
    )
    for word in text.split():
        if len(word) < width - 1 and word.isascii():
            assert any(word in row for row in rows), word


def test_lines_are_as_full_as_words_allow() -> None:
    text = "Call me Ishmael. Some years ago, never mind how long precisely, having little money"
    assert drawn(text, 21, []) == [
        "Call me Ishmael.",
        "Some years ago,",
        "never mind how long",
        "precisely, having",
        "little money",
    ]
    assert drawn("a" * 45 + " b", 21, []) == ["a" * 20, "a" * 20, "aaaaa b"]


@pytest.mark.parametrize("emoji", ["👩‍🚀", "👍🏽", "❤️", "🇮🇸"])
def test_what_terminals_draw_differently_wipes_nothing_out(emoji: str) -> None:
    """A word of unsure width is not moved: what is wiped out could be more than it."""
    written = Wrapper(lambda: 20).push(f"It goes on and {emoji}{emoji}ward")
    assert "\x1b" not in written


def test_a_window_that_is_made_smaller() -> None:
    width = 40
    wrapper = Wrapper(lambda: width)
    first = wrapper.push("some words on a wide line")
    width = 20
    assert first + wrapper.push(" and more") == "some words on a wide line\nand more"


def test_too_narrow_to_care() -> None:
    assert Wrapper(lambda: 8).push("some words\nand more") == "some words\nand more"
