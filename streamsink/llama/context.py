"""One llama.cpp context: cells, sequences, decoding. Every return code is looked at."""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import llama_cpp
import llama_cpp.llama_cpp as llama
import numpy as np

from streamsink.core.capabilities import Capabilities, Verdict
from streamsink.core.plan import MAIN, SCRATCH
from streamsink.core.sampling import Sampling
from streamsink.core.snapshot import CacheKey
from streamsink.engine.context import Logits, Outputs, Sampler
from streamsink.errors import (
    CacheError,
    DecodeError,
    TornError,
    UsageError,
)
from streamsink.gguf.budget import CELL_STEP, flash_of, n_lanes_of
from streamsink.gguf.settings import CacheSettings
from streamsink.gguf.traits import capabilities, check_types
from streamsink.llama import grammar, lane_probe
from streamsink.llama.batch import Batch
from streamsink.llama.cells import NativeCells, compact_bytes
from streamsink.llama.library import Said, hearing
from streamsink.llama.making import made_context
from streamsink.llama.sampler import NativeSampler
from streamsink.llama.tokenizer import NativeTokenizer
from streamsink.llama.weights import Weights

ROWS_BYTES = 64 * 2**20
"""Memory that rows of logits of one decode may take."""
ONE_SEQUENCE = Verdict(
    "impossible", "the context has one sequence, so no sink can be evaluated beside the stream"
)

_REASONS = {
    1: "no free cells for",
    2: "the decode was aborted with",
    -1: "llama.cpp refused the batch with",
}
_UNCHANGED = (1, -1)
"""Codes after which the cache is as it was (llama.h). Positions that were refused may be those of
live cells, so nothing is to be taken out then."""


