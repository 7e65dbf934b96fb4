"""Streams in llama.cpp contexts that they share: where the cells of each are, here or in memory."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import llama_cpp.llama_cpp as llama

from streamsink.core.capabilities import Verdict
from streamsink.core.plan import MAIN
from streamsink.engine.context import Host, Outputs
from streamsink.errors import CacheError, MemoryBudgetError, ModelError
from streamsink.gguf.layout import LayoutName, choose_layout
from streamsink.gguf.places import ALONE, Places
from streamsink.gguf.settings import CacheSettings
from streamsink.gguf.traits import check_types
from streamsink.llama import pooled
from streamsink.llama.context import NativeContext
from streamsink.llama.host import NativeHost
from streamsink.llama.weights import Weights

APART = Verdict(
    "impossible",
    'llama.cpp copies no sink from one pool of cells to another (layout="unified" or "separate" '
    "have no such bounds)",
)
"""Why nothing is re-anchored in pools (llama-kv-cache.cpp: seq_cp)."""

LAID_OUT = {
    "pools": "a pool of cells for each stream",
    "unified": "one pool of cells for all streams",
    "separate": "a context for each stream",
}


class NativeSlot(NativeContext):
    """One stream's cells, in a place of a `NativeHost` or in memory.

    Implements `streamsink.engine.context.Slot`.

    Parameters
    ----------
    hosts : NativeHosts
        Where it belongs.
    """

    def __init__(self, hosts: NativeHosts) -> None:
        self._hosts = hosts
        self._host: NativeHost | None = None
        self._place = 0
        self._cells: memoryview | None = None
        self._end = self._n_last = 0
        self.share: int | None = None
        n_ctx, settings, swa_full = hosts.made_with
        self._settle_in(hosts.hosts[0].native, 0, n_ctx, settings, swa_full=swa_full)
        if hosts.in_pools:
            able = self._capabilities
            moves_aside = able.reanchor.level == "exact"
            self._capabilities = replace(able, reanchor=APART, moves_aside=moves_aside)

    @property
    def host(self) -> NativeHost | None:
        """Where its cells are; None where they are in memory."""
        return self._host

    @property
    def first_sequence(self) -> int:
        """The number of its `MAIN`."""
        return self._base

    @property
    def n_batch(self) -> int:
        """Most tokens in the next decode."""
        most = super().n_batch
        return most if self.share is None else min(self.share, most)

    def enter(self, host: Host, place: int) -> None:
        """Take a place that is free, and bring the cells there."""
        assert isinstance(host, NativeHost)
        assert self._host is None
        self._host, self._place = host, place
        self._native, self._base = host.native, host.base(place)
        self._n_cells = int(llama.llama_n_ctx_seq(host.native.handle))
        cells, self._cells = self._cells, None
        if cells is None:
            self.clear()
        else:
            self.load(cells, self._end)

    def leave(self) -> None:
        """Give up the place, with the cells in memory from then on."""
        host = self._host
        if host is None:
            return
        self.keep_row()
        host.native.forget(self)
        self._end = self.end(MAIN)
        cells = None
        try:
            cells = self.save() if self._end else None
        finally:
            self.clear()
            self._host, self._cells = None, cells

    def put(self, cells: memoryview, end: int) -> None:
        """Hold cells that `save` gave out until there is a place; that has no place yet."""
        assert self._host is None
        self._cells, self._end = cells, end

    def clear(self) -> None:
        """Empty every sequence of the stream's."""
        host = self._host
        self._cells = None
        if host is None:
            return
        if host.n_places == 1:
            super().clear()
            return
        for seq in host.sequences(self._place):
            llama.llama_memory_seq_rm(self._memory, seq, -1, -1)

    def save(self) -> memoryview:
        """The cells of `MAIN`, in the form in which a context of one pool has them."""
        host = self._host
        if host is None:
            if self._cells is None:
                raise CacheError("the stream has no cells to be given out")
            return self._cells
        state = super().save()
        self._n_last = 0
        if self._weights.traits.n_swa:
            flags = llama.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
            n = int(llama.llama_state_seq_get_size_ext(self._handle, self._base, flags))
            self._n_last = n - pooled.HEAD
        if host.n_pools == 1:
            return state
        merged = pooled.merged(state, host.n_pools, self._place, self._n_last)
        if self._n_last:
            self._n_last -= pooled.NUMBER * (host.n_pools - 1)
        return merged

    def load(self, cells: memoryview, end: int) -> None:
        """Put cells into `MAIN` that `save` gave out, here or elsewhere."""
        host = self._host
        if host is None:
            raise CacheError("the stream has no place to put cells into")
        if host.n_pools > 1:
            if self._weights.traits.n_swa and not self._n_last:
                raise CacheError("cells of two caches cannot be divided among pools")
            cells = pooled.divided(cells, host.n_pools, self._place, self._n_last)
        super().load(cells, end)

    def remove(self, seq: int, start: int, stop: int) -> None:
        """Take cells out of a sequence; ``stop`` of -1 means to its end."""
        self._check_own(seq)
        super().remove(seq, start, stop)

    def copy(self, source: int, target: int, start: int, stop: int) -> None:
        """Let cells of ``source`` belong to ``target`` too; ``stop`` of -1 means to its end."""
        self._check_own(max(source, target))
        super().copy(source, target, start, stop)

    def decode(self, tokens: Sequence[int], pos: int, seq: int, rows: Outputs) -> None:
        """Write tokens to a sequence at ``pos`` and after it, and compute logits."""
        self._check_own(seq)
        super().decode(tokens, pos, seq, rows)

    def _check_own(self, seq: int) -> None:
        """Refuse a sequence beyond those of the place, which is another stream's."""
        host = self._host
        if host is None or seq >= len(host.sequences(self._place)):
            raise CacheError(f"sequence {seq} of the stream is not where its cells are")

    def fork(self) -> NativeSlot:
        """A slot of the same engine with the same cells."""
        other = self._hosts.slot()
        end = self.end(MAIN) if self._host else self._end
        if end:
            other._cells, other._end, other._n_last = self.save(), end, self._n_last
        return other

    def close(self) -> None:
        """Give up cells and place. Twice is fine."""
        self._kept, self._n_rows = None, 0
        self._native.forget(self)
        with suppress(CacheError):
            self.clear()
        self._host = None


