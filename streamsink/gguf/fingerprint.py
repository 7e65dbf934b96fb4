"""What tells a model from any other, though its header be the same; and that it is still there.

A session belongs to the weights that were loaded. Their file may be replaced at any time after
that, so they are fingerprinted when they are opened, and it is made sure that one and the same file
was checked, fingerprinted and loaded.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from streamsink.errors import ModelError
from streamsink.gguf.header import Header
from streamsink.system.regular import Stamp, open_regular

SAMPLES, SAMPLE_BYTES = 64, 4096
"""Blocks of the weights that are read: two training runs of one model have one header."""


class Fingerprint(NamedTuple):
    """What tells a model from any other.

    Attributes
    ----------
    digest : str
        SHA-256 of the header and of blocks throughout the weights, in hexadecimal digits.
    stamps : mapping of Path to Stamp
        The files that were read.
    """

    digest: str
    stamps: dict[Path, Stamp]

    @classmethod
    def of(cls, header: Header) -> Fingerprint:
        """The fingerprint of the model that a header is of.

        Raises
        ------
        ModelError
            A part of the model is not there, or it was replaced since the header was read.
        """
        digest = hashlib.sha256(header.digest.encode())
        stamps: dict[Path, Stamp] = {}
        for part in header.parts():
            try:
                with open_regular(part) as file:
                    stamps[part] = Stamp.of(os.fstat(file.fileno()))
                    for at in range(1, SAMPLES + 1):
                        file.seek(max(0, stamps[part].n_bytes * at // SAMPLES - SAMPLE_BYTES))
                        digest.update(file.read(SAMPLE_BYTES))
            except OSError as error:
                raise _gone(part, error) from None
        if stamps[header.path] != header.stamp:
            raise _replaced(header.path)
        return cls(digest.hexdigest(), stamps)

    def require_unchanged(self) -> None:
        """Refuse a model of which a file was replaced since the fingerprint was taken.

        Raises
        ------
        ModelError
            It was, or it is not there any more.
        """
        for part, stamp in self.stamps.items():
            try:
                with open_regular(part) as file:
                    found = Stamp.of(os.fstat(file.fileno()))
            except OSError as error:
                raise _gone(part, error) from None
            if found != stamp:
                raise _replaced(part)


def _replaced(path: Path) -> ModelError:
    return ModelError(f"{path} was replaced while it was being opened: open it again")


def _gone(path: Path, error: OSError) -> ModelError:
    return ModelError(f"{path} went away while it was being opened: {error.strerror or error}")
