"""An engine's contexts in plain Python: `tests.fake_backend` in places that streams share."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

from streamsink.core.capabilities import Capabilities, Verdict
from streamsink.core.ledger import Span
from streamsink.engine.context import Host, Part, Slot
from streamsink.errors import CacheError, DecodeError
from tests.fake_backend import Abort, Cell, FakeBackend

IN_POOLS = Verdict("impossible", "pools")


class FakeHost:
    """Implements `streamsink.engine.context.Host`."""

    def __init__(
        self, n_places: int, n_cells: int, n_lanes: int, n_batch: int, has_scratch: bool
    ) -> None:
        self.n_places = n_places
        self.n_cells = n_cells
        self.n_lanes = n_lanes
        self.n_batch = n_batch
        self.has_scratch = has_scratch
        self.joins_neighbours = not has_scratch
        self.shift_waits = False
        self.slots: dict[int, FakeSlot] = {}
        self.fail_at: set[int] = set()
        """Decodes, counted from 0, that fail without a reason."""
        self.seconds = 0.0
        """What a decode takes."""
        self.sizes: list[int] = []
        """How many streams had a part in each decode."""

    def decode(self, parts: Sequence[tuple[Slot, Part]]) -> None:
        n_tokens = sum(len(part.rows.tokens) for _, part in parts)
        if not 0 < n_tokens <= self.n_batch:
            raise Abort(f"GGML_ASSERT(n_tokens_all <= cparams.n_batch): {n_tokens}")
        self.counts(len(parts))
        before = [(slot, list(slot.cells)) for slot, _ in parts if isinstance(slot, FakeSlot)]
        try:
            for slot, (rows, outputs) in parts:
                assert isinstance(slot, FakeSlot)
                if rows.lanes:
                    raise Abort("lanes in a context that streams share")
                slot.decode_here(rows.tokens, rows.pos, [[rows.seq]] * len(rows.tokens), outputs)
        except DecodeError:
            for slot, cells in before:
                slot.cells = cells
            raise

    def counts(self, n_parts: int) -> None:
        """Note a decode, and let it fail if it is to."""
        time.sleep(self.seconds)
        self.shift_waits = False
        self.sizes.append(n_parts)
        if len(self.sizes) - 1 in self.fail_at:
            raise DecodeError("injected", -3)


class FakeSlot(FakeBackend):
    """Implements `streamsink.engine.context.Slot`."""

    def __init__(self, hosts: FakeHosts) -> None:
        super().__init__(hosts.n_cells, 1, hosts.n_batch, hosts.capabilities)
        self.n_batch_of_host = hosts.n_batch
        self.share: int | None = None
        self.n_moves = 0
        self._hosts = hosts
        self._host: FakeHost | None = None
        self._place = 0

    @property
    def host(self) -> FakeHost | None:
        return self._host

    @property
    def n_batch(self) -> int:
        return self.n_batch_of_host if self.share is None else self.share

    @n_batch.setter
    def n_batch(self, n_batch: int) -> None:
        self.n_batch_of_host = n_batch

    def enter(self, host: Host, place: int) -> None:
        assert isinstance(host, FakeHost)
        if self._host or place in host.slots or not 0 <= place < host.n_places:
            raise Abort("a place is taken twice")
        host.slots[place] = self
        self._host, self._place = host, place
        self.n_cells, self.n_lanes = host.n_cells, host.n_lanes
        self.n_moves += 1

    def put(self, cells: memoryview, end: int) -> None:
        if self._host:
            raise Abort("cells are put under a stream that has a place")
        super().load(cells, end)

    def save(self) -> memoryview:
        self._check_no_shift_waits()
        return super().save()

    def _check_no_shift_waits(self) -> None:
        """Positions would be those after it, keys those before."""
        if self._host and self._host.shift_waits:
            raise CacheError("keys wait to be rotated")

    def leave(self) -> None:
        assert self._host
        self._check_no_shift_waits()
        if any(cell.sequences != {0} for cell in self.cells):
            raise Abort("cells beside the stream's are left behind")
        del self._host.slots[self._place]
        self._host = None

    def decode_here(
        self, tokens: Sequence[int], pos: int, sets: Sequence[Sequence[int]], outputs: object
    ) -> None:
        share, self.share = self.share, None  # a work that waited has the share of that time
        try:
            super()._decode(tokens, pos, sets, outputs)  # type: ignore[arg-type]
        finally:
            self.share = share

    def _decode(
        self, tokens: Sequence[int], pos: int, sets: Sequence[Sequence[int]], rows: object
    ) -> None:
        if self._host is None:
            raise Abort("a decode without a place")
        self._host.counts(1)
        self.decode_here(tokens, pos, sets, rows)

    def remove(self, seq: int, start: int, stop: int) -> None:
        self._needs_place()
        super().remove(seq, start, stop)

    def copy(self, source: int, target: int, start: int, stop: int) -> None:
        self._needs_place()
        super().copy(source, target, start, stop)

    def shift(self, seq: int, start: int, stop: int, delta: int) -> None:
        self._needs_place()
        super().shift(seq, start, stop, delta)
        assert self._host
        self._host.shift_waits = True

    def is_whole(self, spans: Sequence[Span]) -> bool:
        self._needs_place()
        return super().is_whole(spans)

    def fork(self) -> FakeSlot:
        self._check_no_shift_waits()
        other = self._hosts.slot()
        other.cells = [replace(cell, sequences={0}) for cell in self._main()]
        return other

    def close(self) -> None:
        super().close()
        if self._host:
            del self._host.slots[self._place]
            self._host = None

    def _check_sequences(self, sequences: Iterable[int]) -> None:
        sequences = [*sequences]
        if self._host and not self._host.has_scratch and any(sequences):
            raise Abort("a sequence of another stream was touched")
        super()._check_sequences(sequences)

    def _main(self) -> list[Cell]:
        return [cell for cell in self.cells if 0 in cell.sequences]

    def _needs_place(self) -> None:
        if self._host is None:
            raise Abort("cells of a stream without a place were touched")


class FakeHosts:
    """Implements `streamsink.engine.context.Hosts`."""

    why = "the test says so"

    def __init__(
        self,
        n_streams: int,
        n_ctx: int,
        *,
        n_lanes: int = 1,
        n_batch: int = 16,
        in_pools: bool = True,
    ) -> None:
        self.n_cells = n_ctx
        self.n_batch = n_batch
        reanchor = IN_POOLS if in_pools else Verdict()
        self.capabilities = Capabilities(1000, reanchor=reanchor, moves_aside=in_pools)
        self.hosts = [FakeHost(n_streams, n_ctx, 1, n_batch, has_scratch=not in_pools)]
        self._lanes = FakeHost(1, n_ctx + n_lanes - 1, n_lanes, n_batch, has_scratch=True)

    def slot(self) -> FakeSlot:
        return FakeSlot(self)

    def lanes_host(self) -> FakeHost | None:
        return self._lanes

    def close(self) -> None:
        pass
