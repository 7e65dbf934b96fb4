"""A stream's place in a llama.cpp context: cells, sequences, decoding, choosing tokens."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import llama_cpp
import llama_cpp.llama_cpp as llama

from streamsink.core.capabilities import Capabilities, Verdict
from streamsink.core.events import Threads
from streamsink.core.plan import MAIN
from streamsink.core.sampling import Sampling
from streamsink.core.snapshot import CacheKey
from streamsink.engine.context import Logits, Outputs, Sampler
from streamsink.gguf.budget import flash_of, n_lanes_of
from streamsink.gguf.places import CELL_STEP
from streamsink.gguf.settings import CacheSettings
from streamsink.gguf.traits import capabilities, check_types
from streamsink.llama import grammar, lane_probe
from streamsink.llama.cells import NativeCells, compact_bytes
from streamsink.llama.json_schema import grammar_of
from streamsink.llama.making import made_context
from streamsink.llama.native import Native
from streamsink.llama.sampler import NativeSampler
from streamsink.llama.tokenizer import NativeTokenizer
from streamsink.llama.weights import Weights

ROWS_BYTES = 64 * 2**20
"""Memory that rows of logits of one decode may take."""
ONE_SEQUENCE = Verdict(
    "impossible", "the context has one sequence, so no sink can be evaluated beside the stream"
)


class NativeContext(NativeCells):
    """A ``llama_context`` with one stream; implements `streamsink.engine.context.Context`.

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
        check_types(weights.traits, settings)
        n_lanes = 1 if borrowed else n_lanes_of(n_ctx, settings, weights.traits)
        native = Native(
            weights,
            borrowed or made_context(weights, n_ctx, settings, swa_full=swa_full),
            settings,
            1 if borrowed else 1 + n_lanes,
            n_lanes=n_lanes,
            owned=not borrowed,
        )
        self._settle_in(native, 0, n_ctx, settings, swa_full=swa_full)
        if borrowed:
            self._capabilities = replace(self._capabilities, reanchor=ONE_SEQUENCE)
        self._n_compact_bytes = compact_bytes(weights, n_ctx, self._n_cells, settings, CELL_STEP)

    def _settle_in(
        self, native: Native, base: int, n_ctx: int, settings: CacheSettings, *, swa_full: bool
    ) -> None:
        """Take a place, with sequences from ``base`` on."""
        weights = native.weights
        self._weights = weights
        self._made_with = (n_ctx, settings, swa_full)
        self._native, self._base = native, base
        self._n_cells = int(llama.llama_n_ctx_seq(native.handle))
        # Which rows of the buffer are the stream's, and at which place of the batch the last is.
        self._first_row = self._n_rows = 0
        self._at = -1
        self._kept: Logits | None = None
        self._capabilities = capabilities(
            weights.traits,
            settings,
            swa_full=swa_full,
            shifts=native.shifts,
            measured=weights.measured,
        )
        self._n_compact_bytes = 0
        self._compact_buffer = None

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
        """Cells that the stream may fill."""
        return self._n_cells

    @property
    def n_batch(self) -> int:
        """Most tokens in one decode."""
        return self._native.n_batch

    @property
    def max_output_rows(self) -> int:
        """Most rows of logits that one decode may return."""
        row = 4 * self.tokenizer.n_tokens
        return max(1, min(self.n_batch, ROWS_BYTES // row))

    @property
    def threads(self) -> Threads:
        """CPU threads that decode single tokens, by now."""
        return self._native.threads.used

    @property
    def n_lanes(self) -> int:
        """Lanes that were found to work here; the first question decodes a few tokens."""
        native = self._native
        if native.n_lanes is None:
            asked = native.n_lanes_asked
            works = asked > 1 and lane_probe.lane_order(self, asked - 1)
            native.n_lanes = asked if works else 1
        return native.n_lanes

    @property
    def lane_order(self) -> lane_probe.LaneOrder:
        """How lanes are given to llama.cpp, see `streamsink.llama.lane_probe`."""
        return self._native.lane_order

    @lane_order.setter
    def lane_order(self, order: lane_probe.LaneOrder) -> None:
        self._native.lane_order = order

    # -- decoding -------------------------------------------------------------------------------

    def decode(self, tokens: Sequence[int], pos: int, seq: int, rows: Outputs) -> None:
        """Write tokens to a sequence at ``pos`` and after it, and compute logits."""
        native, seq = self._native, self._base + seq
        native.make_way((self,))
        if len(tokens) == 1 and rows != "none":
            batch = native.single
            batch.set_only(tokens[0], pos, seq)
        else:
            native.check_size(len(tokens))
            batch = native.batch
            batch.begin()
            batch.add(tokens, pos, seq, rows)
        native.decode(batch, ((pos, (seq,)),))
        self.has_rows(0, batch.n_rows, batch.n_tokens - 1)

    def decode_lanes(
        self, tokens: Sequence[int], pos: int, lanes: Sequence[int], rows: Outputs
    ) -> None:
        """Token ``i`` sees sequence ``lanes[i]`` and is written to it and to later ones."""
        self._native.check_size(len(tokens))
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
        native, base = self._native, self._base
        native.make_way((self,))
        # llama.cpp keeps the ids of a token in an unordered_set (llama-batch.h). Where an id that
        # falls into an empty bucket comes out first (libstdc++, libc++), the sequence to be seen
        # has to go in last, and the ids have to be a run of integers: two of them in one bucket
        # would change the order. Before, it kept the order given.
        step = -1 if native.lane_order == "own last" else 1
        given = [[base + seq for seq in members[::step]] for members in sets]
        native.batch.begin()
        native.batch.add_sets(tokens, positions, given, rows)
        native.decode(
            native.batch, ((positions[0], sorted({seq for one in given for seq in one})),)
        )
        self.has_rows(0, native.batch.n_rows, native.batch.n_tokens - 1)

    # -- logits ---------------------------------------------------------------------------------

    def has_rows(self, first: int, n: int, at: int) -> None:
        """Note that ``n`` rows of the buffer are the stream's, the last of token ``at``."""
        self._first_row, self._n_rows, self._at = first, n, at
        self._kept = None
        if n:
            self._native.holders = (*self._native.holders, self)

    def keep_row(self) -> None:
        """Copy the last row of logits: the buffer is about to be written to."""
        if self._kept is None and self._n_rows:
            self._kept = self.logits()[-1:].copy()

    def logits(self) -> Logits:
        """Rows of the stream's last decode, shape (n_rows, n_vocab).

        A view, good until the next decode; after others' decodes the last row is left.
        """
        if self._kept is not None:
            return self._kept
        first, n = self._first_row, self._n_rows
        rows = self._native.rows(first + n)
        return rows[first:] if first else rows

    def put_logits(self, row: Logits) -> None:
        """Let these be the last row of logits: they came with cells from elsewhere."""
        self._kept = row[None].copy()

    # -- choosing -------------------------------------------------------------------------------

    def check_sampling(self, sampling: Sampling) -> None:
        """Try the grammar, if there is one, in a process of its own; see `grammar.checked`."""
        text = grammar_of(sampling)
        if text is not None:
            grammar.checked(text, self._weights.path)

    def sampler(self, sampling: Sampling, recent: Sequence[int]) -> NativeSampler:
        """Build a chain; ``recent`` tokens count for its repetition penalties."""
        return NativeSampler(self.tokenizer, self._weights.path, sampling, recent)

    def sample(self, sampler: Sampler, index: int) -> int:
        """Choose the token of an index by the last row of logits and accept it into the chain."""
        assert isinstance(sampler, NativeSampler)
        row = self.logits()[-1]
        if self._kept is None:
            return sampler.sample(row, index, self._handle, self._at)
        return sampler.sample(row, index)

    # -- life -----------------------------------------------------------------------------------

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
        other._native.n_lanes, other.lane_order = self._native.n_lanes, self.lane_order
        try:
            other.load(self.save(), self.end(MAIN))
        except BaseException:
            other.close()
            raise
        return other

    def close(self) -> None:
        """Free the context. Twice is fine."""
        self._native.close()


def _told(path: Path) -> str:
    """A file's name as a session can hold it, U+FFFD for what is no text in it and for controls."""
    name = os.fsencode(path).decode("utf-8", "replace")
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in name)