class NativeContext(NativeCells):
    """A ``llama_context``; implements `streamsink.engine.context.Context`.

    Parameters
    ----------
    weights : Weights
        The model; it must stay open.
    n_ctx : int
        Live tokens that the cache must hold.
    settings : CacheSettings
        The batch is also the physical one, so that a decode is one piece and fails as one.
    swa_full : bool
        Whether sliding-window layers keep all cells, as a rotation needs.
    borrowed : ctypes pointer, optional
        A ``llama_context *`` to work on, which was made with these settings and stays its owner's.
        Of its sequences one is used.

    Raises
    ------
    ModelError
        llama.cpp cannot make the context.
    MemoryBudgetError
        The context does not fit into memory.
    CapabilityError
        The model's keys or values cannot be of these types.
    """

    def __init__(
        self,
        weights: Weights,
        n_ctx: int,
        settings: CacheSettings,
        *,
        swa_full: bool,
        borrowed: llama.llama_context_p | None = None,
    ) -> None:
        self._weights = weights
        self._made_with = (n_ctx, settings, swa_full)
        check_types(weights.traits, settings)
        self._n_lanes_asked = 1 if borrowed else n_lanes_of(n_ctx, settings, weights.traits)
        n_spare = self._n_lanes_asked - 1
        context = borrowed or made_context(weights, n_ctx, settings, swa_full=swa_full)
        self._context: llama.llama_context_p | None = context
        self._memory = llama.llama_get_memory(context)
        self._n_cells = int(llama.llama_n_ctx(context))
        self._n_batch = min(settings.n_batch, int(llama.llama_n_batch(context)))
        self._n_sequences = 1 if borrowed else 2 + n_spare
        self._n_lanes: int | None = None
        self.lane_order: lane_probe.LaneOrder = "own last"
        self._n_rows = 0
        # The view of logits that was made last: where they lie, and how many rows.
        self._seen: tuple[int | None, int] = (None, 0)
        self._rows: Logits = np.empty((0, 0), np.float32)
        self._shift_waits = False
        self._shifts = bool(llama.llama_memory_can_shift(self._memory))
        self._capabilities = capabilities(
            weights.traits,
            settings,
            swa_full=swa_full,
            shifts=self._shifts,
            measured=weights.measured,
        )
        if borrowed:
            self._capabilities = replace(self._capabilities, reanchor=ONE_SEQUENCE)
        self._n_compact_bytes = compact_bytes(weights, n_ctx, self._n_cells, settings, CELL_STEP)
        self._compact_buffer: ctypes.Array[ctypes.c_uint8] | None = None
        self._hearing = hearing()
        self._batch = Batch(self._n_batch, self._n_sequences)
        self._single = Batch(1, 1)
        self._single.fill_one_sequence([0], 0, MAIN, "last")
        # Also when nobody calls close(), and before the weights go, which were there first.
        owned = None if borrowed else context
        self._free = weakref.finalize(self, _free, owned, self._batch, self._single)

    # -- what there is --------------------------------------------------------------------------

    @property
    def capabilities(self) -> Capabilities:
        """What may be done to this cache."""
        return self._capabilities

    @property
    def cache_key(self) -> CacheKey:
        """What the cells depend on."""
        _, settings, swa_full = self._made_with
        return CacheKey(
            self._weights.fingerprint,
            f"llama-cpp-python {llama_cpp.__version__}",
            settings.cache_type_k,
            settings.cache_type_v,
            flash_of(settings, offloads=self._weights.offloads),
            swa_full,
            settings.rope_scaling,
            settings.rope_scale,
            _told(self._weights.path.absolute()),
        )

    @property
    def tokenizer(self) -> NativeTokenizer:
        """Tokens and text of the model."""
        return self._weights.tokenizer

    @property
    def n_cells(self) -> int:
        """Cells of the cache."""
        return self._n_cells

    @property
    def n_batch(self) -> int:
        """Most tokens in one decode."""
        return self._n_batch

    @property
    def max_output_rows(self) -> int:
        """Most rows of logits that one decode may return."""
        row = 4 * self.tokenizer.n_tokens
        return max(1, min(self._n_batch, ROWS_BYTES // row))

    @property
    def n_lanes(self) -> int:
        """Lanes that were found to work here; the first question decodes a few tokens."""
        if self._n_lanes is None:
            works = self._n_lanes_asked > 1 and lane_probe.lane_order(self, self._n_lanes_asked - 1)
            self._n_lanes = self._n_lanes_asked if works else 1
        return self._n_lanes

    # -- decoding -------------------------------------------------------------------------------

    def decode(self, tokens: Sequence[int], pos: int, seq: int, rows: Outputs) -> None:
        """Write tokens to a sequence at ``pos`` and after it, and compute logits."""
        if len(tokens) == 1 and seq == MAIN and rows != "none":
            batch = self._single
            batch.tokens[0] = tokens[0]
            batch.positions[0] = pos
        else:
            batch = self._batch
            self._check_size(tokens)
            batch.fill_one_sequence(tokens, pos, seq, rows)
        self._decode(batch, pos, (seq,))
        self._n_rows = batch.n_rows

    def decode_lanes(
        self, tokens: Sequence[int], pos: int, lanes: Sequence[int], rows: Outputs
    ) -> None:
        """Token ``i`` sees sequence ``lanes[i]`` and is written to it and to later ones."""
        self._check_size(tokens)
        sets = [range(lane, MAIN - 1, -1) for lane in lanes]
        self.decode_sets(tokens, range(pos, pos + len(tokens)), sets, rows)

    def decode_sets(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        sets: Sequence[Sequence[int]],
        rows: Outputs,
    ) -> None:
        """Decode with a set of sequences for each token; it sees the first of its set."""
        self._batch.fill(tokens, positions, rows)
        for at, members in enumerate(sets):
            # llama.cpp keeps the ids of a token in an unordered_set (llama-batch.h). Where an id
            # that falls into an empty bucket comes out first (libstdc++, libc++), the sequence to
            # be seen has to go in last, and the ids have to be a run of integers: two of them in
            # one bucket would change the order. Before, it kept the order given.
            given = members[::-1] if self.lane_order == "own last" else members
            self._batch.set_sequences(at, given)
        self._decode(self._batch, positions[0], sorted({seq for one in sets for seq in one}))
        self._n_rows = self._batch.n_rows

    def _check_size(self, tokens: Sequence[int]) -> None:
        # llama_decode aborts the process beyond n_batch (llama-context.cpp).
        if not 0 < len(tokens) <= self._n_batch:
            raise UsageError(
                f"{len(tokens)} tokens in one batch: 1 to {self._n_batch} are possible"
            )

    def _decode(self, batch: Batch, pos: int, sequences: Sequence[int]) -> None:
        with self._hearing as said:
            code = int(llama.llama_decode(self._handle, batch.native))
        # What was refused has not begun; all else begins with the shift that waits.
        if self._shift_waits and code != -1:
            self._shift_waits = False
            _check_shift(said)
        if code == 0:
            return
        if code not in _UNCHANGED:
            self._take_out(pos, sequences)
        reason = _REASONS.get(code, "llama.cpp failed with")
        raise DecodeError(
            f"{reason} {batch.native.n_tokens} tokens (llama_decode returned {code}"
            f"{': ' + said.reason if said.reason else ''})",
            code,
        )

    def _take_out(self, pos: int, sequences: Sequence[int]) -> None:
        """Take out what a failed decode may have left: llama.cpp clears only first sequences."""
        try:
            for seq in sequences:
                self.remove(seq, pos, -1)
        except CacheError as error:
            # A recurrent state cannot be taken back.
            raise TornError(f"a decode failed and left its tokens in the cache: {error}") from None

    def logits(self) -> Logits:
        """Rows of the last decode, shape (n_rows, n_vocab). A view, good until the next decode."""
        pointer = llama.llama_get_logits(self._handle)
        where = (ctypes.cast(pointer, ctypes.c_void_p).value, self._n_rows)
        if where != self._seen:  # a view costs as much as a penalty, and is mostly the same one
            shape = (self._n_rows, self.tokenizer.n_tokens)
            self._seen, self._rows = where, np.ctypeslib.as_array(pointer, shape)
        return self._rows

    def put_logits(self, row: Logits) -> None:
        """Let these be the last row of logits: they came with cells from elsewhere.

        They are written to where llama.cpp keeps its own, which it makes room for in a decode.
        """
        self.decode([0], 0, SCRATCH, "last")
        self.remove(SCRATCH, 0, -1)
        self.logits()[-1] = row

    def check_sampling(self, sampling: Sampling) -> None:
        """Try the grammar, if there is one, in a process of its own; see `grammar.checked`."""
        if sampling.grammar is not None:
            grammar.checked(sampling.grammar, self._weights.path)

    def sampler(self, sampling: Sampling, recent: Sequence[int]) -> NativeSampler:
        """Build a chain; ``recent`` tokens count for its repetition penalties."""
        return NativeSampler(self.tokenizer, self._weights.path, sampling, recent)

    def sample(self, sampler: Sampler, index: int) -> int:
        """Choose the token of an index by the last row of logits and accept it into the chain."""
        assert isinstance(sampler, NativeSampler)
        return sampler.sample(self._handle, self.logits()[-1], index)

    def fork(self) -> NativeContext:
        """Open another context of the same kind, with the same cells in `MAIN` and no others.

        Raises
        ------
        CacheError
            llama.cpp cannot copy the cells, or keys wait to be rotated.
        ModelError, MemoryBudgetError
            There is no room for another context.
        """
        n_ctx, settings, swa_full = self._made_with
        other = NativeContext(self._weights, n_ctx, settings, swa_full=swa_full)
        other._n_lanes, other.lane_order = self._n_lanes, self.lane_order
        try:
            other.load(self.save(), int(llama.llama_memory_seq_pos_max(self._cache, MAIN)) + 1)
        except BaseException:
            other.close()
            raise
        return other

    # -- life -----------------------------------------------------------------------------------

    def close(self) -> None:
        """Free the context. Twice is fine."""
        self._context = None
        self._free()


def _told(path: Path) -> str:
    """A file's name as a session can hold it, U+FFFD for what is no text in it and for controls."""
    name = os.fsencode(path).decode("utf-8", "replace")
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in name)


def _check_shift(said: Said) -> None:
    """Look whether the K-shift with which a decode began came to its end.

    Its log alone says so: llama_decode goes on, and neither its code nor any call tells afterwards
    (llama-context.cpp: memory_update). Not begun, positions are ahead of their keys; after an abort
    some layers are rotated, and the next decode would rotate all of them again.
    """
    if any("K-shift" in line or "memory update" in line for line in said.errors):
        raise TornError("a K-shift was aborted or failed: the keys are to be evaluated anew")


def _free(context: llama.llama_context_p | None, *batches: Batch) -> None:
    if context:
        llama.llama_free(context)
    for batch in batches:
        batch.free()
