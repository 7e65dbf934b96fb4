"""Markdown drawn while it comes: the end is what the whole would be, and nothing is left over."""

from __future__ import annotations

import io
import random

import pyte
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from streamsink.cli import markdown, terminal
from streamsink.cli.markdown import MarkdownFlow, drawn, split

TEXT = """# A title

Some *words* in a paragraph that is long enough to be wrapped at the edge of the screen, and then
some more of them.

- one
- two

  still two

1. first
2. second

```python
def add(a, b):

    return a + b
```

| a | b |
|---|---|
| 1 | 2 |

> quoted

The end.
"""
BLOCKS = st.sampled_from(
    ["a", "b c\n", "\n", "\n\n", "- x\n", "  y\n", "```\n", "~~~\n", "# t\n", " "]
)


def shown(pieces: list[str], width: int, height: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What stands on a terminal of that size, all that has scrolled away included."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=width, height=height)
    monkeypatch.setattr(terminal, "console", lambda: console)
    with MarkdownFlow() as flow:
        for piece in pieces:
            flow(piece)
    return screen(out.getvalue(), width, height)


def screen(text: str, width: int, height: int) -> list[str]:
    history = pyte.HistoryScreen(width, height, history=5000)
    pyte.Stream(history).feed(text.replace("\n", "\r\n"))
    above = ["".join(line[x].data for x in range(width)) for line in history.history.top]
    return [line.rstrip() for line in [*above, *history.display]]


def without_end(lines: list[str]) -> list[str]:
    return "\n".join(lines).strip("\n").split("\n")


@pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 12), (30, 6)])
@pytest.mark.parametrize("seed", range(4))
def test_in_pieces_as_at_once(
    width: int, height: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(seed)
    cuts = sorted(draw.sample(range(1, len(TEXT)), 60))
    pieces = [TEXT[a:b] for a, b in zip([0, *cuts], [*cuts, len(TEXT)], strict=True)]
    found = without_end(shown(pieces, width, height, monkeypatch))
    assert found == without_end(shown([TEXT], width, height, monkeypatch))
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=width, height=height)
    blocks, rest = split(TEXT)
    for at, block in enumerate([*blocks, rest]):
        if at:
            console.print()
        console.print(drawn(block))
    assert found == without_end(screen(out.getvalue(), width, height))


def test_blocks() -> None:
    blocks, rest = split(TEXT)
    assert [block.partition("\n")[0] for block in blocks] == [
        "# A title", "Some *words* in a paragraph that is long enough to be wrapped at the edge of"
        " the screen, and then", "- one", "1. first", "```python", "| a | b |", "> quoted",
    ]  # fmt: skip
    assert rest.strip() == "The end."
    assert split("```\na\n\nb\n\n") == ([], "```\na\n\nb\n\n")  # a fence that has no end yet
    assert split("") == ([], "")


@given(st.lists(BLOCKS).map("".join))
def test_splitting_loses_nothing(text: str) -> None:
    blocks, rest = split(text)
    assert "".join("".join([*blocks, rest]).split()) == "".join(text.split())
    # What was whole stays so, whatever comes.
    assert split(text + "\n\nmore\n\nand more")[0][: len(blocks)] == blocks


def test_links_are_written_out_and_nothing_steers(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=60, height=20)
    monkeypatch.setattr(terminal, "console", lambda: console)
    with MarkdownFlow() as flow:
        flow("[here](http://evil.example) \x1b]0;title\x07 \x1b[2J")
    assert "\x1b]" not in out.getvalue()
    assert "\x1b[2J" not in out.getvalue()
    assert "evil.example" in out.getvalue()
    assert markdown.SPARE > 0
