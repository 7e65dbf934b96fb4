"""A file that was never loaded before is tried in another process first, and remembered.

A header that passes every check can still make llama.cpp abort: in its loader, in the tokenizer,
in the first decode. The trial also measures what no header tells for sure: whether a K-shift leaves
this model's keys right, and whether its logits depend on where in the stream a token stands.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from streamsink.errors import ModelError
from streamsink.gguf.header import Header
from streamsink.system import child
from streamsink.system.folders import data_dir

SECONDS = 60.0
BYTES_PER_SECOND = 50e6
"""Of a disk that is slow, but not broken."""
LEAST_BYTES = 4 * 2**30
FAR = 40
"""Positions between the two places in a stream that are compared."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What a trial found.

    Attributes
    ----------
    shift : float
        By how much logits after many K-shifts differ from those of tokens evaluated in the same
        place, relative to the spread of logits; 0 where nothing was shifted.
    place : float
        By how much the same tokens' logits differ between two places in a stream, likewise.
    """

    shift: float = 0.0
    place: float = 0.0


UNMEASURED = Measured()


def preflight(header: Header) -> Measured:
    """What the trial of a file found; it is held now if there was none.

    Raises
    ------
    ModelError
        llama.cpp dies on it.
    """
    mark = _mark(header)
    found = _read(mark)
    if found is None:
        found = _try(header)
        with contextlib.suppress(OSError):  # a home that cannot be written to costs the time again
            mark.parent.mkdir(parents=True, exist_ok=True)
            part = mark.with_suffix(f".{os.getpid()}")
            part.write_text(json.dumps(asdict(found)), "utf-8")
            part.replace(mark)
    return found


def remembered(header: Header) -> Measured:
    """What the trial of a file found, if there was one."""
    return _read(_mark(header)) or UNMEASURED


def dies(path: Path, death: child.Died) -> ModelError:
    """The error that a file is on which llama.cpp died."""
    return ModelError(
        f"llama.cpp cannot load {path}: it died in a trial ({death}); the file is damaged, "
        "or of a kind that this llama.cpp cannot run"
    )


def _try(header: Header) -> Measured:
    n_bytes = sum(path.stat().st_size for path in header.parts())
    try:
        answer = child.ask(
            "streamsink.llama.preflight_child",
            {"path": str(header.path)},
            seconds=SECONDS + n_bytes / BYTES_PER_SECOND,
            n_bytes=LEAST_BYTES + n_bytes,
        )
    except child.Died as death:
        raise dies(header.path, death) from None
    return Measured(**answer)


def _read(mark: Path) -> Measured | None:
    try:
        return Measured(**json.loads(mark.read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _mark(header: Header) -> Path:
    """Where it is written down that a file with this header survived this llama.cpp."""
    name = f"{header.digest}-{version('llama-cpp-python')}.json"
    return data_dir() / "tried" / name
