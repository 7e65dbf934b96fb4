"""The header of a GGUF file, read and checked before llama.cpp sees it.

llama.cpp trusts much of what a file says of itself: some of a damaged file's claims end in memory
read where there is none, or in an abort that takes the whole process. So the header is read here
first, with every count held against the bytes that there are, and whatever is checked nowhere else
is checked here. Layout: ggml's docs/gguf.md; limits: ggml/src/gguf.cpp.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from streamsink.errors import ModelError, UsageError
from streamsink.gguf.header import Header, Strings, Tensor, Value, damaged
from streamsink.gguf.header_checks import check_sizes, check_vocabulary
from streamsink.system.regular import Stamp, open_regular

Number: TypeAlias = "np.dtype[np.generic]"
T = TypeVar("T")

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMENSIONS = 4
STRING, ARRAY = 8, 9
SCALARS: dict[int, Number] = {
    0: np.dtype("u1"),
    1: np.dtype("i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
"""NumPy's types by GGUF's numbers of them."""

# The least that an entry takes: an empty string's length, a type, a value; of a tensor, its name,
# the number of its dimensions, its type and where it begins.
LEAST_PAIR, LEAST_TENSOR, LEAST_STRING = 13, 24, 8

_LENGTH = struct.Struct("<Q")


def read_header(path: Path) -> Header:
    """Read and check the header of a file.

    Parameters
    ----------
    path : Path
        A GGUF file of any size; only its header is read.

    Raises
    ------
    UsageError
        There is no such file, or it cannot be read.
    ModelError
        It is not a GGUF file, or a damaged one.
    """
    try:
        with open_regular(path) as file:
            stamp = Stamp.of(os.fstat(file.fileno()))
            begin = file.read(len(MAGIC))
            if begin != MAGIC:
                raise ModelError(
                    f"{path} is not a GGUF file: it begins with {begin!r}, not {MAGIC!r}"
                )
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                header = _Reader(path, data, stamp).header()
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(
            f"cannot read {path}: {reason}; give a model name or a .gguf file"
        ) from None
    check_vocabulary(header)
    check_sizes(header)
    return header


def tensor_names(header: Header) -> set[str]:
    """Names of the tensors in all parts of a model.

    Raises
    ------
    ModelError
        A part is missing or damaged.
    """
    others = [read_header(part) for part in header.parts()[1:]]
    return {name for one in (header, *others) for name in one.tensors}


class _Reader:
    """Goes through the bytes of a header, never past the end of the file."""

    def __init__(self, path: Path, data: mmap.mmap, stamp: Stamp) -> None:
        self._path = path
        self._data = data
        self._stamp = stamp
        self._at = len(MAGIC)

    def header(self) -> Header:
        version = self._number("<I", "its version")
        if version not in VERSIONS:
            raise self._damaged(f"version {version} of the format, where 2 and 3 can be read")
        n_tensors = self._count(LEAST_TENSOR, "tensors")
        n_pairs = self._count(LEAST_PAIR, "metadata pairs")
        metadata = self._table(n_pairs, "key", self._value)
        tensors = self._table(n_tensors, "tensor", self._tensor)
        n_bytes = len(self._data)
        digest = hashlib.sha256(n_bytes.to_bytes(8, "little"))
        digest.update(self._data[: self._at])
        known = digest.hexdigest()
        return Header(self._path, version, metadata, tensors, n_bytes, known, self._stamp)

    def _table(self, n: int, what: str, entry: Callable[[str], T]) -> dict[str, T]:
        found: dict[str, T] = {}
        for _ in range(n):
            name = self._string(f"the name of a {what}")
            if not name:
                raise self._damaged(f"a {what} without a name")
            if name in found:
                raise self._damaged(f"{what} {_quoted(name)} is there twice")
            found[name] = entry(name)
        return found

    def _value(self, key: str) -> Value:
        what = f"the value of {_quoted(key)}"
        kind = self._number("<I", what)
        if kind == STRING:
            return self._string(what)
        if kind in SCALARS:
            value: bool | int | float = self._numbers(SCALARS[kind], 1, what)[0].item()
            return value
        if kind != ARRAY:
            raise self._damaged(f"{what} has type {kind}, which is none")
        kind = self._number("<I", what)
        if kind == STRING:
            return self._strings(self._count(LEAST_STRING, f"strings in {what}"), what)
        if kind not in SCALARS:
            raise self._damaged(f"{what} is an array of type {kind}, of which there is none")
        n = self._count(SCALARS[kind].itemsize, f"numbers in {what}")
        return self._numbers(SCALARS[kind], n, what)

    def _tensor(self, name: str) -> Tensor:
        what = f"tensor {_quoted(name)}"
        n_dimensions = self._number("<I", what)
        if n_dimensions > MAX_DIMENSIONS:
            raise self._damaged(f"{what} has {n_dimensions} dimensions of {MAX_DIMENSIONS} at most")
        shape = tuple(self._number("<Q", what) for _ in range(n_dimensions))
        n_elements = 1
        for size in shape:
            n_elements *= size
        # No type takes less than an eighth of a byte; most take much more.
        if n_elements > 8 * len(self._data):
            raise self._damaged(f"{what} of shape {shape} is larger than the file")
        kind = self._number("<I", what)
        offset = self._number("<Q", what)
        if offset > len(self._data):
            raise self._damaged(f"it is cut short: {what} begins {offset} bytes into the data")
        return Tensor(shape, kind, offset)

    def _string(self, what: str) -> str:
        n = self._count(1, f"bytes in {what}")
        text = self._data[self._at : self._at + n]
        self._at += n
        return text.decode("utf-8", "replace")

    def _strings(self, n: int, what: str) -> Strings:
        data, at, end, length = self._data, self._at, len(self._data), _LENGTH.unpack_from
        for _ in range(n):
            start = at + _LENGTH.size
            if start > end or (at := start + length(data, at)[0]) > end:
                raise self._damaged(f"it ends within {what}")
        self._at = at
        return Strings(n)

    def _numbers(self, dtype: Number, n: int, what: str) -> NDArray[np.generic]:
        n_bytes = n * dtype.itemsize
        self._check_left(n_bytes, what)
        found = np.frombuffer(self._data[self._at : self._at + n_bytes], dtype)
        self._at += n_bytes
        return found

    def _count(self, least: int, what: str) -> int:
        """Read how many of something follow, each of which takes so many bytes at least."""
        n = self._number("<Q", f"the number of {what}")
        if n > (len(self._data) - self._at) // least:
            raise self._damaged(f"it claims {n} {what}, for which it is too short")
        return n

    def _number(self, form: str, what: str) -> int:
        size = struct.calcsize(form)
        self._check_left(size, what)
        value: int = struct.unpack_from(form, self._data, self._at)[0]
        self._at += size
        return value

    def _check_left(self, n_bytes: int, what: str) -> None:
        if n_bytes > len(self._data) - self._at:
            raise self._damaged(f"it ends within {what}")

    def _damaged(self, why: str) -> ModelError:
        return damaged(self._path, why)


def _quoted(name: str) -> str:
    """A name out of a file that may say anything, fit for one line."""
    return repr(name if len(name) <= 64 else f"{name[:61]}...")
