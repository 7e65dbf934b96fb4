"""What a GGUF file says of itself, as plain data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from streamsink.errors import ModelError
from streamsink.system.regular import Stamp

Value: TypeAlias = "bool | int | float | str | Strings | NDArray[np.generic]"

_PART = re.compile(r"^(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")


@dataclass(frozen=True, slots=True)
class Strings:
    """An array of strings, known by its length: a vocabulary has a hundred thousand of them."""

    n: int

    def __len__(self) -> int:
        return self.n


@dataclass(frozen=True, slots=True)
class Tensor:
    """What a header says of a tensor.

    Attributes
    ----------
    shape : tuple of int
        Elements by dimension, the contiguous one first (ggml's order).
    type : int
        ggml's number of the type (ggml.h: enum ggml_type).
    offset : int
        Bytes from the beginning of the data.
    """

    shape: tuple[int, ...]
    type: int
    offset: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a GGUF file says of itself.

    Attributes
    ----------
    path : Path
        The file.
    version : int
        Of the format.
    metadata : mapping of str to value
        Scalars as Python's, arrays of numbers as NumPy's, arrays of strings as lists.
    tensors : mapping of str to Tensor
        By name.
    n_bytes : int
        Size of the file.
    digest : str
        SHA-256 of the header and of the file's size, in hexadecimal digits.
    stamp : Stamp
        Which file it was read from.
    """

    path: Path
    version: int
    metadata: Mapping[str, Value]
    tensors: Mapping[str, Tensor]
    n_bytes: int
    digest: str
    stamp: Stamp

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture; '' where the file names none."""
        name = self.metadata.get("general.architecture", "")
        return name if isinstance(name, str) else ""

    def parts(self) -> list[Path]:
        """All files of the model: the file itself, or those it is split into.

        Raises
        ------
        ModelError
            One of them is not there, or the file is not the first of them.
        """
        count = self.metadata.get("split.count", 1)
        if not isinstance(count, int) or count <= 1:
            return [self.path]
        named = _PART.match(self.path.name)
        if named is None or int(named["count"]) != count:
            raise ModelError(
                f"{self.path} is one of {count} parts of a model, but is not named like one: "
                f"call it {self.path.stem}-00001-of-{count:05}.gguf"
            )
        names = [f"{named['stem']}-{at:05}-of-{count:05}.gguf" for at in range(1, count + 1)]
        parts = [self.path.with_name(name) for name in names]
        if self.path != parts[0]:
            raise ModelError(f"{self.path} is not the first part of its model: give {parts[0]}")
        for part in parts:
            if not part.is_file():
                raise ModelError(f"a part of the model is missing: {part}")
        return parts


def damaged(path: Path, why: str) -> ModelError:
    """The error that a damaged file is."""
    return ModelError(f"{path} is damaged: {why}; fetch it again")
