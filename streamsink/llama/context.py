"""One llama.cpp context: cells, sequences, decoding. Every return code is looked at."""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Literal

import llama_cpp
import llama_cpp.llama_cpp as llama
import numpy as np

from streamsink.core.capabilities import Capabilities, Verdict
from streamsink.core.ledger import Span
from streamsink.core.plan import MAIN, SCRATCH
from streamsink.core.sampling import Sampling
from streamsink.core.snapshot import CacheKey
from streamsink.engine.context import Logits, Sampler
from streamsink.errors import (
    CacheError,
    CapabilityError,
    ClosedError,
    DecodeError,
    ModelError,
    TornError,
    UsageError,
)
from streamsink.gguf.budget import CELL_STEP, flash_of, n_lanes_of, require_memory
from streamsink.gguf.settings import CacheSettings
from streamsink.gguf.traits import capabilities, check_types
from streamsink.llama import grammar, lane_probe
from streamsink.llama.library import Said, hearing
from streamsink.llama.params import context_params
from streamsink.llama.sampler import NativeSampler
from streamsink.llama.tokenizer import NativeTokenizer
from streamsink.llama.weights import Weights
from streamsink.system.memory import available_bytes, gib

ROWS_BYTES = 64 * 2**20
"""Memory that rows of logits of one decode may take."""
COMPACT_BYTES = 64 * 2**20
"""Largest cache that is moved together: in larger models the attention is a smaller part of a
decode, so the gain is small and the copy is not."""

COPY_SHARE = 0.8
"""Part of the free memory that a copy of the cells may take."""

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


