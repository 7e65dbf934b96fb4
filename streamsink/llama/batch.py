"""A ``llama_batch``: tokens, positions, sequences and which rows of logits are wanted."""

from __future__ import annotations

from collections.abc import Sequence

import llama_cpp.llama_cpp as llama
import numpy as np

from streamsink.engine.context import Outputs


class Batch:
    """A ``llama_batch`` with NumPy views of its arrays.

    Parameters
    ----------
    n_tokens, n_sequences : int
        Most tokens, and most sequences of one of them.

    Attributes
    ----------
    n_rows : int
        Rows of logits that it asks for.
    """

    def __init__(self, n_tokens: int, n_sequences: int) -> None:
        self.native = llama.llama_batch_init(n_tokens, 0, n_sequences)
        view = np.ctypeslib.as_array
        self.tokens = view(self.native.token, (n_tokens,))
        self.positions = view(self.native.pos, (n_tokens,))
        self._n_members = view(self.native.n_seq_id, (n_tokens,))
        self._rows = view(self.native.logits, (n_tokens,))
        self.n_rows = 0
        self._members = [view(self.native.seq_id[at], (n_sequences,)) for at in range(n_tokens)]

    def fill(self, tokens: Sequence[int], positions: Sequence[int], rows: Outputs) -> None:
        """Enter tokens at positions; their sequences are still to be set."""
        n = len(tokens)
        self.native.n_tokens = n
        self.tokens[:n] = tokens
        self.positions[:n] = positions
        self._rows[:n] = rows == "all"
        self._rows[n - 1] = rows != "none"
        self.n_rows = {"none": 0, "last": 1, "all": n}[rows]

    def fill_one_sequence(self, tokens: Sequence[int], pos: int, seq: int, rows: Outputs) -> None:
        """Enter tokens of one sequence, at ``pos`` and after it."""
        self.fill(tokens, range(pos, pos + len(tokens)), rows)
        self._n_members[: len(tokens)] = 1
        for members in self._members[: len(tokens)]:
            members[0] = seq

    def set_sequences(self, at: int, members: Sequence[int]) -> None:
        """Set the sequences of one token."""
        self._n_members[at] = len(members)
        self._members[at][: len(members)] = members

    def free(self) -> None:
        """Give its memory back."""
        llama.llama_batch_free(self.native)
