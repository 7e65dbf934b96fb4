"""Text in pieces: whole lines, any encoding fault named, nothing lost."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from streamsink.errors import UsageError
from streamsink.system import reading
from streamsink.system.reading import read_text


def test_pieces_are_the_text_and_end_at_line_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "READ_BYTES", 7)
    text = "".join(f"Zeile {n} – größer\n" for n in range(50)) + "no end"
    (tmp_path / "a").write_text(text, "utf-8")
    (tmp_path / "b").write_text("second", "utf-8")
    pieces = list(read_text([str(tmp_path / "a"), str(tmp_path / "b")], "file"))
    assert "".join(pieces) == text + "second"
    assert all(piece.endswith("\n") for piece in pieces[:-2])
    assert len(pieces) > 20


def test_a_line_without_end_does_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "LONGEST_LINE", 100)
    monkeypatch.setattr(reading, "READ_BYTES", 64)
    (tmp_path / "a").write_text("x" * 1000)
    pieces = list(read_text([str(tmp_path / "a")], "file"))
    assert "".join(pieces) == "x" * 1000
    assert max(map(len, pieces)) < 200


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("grüß\n".encode())))
    assert list(read_text(["-"], "file")) == ["grüß\n"]


@pytest.mark.parametrize("data", [b"abc\n\xff\xfe\n", b"abc\n\xc3"])
def test_what_is_not_utf_8(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(UsageError, match=r"--text .*a is not UTF-8 text: .* near byte 4"):
        list(read_text([str(tmp_path / "a")], "text"))
    assert "\ufffd" in "".join(read_text([str(tmp_path / "a")], "text", "replace"))


def test_a_file_that_is_not_there_is_known_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--text .* cannot be read"):
        read_text([str(tmp_path / "none")], "text")
    with pytest.raises(UsageError, match=r"--text .* cannot be read"):
        list(read_text([str(tmp_path)], "text"))
