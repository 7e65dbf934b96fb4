"""The header of a GGUF file: what is read out of it, and what is refused."""

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from streamsink import Model, SinkPolicy
from streamsink.errors import ModelError, UsageError
from streamsink.gguf.header import Strings
from streamsink.gguf.inspection import inspect
from streamsink.gguf.reader import read_header, tensor_names
from streamsink.gguf.settings import USUAL
from tests.tiny_gguf import TinyModel, vocabulary

MAGIC, VERSION = b"GGUF", 3
UINT32, STRING, ARRAY = 4, 8, 9


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def pair(key: bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def file_of(
    folder: Path,
    pairs: list[bytes] | None = None,
    tensors: list[bytes] | None = None,
    *,
    version: int = VERSION,
    n_pairs: int | None = None,
    n_tensors: int | None = None,
    padding: int = 4096,
) -> Path:
    """A file put together by hand, its counts true unless others are given."""
    pairs, tensors = pairs or [], tensors or []
    counts = (
        len(tensors) if n_tensors is None else n_tensors,
        len(pairs) if n_pairs is None else n_pairs,
    )
    head = MAGIC + struct.pack("<IQQ", version, *counts)
    path = folder / "made.gguf"
    path.write_bytes(head + b"".join(pairs) + b"".join(tensors) + bytes(padding))
    return path


def tensor(name: bytes, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    sizes = struct.pack(f"<{len(shape)}Q", *shape)
    return text(name) + struct.pack("<I", len(shape)) + sizes + struct.pack("<IQ", kind, offset)


def test_a_header_is_what_the_gguf_package_reads(tiny_path: Path) -> None:
    header = read_header(tiny_path)
    theirs = gguf.GGUFReader(tiny_path)
    assert header.architecture == "llama"
    assert header.n_bytes == tiny_path.stat().st_size
    assert list(header.tensors) == [one.name for one in theirs.tensors]
    for one in theirs.tensors:
        ours = header.tensors[one.name]
        assert ours.shape == tuple(int(size) for size in one.shape)
        assert ours.type == one.tensor_type
    for key, field in theirs.fields.items():
        if key.startswith("GGUF."):
            continue
        value, expected = header.metadata[key], field.contents()
        if isinstance(value, np.ndarray):
            assert value.tolist() == expected
        elif isinstance(value, Strings):
            assert len(value) == len(expected)
        else:
            assert value == expected
    assert header.metadata["tokenizer.ggml.tokens"] == Strings(len(vocabulary()))


def test_the_digest_is_that_of_the_header(tmp_path: Path) -> None:
    one = TinyModel.create(seed=1).write(tmp_path / "one.gguf")
    other = TinyModel.create(seed=2).write(tmp_path / "other.gguf")
    wider = TinyModel.create(seed=1, n_ff=96).write(tmp_path / "wider.gguf")
    digests = [read_header(path).digest for path in (one, other, wider)]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    ("made", "says"),
    [
        ({"version": 1}, "version 1 of the format"),
        ({"version": 2**31}, "of the format"),
        ({"n_pairs": 2**60}, "for which it is too short"),
        ({"n_tensors": 2**60}, "for which it is too short"),
        ({"n_pairs": 9, "padding": 60}, "for which it is too short"),
        ({"pairs": [pair(b"a", 99, b"")]}, "type 99, which is none"),
        ({"pairs": [pair(b"a", STRING, struct.pack("<Q", 2**62))]}, "bytes in the value of 'a'"),
        ({"pairs": [pair(b"a", ARRAY, struct.pack("<IQ", 4, 2**61))]}, "numbers in the value"),
        ({"pairs": [pair(b"a", ARRAY, struct.pack("<IQ", 8, 2**50))]}, "strings in the value"),
        ({"pairs": [pair(b"a", ARRAY, struct.pack("<IQ", 9, 1))]}, "array of type 9"),
        ({"pairs": [pair(b"a", UINT32, bytes(4))] * 2}, "'a' is there twice"),
        ({"pairs": [pair(b"", UINT32, bytes(4))]}, "without a name"),
        ({"tensors": [tensor(b"w", (1, 1, 1, 1, 1))]}, "has 5 dimensions"),
        ({"tensors": [tensor(b"w", (2**40, 2**40))]}, "larger than the file"),
        ({"tensors": [tensor(b"w", (2**63, 2, 2**63))]}, "larger than the file"),
        ({"tensors": [tensor(b"w", (4,), offset=2**40)]}, "cut short"),
        ({"tensors": [tensor(b"w", (4,))] * 2}, "'w' is there twice"),
        (
            {"pairs": [pair(b"tokenizer.ggml.tokens", UINT32, bytes(4))]},
            "tokens is no list of strings",
        ),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, made: dict[str, object], says: str) -> None:
    with pytest.raises(ModelError, match="is damaged") as refused:
        read_header(file_of(tmp_path, **made))  # type: ignore[arg-type]
    assert says in str(refused.value)


def test_a_long_name_stays_short_in_the_error(tmp_path: Path) -> None:
    name = b"\x1b[31m" + b"x" * 3000
    path = file_of(tmp_path, [pair(name, 99, b"")])
    with pytest.raises(ModelError) as refused:
        read_header(path)
    assert len(str(refused.value)) < 300 + len(str(path))
    assert "\x1b" not in str(refused.value)


@pytest.mark.parametrize("key", ["scores", "token_type"])
def test_a_vocabulary_with_lists_too_short_is_refused(tmp_path: Path, key: str) -> None:
    # llama.cpp reads as many of them as there are tokens (src/llama-vocab.cpp).
    tokens = struct.pack("<IQ", STRING, 3) + text(b"a") * 3
    kind = 6 if key == "scores" else 5
    short = struct.pack("<IQ", kind, 2) + bytes(8)
    path = file_of(
        tmp_path,
        [
            pair(b"tokenizer.ggml.tokens", ARRAY, tokens),
            pair(f"tokenizer.ggml.{key}".encode(), ARRAY, short),
        ],
    )
    with pytest.raises(ModelError, match="is of 2 tokens, and there are 3"):
        read_header(path)


@pytest.mark.parametrize("size", [0, 3, 4, 8, 23, 24, 100, 1000, 5000])
def test_a_file_that_ends_early_is_refused(tmp_path: Path, tiny_path: Path, size: int) -> None:
    path = tmp_path / "torn.gguf"
    path.write_bytes(tiny_path.read_bytes()[:size])
    with pytest.raises(ModelError):
        read_header(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read_header(tmp_path / "none.gguf")
    with pytest.raises(UsageError, match="it is a folder"):
        read_header(tmp_path)


def test_the_parts_of_a_split_model(tmp_path: Path) -> None:
    count = pair(b"split.count", 2, struct.pack("<H", 3))
    first = tmp_path / "big-00001-of-00003.gguf"
    file_of(tmp_path, [count]).rename(first)
    with pytest.raises(ModelError, match=r"missing: .*big-00002-of-00003.gguf"):
        read_header(first).parts()
    others = [tmp_path / f"big-0000{at}-of-00003.gguf" for at in (2, 3)]
    for other in others:
        other.write_bytes(first.read_bytes())
    assert read_header(first).parts() == [first, *others]
    with pytest.raises(ModelError, match=r"not the first part .* give .*big-00001-of-00003.gguf"):
        read_header(others[0]).parts()
    alone = first.rename(tmp_path / "big.gguf")
    with pytest.raises(ModelError, match=r"call it big-00001-of-00003.gguf"):
        read_header(alone).parts()


def split(whole: Path, folder: Path, n_tensors: int) -> list[Path]:
    """The same model in parts of so many tensors."""
    theirs = gguf.GGUFReader(whole)
    writer = gguf.GGUFWriter(folder / "split.gguf", "llama", split_max_tensors=n_tensors)
    for field in theirs.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            kind, *of = field.types
            writer.add_key_value(field.name, field.contents(), kind, *of)
    for tensor in theirs.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(folder.glob("split-*.gguf"))


def test_a_split_model_is_the_whole_one(tiny_path: Path, tmp_path: Path) -> None:
    parts = split(tiny_path, tmp_path, 9)
    assert len(parts) > 2
    header = read_header(parts[0])
    assert header.parts() == parts
    assert tensor_names(header) == set(read_header(tiny_path).tensors)
    tokens = [0, 5, 99, 200, 17] * 30
    scores = []
    for path in (tiny_path, parts[0]):
        with Model.open(path) as model, model.stream(SinkPolicy(4, 1), 64) as stream:
            scores.append(stream.score(tokens)[1:])
    assert (scores[0] == scores[1]).all()
    assert inspect(parts[0], USUAL).weight_bytes == sum(part.stat().st_size for part in parts)


def test_a_part_that_is_missing_or_damaged_is_named(tiny_path: Path, tmp_path: Path) -> None:
    parts = split(tiny_path, tmp_path, 9)
    whole = parts[1].read_bytes()
    parts[1].write_bytes(whole[:40])
    with pytest.raises(ModelError, match=r"split-00002-of-0000\d\.gguf is damaged"):
        Model.open(parts[0])
    parts[1].unlink()
    for opening in (Model.open, lambda path: inspect(path, USUAL)):
        with pytest.raises(ModelError, match=r"missing: .*split-00002-of-0000\d\.gguf"):
            opening(parts[0])
