"""The cells of one llama.cpp context: sequences, positions, and copies of them elsewhere."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import chain

import llama_cpp.llama_cpp as llama
import numpy as np

from streamsink.core.capabilities import Capabilities
from streamsink.core.ledger import Span
from streamsink.core.plan import MAIN, SCRATCH
from streamsink.errors import CacheError, CapabilityError, TornError
from streamsink.gguf.settings import CacheSettings
from streamsink.llama.library import hearing
from streamsink.llama.native import Native
from streamsink.llama.weights import Weights
from streamsink.system.memory import available_bytes
from streamsink.system.sizes import gib

COMPACT_BYTES = 64 * 2**20
"""Largest cache that is moved together: in larger models the attention is a smaller part of a
decode, so the gain is small and the copy is not."""

COPY_SHARE = 0.8
"""Part of the free memory that a copy of the cells may take."""


class NativeCells:
    """What `streamsink.engine.context.Context` says of cells, over a ``llama_memory_t``.

    A stream's sequences are numbered from its base on, so that its `MAIN` is the base.
    """

    _weights: Weights
    _made_with: tuple[int, CacheSettings, bool]
    _native: Native
    _base: int
    _capabilities: Capabilities
    _n_compact_bytes: int
    _compact_buffer: ctypes.Array[ctypes.c_uint8] | None

    @property
    def _handle(self) -> llama.llama_context_p:
        return self._native.handle

    @property
    def _memory(self) -> llama.llama_memory_t:
        return self._native.memory

    def remove(self, seq: int, start: int, stop: int) -> None:
        """Take cells out of a sequence; ``stop`` of -1 means to its end."""
        if not llama.llama_memory_seq_rm(self._memory, self._base + seq, start, stop):
            raise CacheError(f"llama.cpp cannot remove positions {start} to {stop} of the cache")

    def copy(self, source: int, target: int, start: int, stop: int) -> None:
        """Let cells of ``source`` belong to ``target`` too; ``stop`` of -1 means to its end."""
        base = self._base
        llama.llama_memory_seq_cp(self._memory, base + source, base + target, start, stop)

    def shift(self, seq: int, start: int, stop: int, delta: int) -> None:
        """Change positions by ``delta``; keys are rotated before the next decode."""
        # llama.cpp aborts the process otherwise: seq_add on M-RoPE, a K-shift where can_shift is
        # false (llama-kv-cache.cpp).
        level, why = self._capabilities.rotate
        if not self._native.shifts or level == "impossible":
            raise CapabilityError(f"positions cannot be shifted: {why or 'no K-shift'}")
        self._native.shift_waits = True
        llama.llama_memory_seq_add(self._memory, self._base + seq, start, stop, delta)

    def end(self, seq: int) -> int:
        """Position after the last cell of a sequence; 0 of an empty one."""
        return int(llama.llama_memory_seq_pos_max(self._memory, self._base + seq)) + 1

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
        if self._native.n_sequences == 1:
            return False
        end, scratch = spans[-1].stop, self._base + SCRATCH
        first = max(0, end - traits.n_swa + 1)
        self.copy(MAIN, SCRATCH, first, end)
        try:
            for pos in chain.from_iterable(range(max(first, start), stop) for start, stop in spans):
                # llama.cpp asks the sliding window's cache: the other one has all of these.
                if int(llama.llama_memory_seq_pos_min(self._memory, scratch)) != pos:
                    return False
                self.remove(SCRATCH, pos, pos + 1)
        finally:
            self.remove(SCRATCH, 0, -1)
        return True

    def compact(self, seq: int) -> None:
        """Move the cells of the only sequence in use together, where that makes decoding faster.

        Lanes leave live tokens in the spare cells, and llama.cpp computes attention up to the last
        cell in use: 256 more cost 7 % of a decode at n_ctx 2,048. The state functions put a
        sequence into the first free cells.
        """
        # The state's keys are those before a shift that waits, its positions those after it.
        if not self._n_compact_bytes or self._native.shift_waits:
            return
        buffer = self._compact_buffer = (
            self._compact_buffer or (ctypes.c_uint8 * self._n_compact_bytes)()
        )
        n = int(llama.llama_state_seq_get_data(self._handle, buffer, len(buffer), self._base + seq))
        if n == 0:
            self._n_compact_bytes, self._compact_buffer = 0, None
            return
        self.remove(seq, 0, -1)
        with hearing() as said:
            done = llama.llama_state_seq_set_data(self._handle, buffer, n, self._base + seq)
        if not done:
            raise TornError(f"llama.cpp could not put {n} bytes of cache back: {said.reason}")

    def save(self) -> memoryview:
        """The cells of `MAIN` in llama.cpp's own form.

        Raises
        ------
        CacheError
            llama.cpp cannot give them out, or keys wait to be rotated.
        """
        if self._native.shift_waits:  # positions would be those after it, keys those before
            raise CacheError("keys wait to be rotated: feed or generate a token first")
        room = int(llama.llama_state_seq_get_size(self._handle, self._base))
        if room > COPY_SHARE * available_bytes():
            raise CacheError(
                f"a copy of the cells takes {gib(room)}, more than memory has to spare"
            )
        buffer = (ctypes.c_uint8 * room)()
        with hearing() as said:
            n = int(llama.llama_state_seq_get_data(self._handle, buffer, room, self._base))
        if n == 0:
            raise CacheError(f"llama.cpp cannot give out the cache: {said.reason}")
        return memoryview(buffer)[:n]

    def load(self, cells: memoryview, end: int) -> None:
        """Put cells that `save` gave out into `MAIN`, and no others anywhere of the stream's.

        Raises
        ------
        CacheError
            They do not fit, or do not stand right below position ``end``; the cache is empty.
        """
        self.clear()
        data = np.frombuffer(cells, np.uint8).ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        with hearing() as said:
            n = int(llama.llama_state_seq_set_data(self._handle, data, len(cells), self._base))
        if n != len(cells) or self.end(MAIN) != end:
            self.clear()
            raise CacheError(
                f"llama.cpp cannot take {len(cells):,} bytes of cache: "
                f"{said.reason or 'they are of another stream'}"
            )

    def clear(self) -> None:
        """Empty every sequence of the stream's."""
        llama.llama_memory_clear(self._memory, False)
        self._native.shift_waits = False


def compact_bytes(
    weights: Weights, n_ctx: int, n_cells: int, settings: CacheSettings, step: int
) -> int:
    """Room that a full sequence takes; 0 where moving it together is no gain."""
    traits = weights.traits
    if weights.offloads or traits.n_swa or n_cells == -(-n_ctx // step) * step:
        return 0
    cell = traits.cell_bytes(settings.cache_type_k, settings.cache_type_v)
    n_bytes = int(n_ctx * (cell + 64)) + 2**20
    return n_bytes if n_bytes <= COMPACT_BYTES else 0
