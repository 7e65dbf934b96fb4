"""Damaged and malicious files: a clear error or a stream that works, never an abort or a hang."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamsink import Model
from streamsink.errors import ModelError
from streamsink.gguf.preflight import preflight
from tests.mutations import KINDS, mutations

N_FILES = 1100
SEED = 20231

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="files are tried in forks")


@pytest.fixture(scope="module")
def tries() -> Iterator[subprocess.Popen[str]]:
    """A process that tries files, see `tests.try_files`."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.try_files"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_WAIT_POLICY": "passive"},
    ) as process:
        yield process
        process.stdin.close()  # type: ignore[union-attr]


def outcome(tries: subprocess.Popen[str], path: Path) -> str:
    assert tries.stdin is not None
    assert tries.stdout is not None
    tries.stdin.write(f"{path}\n")
    tries.stdin.flush()
    return tries.stdout.readline().strip()


@pytest.mark.slow
def test_mutated_files(tries: subprocess.Popen[str], tiny_path: Path, tmp_path: Path) -> None:
    found: Counter[str] = Counter()
    path = tmp_path / "mutated.gguf"
    for name, data in mutations(tiny_path, N_FILES, SEED):
        path.write_bytes(data)
        said = outcome(tries, path)
        verdict = said.partition(":")[0]
        assert verdict in ("fine", "refused", "failed", "died"), f"{name}: {said}"
        assert said != "died: SIGALRM", f"{name} hangs"
        found[verdict] += 1
    assert found.total() == N_FILES
    # The mutations reach all the ways: most are seen in the header or do no harm.
    assert found["refused"] > N_FILES / 4
    assert found["fine"] > N_FILES / 20
    assert found["died"] < N_FILES / 50


def test_every_kind_of_mutation_changes_the_file(tiny_path: Path) -> None:
    whole = tiny_path.read_bytes()
    n_each = 4
    same = Counter(
        name.split("-")[1]
        for name, data in mutations(tiny_path, n_each * len(KINDS), SEED)
        if data == whole
    )
    assert all(count < n_each for count in same.values())


def test_a_file_that_llama_cpp_dies_on(tiny_path: Path, tmp_path: Path) -> None:
    # Two tokens of one text: an assertion in src/llama-vocab.cpp.
    data = bytearray(tiny_path.read_bytes())
    place = data.find(b"tokenizer.ggml.tokens")
    one = data.find(b"\x01\0\0\0\0\0\0\0a", place)
    two = data.find(b"\x01\0\0\0\0\0\0\0b", place)
    assert place < one < two
    data[two + 8 : two + 9] = b"a"
    path = tmp_path / "twice.gguf"
    path.write_bytes(data)
    with pytest.raises(ModelError, match=r"died in a trial .*SIGABRT.*GGML_ASSERT") as refused:
        Model.open(path)
    assert str(refused.value).count("/") == str(path).count("/"), "no path of llama.cpp's own"


def test_a_file_is_tried_once(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from streamsink.gguf.reader import read_header
    from streamsink.system import child

    monkeypatch.setenv("STREAMSINK_HOME", str(tmp_path))
    header = read_header(tiny_path)
    found = preflight(header)
    assert 0 < found.shift < 1e-4
    assert 0 < found.place < 1e-4
    monkeypatch.setattr(child, "ask", None)
    assert preflight(header) == found


def test_a_home_that_cannot_be_written_to(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").write_text("no folder")
    monkeypatch.setenv("STREAMSINK_HOME", str(tmp_path / "home"))
    from streamsink.gguf.reader import read_header

    assert preflight(read_header(tiny_path)).shift < 1e-4
