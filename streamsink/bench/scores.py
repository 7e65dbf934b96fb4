"""Negative log-likelihoods of a stream's tokens on disk: float32 in nat, little-endian, no header.

The value at byte 4 i is token i's, NaN where the token had no prediction.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from streamsink.errors import StreamsinkError
from streamsink.system.closing import Closing

DTYPE = np.dtype("<f4")


class ScoreFile(Closing):
    """Takes the scores of a stream as it goes on, and holds none of them in memory.

    Parameters
    ----------
    path : Path
        The file, begun anew.

    Raises
    ------
    StreamsinkError
        It cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("wb")
        except OSError as error:
            raise StreamsinkError(f"{path} cannot be written: {error.strerror}") from None

    def append(self, scores: NDArray[np.float64]) -> None:
        """Write the scores of the tokens that come next; a kill afterwards does not lose them.

        Parameters
        ----------
        scores : ndarray of float64, shape (n,)
            In nat.

        Raises
        ------
        StreamsinkError
            They cannot be written.
        """
        try:
            self._file.write(scores.astype(DTYPE).tobytes())
            self._file.flush()
        except OSError as error:
            raise StreamsinkError(f"{self.path} cannot be written: {error.strerror}") from None

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        self._file.close()


def read_scores(path: Path) -> NDArray[np.float32]:
    """Scores of a file, read from the disk where they are looked at.

    A value that was torn by a kill, which can only be the last, is left out.

    Returns
    -------
    ndarray of float32, shape (n,)
        In nat; cannot be written to.

    Raises
    ------
    StreamsinkError
        The file cannot be read.
    """
    try:
        n = path.stat().st_size // DTYPE.itemsize
        if n == 0:
            return np.empty(0, DTYPE)  # nothing cannot be mapped
        return np.memmap(path, DTYPE, "r", shape=(n,))
    except OSError as error:
        raise StreamsinkError(f"{path} cannot be read: {error.strerror}") from None