class NativeContext:
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
        context = borrowed or _made(weights, n_ctx, settings, swa_full=swa_full)
        self._context: llama.llama_context_p | None = context
        self._memory = llama.llama_get_memory(context)
        self._n_cells_live = -(-n_ctx // CELL_STEP) * CELL_STEP
        self._n_cells = int(llama.llama_n_ctx(context))
        self._n_batch = min(settings.n_batch, int(llama.llama_n_batch(context)))
        self._n_sequences = 1 if borrowed else 2 + n_spare
        self._n_lanes: int | None = None
        self.lane_order: lane_probe.LaneOrder = "own last"
        self._n_rows = 0
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
        self._n_compact_bytes = self._compact_bytes(n_ctx, settings)
        self._compact_buffer: ctypes.Array[ctypes.c_uint8] | None = None
        self._batch = _Batch(self._n_batch, self._n_sequences)
        self._single = _Batch(1, 1)
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
    def kind(self) -> CacheKey:
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
    def n_rows(self) -> int:
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

    def decode(
        self, tokens: Sequence[int], pos: int, seq: int, rows: Literal["last", "all"]
    ) -> None:
        """Write tokens to a sequence at ``pos`` and after it, and compute logits."""
        if len(tokens) == 1 and seq == MAIN:
            batch = self._single
            batch.tokens[0] = tokens[0]
            batch.positions[0] = pos
        else:
            batch = self._batch
            self._check_size(tokens)
            batch.fill_one_sequence(tokens, pos, seq, rows)
        self._decode(batch, pos, (seq,))
        self._n_rows = len(tokens) if rows == "all" else 1

    def decode_lanes(
        self, tokens: Sequence[int], pos: int, lanes: Sequence[int], rows: Literal["last", "all"]
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
        rows: Literal["last", "all"],
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
        self._n_rows = len(tokens) if rows == "all" else 1

    def _check_size(self, tokens: Sequence[int]) -> None:
        # llama_decode aborts the process beyond n_batch (llama-context.cpp).
        if not 0 < len(tokens) <= self._n_batch:
            raise UsageError(
                f"{len(tokens)} tokens in one batch: 1 to {self._n_batch} are possible"
            )

    def _decode(self, batch: _Batch, pos: int, sequences: Sequence[int]) -> None:
        with hearing() as said:
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
        return np.ctypeslib.as_array(pointer, (self._n_rows, self.tokenizer.n_tokens))

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

    # -- cells ----------------------------------------------------------------------------------

    def remove(self, seq: int, start: int, stop: int) -> None:
        """Take cells out of a sequence; ``stop`` of -1 means to its end."""
        if not llama.llama_memory_seq_rm(self._cache, seq, start, stop):
            raise CacheError(f"llama.cpp cannot remove positions {start} to {stop} of the cache")

    def copy(self, source: int, target: int, start: int, stop: int) -> None:
        """Let cells of ``source`` belong to ``target`` too; ``stop`` of -1 means to its end."""
        llama.llama_memory_seq_cp(self._cache, source, target, start, stop)

    def shift(self, seq: int, start: int, stop: int, delta: int) -> None:
        """Change positions by ``delta``; keys are rotated before the next decode."""
        # llama.cpp aborts the process otherwise: seq_add on M-RoPE, a K-shift where can_shift is
        # false (llama-kv-cache.cpp).
        level, why = self._capabilities.rotate
        if not self._shifts or level == "impossible":
            raise CapabilityError(f"positions cannot be shifted: {why or 'no K-shift'}")
        self._shift_waits = True
        llama.llama_memory_seq_add(self._cache, seq, start, stop, delta)

    def compact(self, seq: int) -> None:
        """Move the cells of the only sequence in use together, where that makes decoding faster.

        Lanes leave live tokens in the spare cells, and llama.cpp computes attention up to the last
        cell in use: 256 more cost 7 % of a decode at n_ctx 2,048. The state functions put a
        sequence into the first free cells.
        """
        # The state's keys are those before a shift that waits, its positions those after it.
        if not self._n_compact_bytes or self._shift_waits:
            return
        buffer = self._compact_buffer = (
            self._compact_buffer or (ctypes.c_uint8 * self._n_compact_bytes)()
        )
        n = int(llama.llama_state_seq_get_data(self._handle, buffer, len(buffer), seq))
        if n == 0:
            self._n_compact_bytes, self._compact_buffer = 0, None
            return
        self.remove(seq, 0, -1)
        with hearing() as said:
            done = llama.llama_state_seq_set_data(self._handle, buffer, n, seq)
        if not done:
            raise TornError(f"llama.cpp could not put {n} bytes of cache back: {said.reason}")

    def _compact_bytes(self, n_ctx: int, settings: CacheSettings) -> int:
        """Room that a full sequence takes; 0 where moving it is no gain."""
        traits = self._weights.traits
        if self._weights.offloads or traits.n_swa or self._n_cells == self._n_cells_live:
            return 0
        cell = traits.cell_bytes(settings.cache_type_k, settings.cache_type_v)
        n_bytes = int(n_ctx * (cell + 64)) + 2**20
        return n_bytes if n_bytes <= COMPACT_BYTES else 0

    def end(self, seq: int) -> int:
        """Position after the last cell of a sequence; 0 of an empty one."""
        return int(llama.llama_memory_seq_pos_max(self._cache, seq)) + 1

    def is_whole(self, spans: Sequence[Span]) -> bool:
        """Whether `MAIN` still has the cells of these positions that its next token would see.

        A small cache of a sliding window finds room among the cells that the newest token does not
        see (llama-kv-cache.cpp: find_slot), and does not say which of them are gone: the least
        position of a sequence may be that of a sink. So the cells that must be there are given to
        another sequence, whose least position is that of the oldest one that is there, and are
        taken out of it one by one.
        """
        traits = self._weights.traits
        if not traits.n_swa or self._made_with[-1]:
            return True
        if self._n_sequences == 1:
            return False
        end = spans[-1].stop
        first = max(0, end - traits.n_swa + 1)
        self.copy(MAIN, SCRATCH, first, end)
        try:
            for pos in chain.from_iterable(range(max(first, start), stop) for start, stop in spans):
                # llama.cpp asks the sliding window's cache: the other one has all of these.
                if int(llama.llama_memory_seq_pos_min(self._cache, SCRATCH)) != pos:
                    return False
                self.remove(SCRATCH, pos, pos + 1)
        finally:
            self.remove(SCRATCH, 0, -1)
        return True

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

    def save(self) -> memoryview:
        """The cells of `MAIN` in llama.cpp's own form.

        Raises
        ------
        CacheError
            llama.cpp cannot give them out, or keys wait to be rotated.
        """
        if self._shift_waits:  # positions would be those after it, keys those before
            raise CacheError("keys wait to be rotated: feed or generate a token first")
        room = int(llama.llama_state_seq_get_size(self._handle, MAIN))
        if room > COPY_SHARE * available_bytes():
            raise CacheError(
                f"a copy of the cells takes {gib(room)}, more than memory has to spare"
            )
        buffer = (ctypes.c_uint8 * room)()
        with hearing() as said:
            n = int(llama.llama_state_seq_get_data(self._handle, buffer, room, MAIN))
        if n == 0:
            raise CacheError(f"llama.cpp cannot give out the cache: {said.reason}")
        return memoryview(buffer)[:n]

    def load(self, cells: memoryview, end: int) -> None:
        """Put cells that `save` gave out into `MAIN`, and no others anywhere.

        Raises
        ------
        CacheError
            They do not fit, or do not stand right below position ``end``; the cache is empty.
        """
        self.clear()
        data = np.frombuffer(cells, np.uint8).ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        with hearing() as said:
            n = int(llama.llama_state_seq_set_data(self._handle, data, len(cells), MAIN))
        if n != len(cells) or llama.llama_memory_seq_pos_max(self._cache, MAIN) != end - 1:
            self.clear()
            raise CacheError(
                f"llama.cpp cannot take {len(cells):,} bytes of cache: "
                f"{said.reason or 'they are of another stream'}"
            )

    def clear(self) -> None:
        """Empty every sequence."""
        llama.llama_memory_clear(self._cache, False)
        self._shift_waits = False

    # -- life -----------------------------------------------------------------------------------

    @property
    def _handle(self) -> llama.llama_context_p:
        if self._context is None:
            raise ClosedError("this context is closed: open another with model.stream()")
        return self._context

    @property
    def _cache(self) -> llama.llama_memory_t:
        if self._context is None:
            raise ClosedError("this context is closed: open another with model.stream()")
        return self._memory

    def close(self) -> None:
        """Free the context. Twice is fine."""
        self._context = None
        self._free()


class _Batch:
    """A ``llama_batch`` with NumPy views of its arrays."""

    def __init__(self, n_tokens: int, n_sequences: int) -> None:
        self.native = llama.llama_batch_init(n_tokens, 0, n_sequences)
        view = np.ctypeslib.as_array
        self.tokens = view(self.native.token, (n_tokens,))
        self.positions = view(self.native.pos, (n_tokens,))
        self._n_members = view(self.native.n_seq_id, (n_tokens,))
        self._rows = view(self.native.logits, (n_tokens,))
        self._members = [view(self.native.seq_id[at], (n_sequences,)) for at in range(n_tokens)]

    def fill(
        self, tokens: Sequence[int], positions: Sequence[int], rows: Literal["last", "all"]
    ) -> None:
        n = len(tokens)
        self.native.n_tokens = n
        self.tokens[:n] = tokens
        self.positions[:n] = positions
        self._rows[:n] = rows == "all"
        self._rows[n - 1] = True

    def fill_one_sequence(
        self, tokens: Sequence[int], pos: int, seq: int, rows: Literal["last", "all"]
    ) -> None:
        self.fill(tokens, range(pos, pos + len(tokens)), rows)
        self._n_members[: len(tokens)] = 1
        for members in self._members[: len(tokens)]:
            members[0] = seq

    def set_sequences(self, at: int, members: Sequence[int]) -> None:
        self._n_members[at] = len(members)
        self._members[at][: len(members)] = members


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


def _made(
    weights: Weights, n_ctx: int, settings: CacheSettings, *, swa_full: bool
) -> llama.llama_context_p:
    """Make a context."""
    if not weights.offloads:
        require_memory(weights.traits, settings, n_ctx, available_bytes(), swa_full=swa_full)
    params = context_params(
        n_ctx, settings, weights.traits, offloads=weights.offloads, swa_full=swa_full
    )
    context = None
    try:
        with hearing() as said:
            context = llama.llama_init_from_model(weights.handle, params)
    except BaseException:
        _free(context)
        raise
    if not context:
        raise ModelError(
            f"llama.cpp cannot make a context of {n_ctx} tokens: "
            f"{said.reason or 'no reason given'}; lower --ctx or change --cache-type-k/-v"
        )
    return context


def _free(context: llama.llama_context_p | None, *batches: _Batch) -> None:
    if context:
        llama.llama_free(context)
    for batch in batches:
        llama.llama_batch_free(batch.native)
