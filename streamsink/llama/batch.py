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
    n_tokens : int
        Tokens entered so far.
    n_rows : int
        Rows of logits that they ask for.
    """

    def __init__(self, n_tokens: int, n_sequences: int) -> None:
        self.native = llama.llama_batch_init(n_tokens, 0, n_sequences)
        view = np.ctypeslib.as_array
        self.tokens = view(self.native.token, (n_tokens,))
        self.positions = view(self.native.pos, (n_tokens,))
        self._n_members = view(self.native.n_seq_id, (n_tokens,))
        self._rows = view(self.native.logits, (n_tokens,))
        self._members = [view(self.native.seq_id[at], (n_sequences,)) for at in range(n_tokens)]
        self.begin()

    def begin(self) -> None:
        """Empty it."""
        self.n_tokens = self.n_rows = self.native.n_tokens = 0

    def add(self, tokens: Sequence[int], pos: int, seq: int, rows: Outputs) -> None:
        """Enter tokens of one sequence, at ``pos`` and after it."""
        first, stop = self._enter(tokens, range(pos, pos + len(tokens)), rows)
        self._n_members[first:stop] = 1
        for members in self._members[first:stop]:
            members[0] = seq

    def add_sets(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        sets: Sequence[Sequence[int]],
        rows: Outputs,
    ) -> None:
        """Enter tokens, each with a set of sequences in this order."""
        first, _ = self._enter(tokens, positions, rows)
        for at, members in enumerate(sets, first):
            self._n_members[at] = len(members)
            self._members[at][: len(members)] = members

    def _enter(
        self, tokens: Sequence[int], positions: Sequence[int], rows: Outputs
    ) -> tuple[int, int]:
        first, n = self.n_tokens, len(tokens)
        stop = first + n
        self.tokens[first:stop] = tokens
        self.positions[first:stop] = positions
        self._rows[first:stop] = rows == "all"
        self._rows[stop - 1] = rows != "none"
        self.n_rows += {"none": 0, "last": 1, "all": n}[rows]
        self.n_tokens = self.native.n_tokens = stop
        return first, stop

    def set_only(self, token: int, pos: int, seq: int) -> None:
        """Make the one token that was entered another one."""
        self.tokens[0] = token
        self.positions[0] = pos
        self._members[0][0] = seq

    def free(self) -> None:
        """Give its memory back."""
        llama.llama_batch_free(self.native)
