"""A llama.cpp context with a place for each of several streams, and one decode for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

from streamsink.engine.context import Part, Slot
from streamsink.gguf.budget import n_lanes_of
from streamsink.gguf.places import ALONE, Places
from streamsink.gguf.settings import CacheSettings
from streamsink.llama.making import made_context
from streamsink.llama.native import Holder, Native
from streamsink.llama.weights import Weights


class Seated(Holder, Protocol):
    """A stream that has a place."""

    @property
    def first_sequence(self) -> int:
        """The number of its `MAIN`."""

    def has_rows(self, first: int, n: int, at: int) -> None:
        """Note that ``n`` rows of the buffer are the stream's, the last of token ``at``."""


class NativeHost:
    """A ``llama_context`` with places for streams; implements `streamsink.engine.context.Host`.

    Parameters
    ----------
    weights : Weights
        The model; it must stay open.
    n_ctx : int
        Live tokens that each place must hold.
    settings : CacheSettings
        As for `NativeContext`.
    swa_full : bool
        As for `NativeContext`.
    places : Places
        How many there are, and in how many pools.

    Raises
    ------
    ModelError, MemoryBudgetError
        As for `NativeContext`.
    """

    def __init__(
        self,
        weights: Weights,
        n_ctx: int,
        settings: CacheSettings,
        *,
        swa_full: bool,
        places: Places = ALONE,
    ) -> None:
        self.n_places = places.n
        self.n_pools = 1 if places.unified else places.n
        n_lanes = n_lanes_of(n_ctx, settings, weights.traits, places)
        self._n_each = places.n_sequences_each(n_lanes)
        self.native = Native(
            weights,
            made_context(weights, n_ctx, settings, swa_full=swa_full, places=places),
            settings,
            places.n_sequences(n_lanes),
            n_lanes=n_lanes,
            n_places=places.n,
        )

    @property
    def n_batch(self) -> int:
        """Most tokens in one decode."""
        return self.native.n_batch

    @property
    def joins_neighbours(self) -> bool:
        """Whether those alone are computed together whose places are side by side.

        llama.cpp divides a batch into parts whose sequences follow one another where each has a
        pool (llama-batch.cpp: split_equal).
        """
        return self.n_pools > 1

    @property
    def has_scratch(self) -> bool:
        """Whether each place has a `SCRATCH` beside its `MAIN`."""
        return self._n_each > 1

    @property
    def shift_waits(self) -> bool:
        """Whether keys are rotated with the next decode: until then, no cells are given out."""
        return self.native.shift_waits

    def base(self, place: int) -> int:
        """The first sequence of a place."""
        return place * self._n_each

    def sequences(self, place: int) -> range:
        """All sequences of a place."""
        return range(self.base(place), self.base(place + 1))

    def decode(self, parts: Sequence[tuple[Slot, Part]]) -> None:
        """Decode for several streams at once, none of them in lanes."""
        native, batch = self.native, self.native.batch
        native.check_size(sum(len(part.rows.tokens) for _, part in parts))
        seated = [(cast(Seated, slot), part) for slot, part in parts]
        # llama.cpp computes together what is of sequences that follow one another
        # (llama-batch.cpp: split_equal).
        seated.sort(key=lambda one: one[0].first_sequence)
        native.make_way([slot for slot, _ in seated])
        batch.begin()
        written, rows = [], []
        for slot, (tokens, outputs) in seated:
            first, seq = batch.n_rows, slot.first_sequence + tokens.seq
            batch.add(tokens.tokens, tokens.pos, seq, outputs)
            written.append((tokens.pos, (seq,)))
            rows.append((slot, first, batch.n_rows - first, batch.n_tokens - 1))
        native.decode(batch, written)
        for slot, first, n, last in rows:
            slot.has_rows(first, n, last)
