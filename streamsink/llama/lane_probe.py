"""Whether lanes work in this build of llama.cpp, and how.

Among the cells of a cache a token sees those of *one* of its sequences, the first in llama.cpp's
eyes (llama-kv-cache.cpp: set_input_kq_mask). Which one is first depends on its version: once the
order given, later that of an unordered set, which is the C++ library's choice. So it is tried: the
lane that should be seen and the others get cells with different tokens, a token is written to all
of them, and its logits must be those of a token written to that lane alone, and not those of
another lane.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, TypeAlias

import numpy as np

from streamsink.core.plan import FIRST_LANE
from streamsink.engine.context import Logits, Outputs, Tokenizer
from streamsink.errors import DecodeError

LaneOrder: TypeAlias = Literal["own first", "own last"]


class Context(Protocol):
    """What the probe needs of `streamsink.llama.context.NativeContext`."""

    lane_order: LaneOrder

    @property
    def tokenizer(self) -> Tokenizer:
        """Tokens of the model."""

    def decode_sets(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        sets: Sequence[Sequence[int]],
        rows: Outputs,
    ) -> None:
        """Decode with a set of sequences for each token."""

    def logits(self) -> Logits:
        """Rows of the last decode."""

    def remove(self, seq: int, start: int, stop: int) -> None:
        """Take cells out of a sequence."""


# An unordered_set changes its order when it grows beyond its buckets (13, 29, 59 in libstdc++), so
# sizes between those are tried.
SIZES = (2, 14, 30, 63)
NO_CELLS, REFUSED = 1, -1  # llama.h: llama_decode


def lane_order(context: Context, n_lanes: int) -> LaneOrder | None:
    """Find the order of a token's lanes in which it sees its own; None where there is none.

    Tried on sets of up to ``n_lanes`` lanes.

    Raises
    ------
    DecodeError
        A decode failed for a reason that says nothing of lanes: ask again.
    """
    sizes = sorted({min(size, n_lanes) for size in SIZES if min(size, n_lanes) > 1})
    orders: tuple[LaneOrder, ...] = ("own last", "own first")
    for order in orders:
        context.lane_order = order
        try:
            if all(_sees_own(context, size) for size in sizes):
                return order
        except DecodeError as error:
            if error.code in (NO_CELLS, REFUSED):
                return None
            raise
    return None


def _sees_own(context: Context, size: int) -> bool:
    lanes = list(range(FIRST_LANE + size - 1, FIRST_LANE - 1, -1))
    n_vocab = context.tokenizer.n_tokens
    token = n_vocab // 2
    cells = [cell for cell in (lanes[:1], lanes[1:-1], lanes[-1:]) if cell]
    try:
        context.decode_sets(
            [n_vocab // (3 + at) for at in range(len(cells))], [0] * len(cells), cells, "last"
        )
        shared = _logits_of(context, token, lanes)
        own = _logits_of(context, token, lanes[:1])
        other = _logits_of(context, token, lanes[-1:])
    finally:
        for lane in lanes:
            context.remove(lane, 0, -1)
    # Batches of one token each: the arithmetic is the same, so nothing but the cell differs.
    return bool(np.abs(shared - own).max() < 0.01 * np.abs(other - own).max())


def _logits_of(context: Context, token: int, members: list[int]) -> Logits:
    context.decode_sets([token], [1], [members], "last")
    row: Logits = context.logits()[-1].copy()
    for lane in members:
        context.remove(lane, 1, -1)
    return row
