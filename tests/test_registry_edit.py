"""Editing the user's own registry: what is added and forgotten, and what must stay as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from streamsink.errors import UsageError
from streamsink.registry import catalog, edit, files
from streamsink.registry.rewrite import with_table, without
from streamsink.registry.sources import HfSource, PathSource, PypiSource, UrlSource
from streamsink.registry.tables import read_tables
from tests.test_registry import HF, write_own

pytestmark = pytest.mark.usefixtures("bare_home")


def test_add_keeps_other_entries_and_comments() -> None:
    text = f"# my models\n[first]  # the first\nhf = {HF}\n\n# the end\n"
    write_own(text)
    entry = edit.add(
        "second",
        HfSource("a/b", "c.gguf", "v1"),
        size=3,
        sha256="AB" * 32,
        licence="MIT",
        n_ctx=64,
        keep="system",
        discard=8,
        chat=False,
    )
    written = catalog.user_registry().read_text("utf-8")
    assert written.startswith(text)
    assert catalog.entry_named("second") == entry
    assert entry.source == HfSource("a/b", "c.gguf", "v1")
    assert (entry.sha256, entry.chat, entry.discard) == ("ab" * 32, False, 8)
    assert catalog.entry_named("first").own


def test_add_takes_every_kind_of_source(tmp_path: Path) -> None:
    Path("here.gguf").write_bytes(b"GGUF")
    edit.add("a.b", UrlSource("https://h/x.gguf?token=1"))
    edit.add("c", PypiSource("p", "1.0", "p/x.gguf"))
    edit.add("d", PathSource(Path("here.gguf")))
    assert catalog.entry_named("a.b").source == UrlSource("https://h/x.gguf?token=1")
    assert catalog.entry_named("c").source == PypiSource("p", "1.0", "p/x.gguf")
    assert files.resolve("d") == tmp_path / "here.gguf"
    with pytest.raises(UsageError, match=r"no such file: gone\.gguf"):
        edit.add("e", PathSource(Path("gone.gguf")))


@pytest.mark.parametrize("name", ["", "A", "a/b", "..", "-a", "a.", "x.gguf", "a b", "ä", "a" * 65])
def test_add_refuses_what_cannot_be_a_name(name: str) -> None:
    with pytest.raises(UsageError, match="cannot name a model"):
        edit.add(name, UrlSource("https://h/x.gguf"))
    assert not catalog.user_registry().exists()


def test_add_replaces_only_with_force() -> None:
    with pytest.raises(UsageError, match=r"one of streamsink's models already.*--force"):
        edit.add("qwen3-4b", UrlSource("https://h/x.gguf"))
    edit.add("qwen3-4b", UrlSource("https://h/x.gguf"), force=True)
    edit.add("other", UrlSource("https://h/other.gguf"))
    with pytest.raises(UsageError, match="one of your own models already"):
        edit.add("qwen3-4b", UrlSource("https://h/y.gguf"))
    edit.add("qwen3-4b", UrlSource("https://h/y.gguf"), force=True)
    assert catalog.entry_named("qwen3-4b").source == UrlSource("https://h/y.gguf")
    assert catalog.entry_named("other").source == UrlSource("https://h/other.gguf")
    assert catalog.user_registry().read_text("utf-8").count("[qwen3-4b]") == 1


def test_add_is_not_misled_by_text_that_looks_like_a_table() -> None:
    tricky = f'[tricky]\nhf = {HF}\ndescription = """\n[gone]\n[kept]\n"""\n'
    write_own(f'{tricky}\n[gone]\nurl = "https://h/x.gguf"\n')
    edit.add("gone", UrlSource("https://h/y.gguf"), force=True)
    text = catalog.user_registry().read_text("utf-8")
    assert text == f'{tricky}\n[gone]\nurl = "https://h/y.gguf"\n'


def test_what_would_change_another_entry_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"[gone]\nhf = {HF}\n\n[kept]\nhf = {HF}\n"
    own = write_own(text)
    monkeypatch.setattr(edit, "without", lambda text, name: f"[kept]\nhf = {HF}\nsize = 1\n")
    with pytest.raises(UsageError, match="change it by hand"):
        edit.add("gone", UrlSource("https://h/y.gguf"), force=True)
    with pytest.raises(UsageError, match="change it by hand"):
        edit.forget("gone")
    assert own.read_text("utf-8") == text


def test_the_first_model_of_a_file_gets_a_heading() -> None:
    edit.add("first", UrlSource("https://h/a.gguf"))
    assert catalog.user_registry().read_text("utf-8") == (
        "# Your own models, laid over streamsink's: its models.toml describes the form.\n\n"
        '[first]\nurl = "https://h/a.gguf"\n'
    )


def test_line_ends_stay_as_they_are() -> None:
    own = write_own("")
    own.write_bytes(b"# mine\r\n[gone]\r\nurl = 'https://h/a.gguf'\r\n\r\n[kept]\r\nn_ctx = 1\r\n")
    edit.forget("gone")
    assert own.read_bytes() == b"# mine\r\n[kept]\r\nn_ctx = 1\r\n"


@pytest.mark.parametrize(
    "gone",
    [
        "gone.url = 'https://h/a.gguf'\ngone.size = 4\n",
        "gone = { url = 'https://h/a.gguf', size = 4 }\n",
        "[ 'gone' . hf ]\nrepo = 'a/b'\nfile = 'c.gguf'\n",
    ],
)
def test_forget_knows_every_spelling_of_a_table(gone: str) -> None:
    rest = "# about the last\n[last.hf]\nrepo = 'a/b'\nfile = 'c.gguf'  # its file\n"
    write_own(gone + rest)
    edit.forget("gone")
    assert catalog.user_registry().read_text("utf-8") == rest


def test_forget_takes_out_one_entry_with_its_subtables() -> None:
    write_own(
        "[stays]\nurl = 'https://h/a.gguf'\n\n"
        "['gone']\nsize = 4\n[gone.hf]\nrepo = 'a/b'\nfile = 'c.gguf'\n\n"
        "# about the last\n[last]\nurl = 'https://h/z.gguf'\n"
    )
    edit.forget("gone")
    text = catalog.user_registry().read_text("utf-8")
    assert text == (
        "[stays]\nurl = 'https://h/a.gguf'\n\n# about the last\n[last]\nurl = 'https://h/z.gguf'\n"
    )
    with pytest.raises(UsageError, match="only your own models can be forgotten"):
        edit.forget("qwen3-4b")


LINES = ["x = 1", "y.z = 'q'", "h = { r = 'a' }", "t = [ 1,\n # in\n ]", "s = '''\n[gone]\n'''"]
HEADERS = [
    f"[{name}{sub}]" for name in ("gone", "'gone'", "kept", "b") for sub in ("", ".s", ".t.u")
]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(HEADERS), st.lists(st.sampled_from(LINES), max_size=3, unique=True)
        ),
        min_size=1,
        max_size=6,
        unique_by=lambda table: table[0].replace("'", ""),
    )
)
def test_whatever_is_taken_out_all_else_stays(tables: list[tuple[str, list[str]]]) -> None:
    """A model's tables may stand in several places, and each table has a comment above it."""
    text = "".join("\n".join([f"# above {header}", header, *lines, ""]) for header, lines in tables)
    stated = _stated(text)
    if stated is None:
        reject()
    after = without(text, "gone")
    stated.pop("gone", None)
    assert _stated(after) == stated
    kept = [f"# above {header}\n{header}\n" for header, _ in tables if "gone" not in header]
    assert all(table in after for table in kept)
    if len(kept) == len(tables):
        assert after == text


def _stated(text: str) -> dict[str, Any] | None:
    try:
        return {name: table.values for name, table in read_tables(text, "here").items()}
    except UsageError:  # a table that was made twice
        return None


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_as_a_toml_string(text: str) -> None:
    written = with_table("", "m", {"x": text})
    assert read_tables(written, "here")["m"].values == {"x": text}


def test_a_bad_entry_is_mended_by_add_and_taken_out_by_forget(tmp_path: Path) -> None:
    file = tmp_path / "own.gguf"
    file.write_bytes(b"GGUF")
    write_own(f"[bad]\nhf = {HF}\nkeep = 'all'\n[worse]\n")
    edit.add("bad", PathSource(file))
    assert files.resolve("bad") == file
    edit.forget("worse")
    assert not catalog.load_registry().faults
