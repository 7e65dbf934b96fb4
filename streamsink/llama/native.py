"""One ``llama_context``: what is decoded in it, for one stream or for many at once.

Each stream has a run of sequences in it, from its *base* on (`streamsink.llama.context`). Rows of
logits lie in one buffer until the next decode; a stream that takes no part in that keeps a copy of
its last one, so that what a stream foresees never depends on what others do.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from typing import Protocol, TypeAlias

import llama_cpp.llama_cpp as llama
import numpy as np

from streamsink.engine.context import Logits
from streamsink.errors import ClosedError, DecodeError, TornError, UsageError
from streamsink.gguf.settings import CacheSettings
from streamsink.llama.batch import Batch
from streamsink.llama.lane_probe import LaneOrder
from streamsink.llama.library import Said, hearing
from streamsink.llama.threads import NativeThreads
from streamsink.llama.weights import Weights

_REASONS = {
    1: "no free cells for",
    2: "the decode was aborted with",
    -1: "llama.cpp refused the batch with",
}
_UNCHANGED = (1, -1)
"""Codes after which the cache is as it was (llama.h). Positions that were refused may be those of
live cells, so nothing is to be taken out then."""

Written: TypeAlias = tuple[int, Sequence[int]]
"""Where tokens of a batch go: their first position, and sequences."""


class Holder(Protocol):
    """Who has rows of logits in the buffer."""

    def keep_row(self) -> None:
        """Copy the last of them: the buffer is about to be written to."""


class Native:
    """A ``llama_context`` and the batch that it decodes.

    Parameters
    ----------
    weights : Weights
        The model; it must stay open.
    handle : ctypes pointer
        The ``llama_context *``.
    settings : CacheSettings
        What it was made with.
    n_sequences : int
        Sequences that may be used.
    n_lanes : int
        Lanes that there is room for, 1 where there are none.
    n_places : int
        Streams that may each have a token in a batch.
    owned : bool
        Whether it is freed with this object, rather than by whoever made it.

    Attributes
    ----------
    n_lanes : int or None
        Lanes that were found to work; None until somebody has tried.
    lane_order : LaneOrder
        How they work.
    shift_waits : bool
        Whether keys are to be rotated before the next decode.
    threads : NativeThreads
        How many threads decode.
    holders : sequence of Holder
        Whose rows the last decode has left.
    """

    def __init__(
        self,
        weights: Weights,
        handle: llama.llama_context_p,
        settings: CacheSettings,
        n_sequences: int,
        *,
        n_lanes: int = 1,
        n_places: int = 1,
        owned: bool = True,
    ) -> None:
        self.weights = weights
        self._handle: llama.llama_context_p | None = handle
        self._memory = llama.llama_get_memory(handle)
        self.threads = NativeThreads(
            handle, settings, weights.load, weights.n_bytes, offloads=weights.offloads
        )
        self.n_batch = min(max(settings.n_batch, n_places), int(llama.llama_n_batch(handle)))
        self.n_sequences = n_sequences
        self.n_lanes_asked = n_lanes
        self.n_lanes: int | None = None
        self.lane_order: LaneOrder = "own last"
        self.shift_waits = False
        self.shifts = bool(llama.llama_memory_can_shift(self._memory))
        self.holders: Sequence[Holder] = ()
        # The view of logits that was made last: where they lie, and how many rows.
        self._seen: tuple[int | None, int] = (None, 0)
        self._rows: Logits = np.empty((0, 0), np.float32)
        self._hearing = hearing()
        self.batch = Batch(self.n_batch, n_sequences)
        self.single = Batch(1, 1)
        self.single.begin()
        self.single.add([0], 0, 0, "last")
        # Also when nobody calls close(), and before the weights go, which were there first.
        self._free = weakref.finalize(
            self, _free, handle if owned else None, self.batch, self.single
        )

    @property
    def handle(self) -> llama.llama_context_p:
        """The ``llama_context *``.

        Raises
        ------
        ClosedError
            After `close`.
        """
        if self._handle is None:
            raise ClosedError("this context is closed: open another with model.stream()")
        return self._handle

    @property
    def memory(self) -> llama.llama_memory_t:
        """Its ``llama_memory_t``; raises as `handle` does."""
        if self._handle is None:
            raise ClosedError("this context is closed: open another with model.stream()")
        return self._memory

    def check_size(self, n_tokens: int) -> None:
        """Refuse a batch upon which llama_decode would abort the process (llama-context.cpp).

        Raises
        ------
        UsageError
            It has no tokens, or more than `n_batch`.
        """
        if not 0 < n_tokens <= self.n_batch:
            raise UsageError(f"{n_tokens} tokens in one batch: 1 to {self.n_batch} are possible")

    def make_way(self, holders: Sequence[Holder]) -> None:
        """Let those keep their rows who have no part in the decode that follows."""
        for holder in self.holders:
            if holder not in holders:
                holder.keep_row()
        self.holders = ()

    def forget(self, holder: Holder) -> None:
        """Let go of rows that somebody has kept, or does not need."""
        self.holders = [one for one in self.holders if one is not holder]

    def decode(self, batch: Batch, written: Sequence[Written]) -> None:
        """Decode a batch that has been filled; rows of others are overwritten, see `make_way`.

        Parameters
        ----------
        batch : Batch
            `batch` or `single`.
        written : sequence of Written
            Where its tokens go, to be taken out again if it fails.

        Raises
        ------
        DecodeError
            None of the tokens is in the cache; everything else is as before.
        TornError
            Neither could be had.
        """
        with self.threads, self._hearing as said:
            code = int(llama.llama_decode(self.handle, batch.native))
        # What was refused has not begun; all else begins with the shift that waits.
        if self.shift_waits and code != -1:
            self.shift_waits = False
            _check_shift(said)
        if code == 0:
            return
        if code not in _UNCHANGED:
            self._take_out(written)
        reason = _REASONS.get(code, "llama.cpp failed with")
        raise DecodeError(
            f"{reason} {batch.native.n_tokens} tokens (llama_decode returned {code}"
            f"{': ' + said.reason if said.reason else ''})",
            code,
        )

    def _take_out(self, written: Sequence[Written]) -> None:
        """Take out what a failed decode may have left: llama.cpp clears only first sequences."""
        torn = False
        for pos, sequences in written:
            for seq in sequences:
                torn |= not llama.llama_memory_seq_rm(self.memory, seq, pos, -1)
        if torn:  # a recurrent state cannot be taken back
            raise TornError("a decode failed and left its tokens in the cache")

    def rows(self, n_rows: int) -> Logits:
        """The first rows of the last decode, shape (n_rows, n_vocab): a view, until the next."""
        pointer = llama.llama_get_logits(self.handle)
        where = (ctypes.cast(pointer, ctypes.c_void_p).value, n_rows)
        if where != self._seen:  # a view costs as much as a penalty, and is mostly the same one
            shape = (n_rows, self.weights.tokenizer.n_tokens)
            self._seen, self._rows = where, np.ctypeslib.as_array(pointer, shape)
        return self._rows

    def close(self) -> None:
        """Free the context. Twice is fine."""
        self._handle = None
        self._free()


def _check_shift(said: Said) -> None:
    """Look whether the K-shift with which a decode began came to its end.

    Its log alone says so: llama_decode goes on, and neither its code nor any call tells afterwards
    (llama-context.cpp: memory_update). Not begun, positions are ahead of their keys; after an abort
    some layers are rotated, and the next decode would rotate all of them again.
    """
    if any("K-shift" in line or "memory update" in line for line in said.errors):
        raise TornError(
            "a K-shift was aborted or failed: the keys are to be evaluated anew", everywhere=True
        )


def _free(context: llama.llama_context_p | None, *batches: Batch) -> None:
    if context:
        llama.llama_free(context)
    for batch in batches:
        batch.free()