class NativeHosts:
    """The contexts of an engine; implements `streamsink.engine.context.Hosts`.

    Parameters
    ----------
    weights : Weights
        The model; it must stay open.
    n_ctx : int
        Tokens that a token can attend to, in each stream.
    settings : CacheSettings
        As for `NativeContext`.
    n_streams : int
        Streams that decode together.
    layout : {"auto", "pools", "unified", "separate"}
        How they are laid out; see `streamsink.gguf.layout`.

    Attributes
    ----------
    layout : str
        What was settled on.
    why : str
        Why, as a clause.
    made_with : tuple
        ``n_ctx``, settings, and that sliding-window layers do not keep all cells.

    Raises
    ------
    UsageError
        The layout is wrong on this model.
    ModelError, MemoryBudgetError, CapabilityError
        As for `NativeContext`.
    """

    def __init__(
        self,
        weights: Weights,
        n_ctx: int,
        settings: CacheSettings,
        n_streams: int,
        layout: LayoutName = "auto",
    ) -> None:
        check_types(weights.traits, settings)
        self._weights = weights
        self.layout, why = choose_layout(
            layout,
            n_streams,
            n_ctx,
            weights.traits,
            settings,
            weights.measured,
            weights.n_bytes,
        )
        self.why = f"{LAID_OUT[self.layout]}: {why}"
        self.made_with = (n_ctx, settings, False)  # a model with sliding windows shares no context
        self.hosts: list[NativeHost] = []
        self._lanes: NativeHost | None = None
        self._has_no_lanes = self.layout == "separate"
        try:
            if self.layout == "separate":
                for _ in range(n_streams):
                    self.hosts.append(self._host(ALONE))
            else:
                self.hosts.append(self._host(Places(n_streams, unified=not self.in_pools)))
        except BaseException:
            self.close()
            raise

    @property
    def in_pools(self) -> bool:
        """Whether each stream has a pool of cells of its own beside others."""
        return self.layout == "pools"

    def _host(self, places: Places) -> NativeHost:
        n_ctx, settings, swa_full = self.made_with
        return NativeHost(self._weights, n_ctx, settings, swa_full=swa_full, places=places)

    def slot(self) -> NativeSlot:
        """The context of another stream, without a place yet."""
        return NativeSlot(self)

    def lanes_host(self) -> NativeHost | None:
        """A context of one place where lanes work; None where there can be none."""
        if self._lanes is None and not self._has_no_lanes:
            self._has_no_lanes = True  # unless it can be made
            with suppress(MemoryBudgetError, ModelError):
                self._lanes = self._host(ALONE)
                self._has_no_lanes = False
        return self._lanes

    def close(self) -> None:
        """Free the contexts. Twice is fine."""
        for host in (*self.hosts, *filter(None, [self._lanes])):
            host.native.close()
