"""Exact one-token eviction, a batch at a time.

Feeding with a small ``n_discard`` needs no token-by-token loop. In llama.cpp's unified cache a cell
may belong to many sequences, and a token sees the cells of one of its own. So for the groups of
tokens between two evictions, lane ``i`` is a sequence that holds the sink and what is left of the
window after ``i`` evictions; the tokens of group ``i`` see lane ``i`` and are written to it and to
all later ones, the last of which is the stream itself. One decode evaluates every token with
exactly the cells that it would have seen alone.

Filling a lane takes llama.cpp as long as there are cells, so lanes stand from one batch to the next
and are only brought up to date: what has left the stream leaves them, what they lack comes in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from streamsink.core.ledger import Evicted, Ledger, Missing, Span
from streamsink.engine.context import FIRST_LANE, MAIN, Backend


class Lanes:
    """The lanes of one stream.

    While lanes stand, nothing else may be done to the cache but taking the oldest tokens out of the
    stream: `drop` them first.

    Parameters
    ----------
    backend : Backend
        The engine's context.
    ledger : Ledger
        Which token sits where.
    """

    def __init__(self, backend: Backend, ledger: Ledger) -> None:
        self._backend = backend
        self._ledger = ledger
        # Position after the last token of each standing lane, the fullest lane first.
        self._ends: list[int] = []

    def decode(
        self, tokens: Sequence[int], n_discard: int, rows: Literal["last", "all"]
    ) -> list[Evicted]:
        """Decode groups of ``n_discard`` tokens with an eviction between each two.

        The eviction before the first group is the caller's, as is moving the sink.

        Returns
        -------
        list of Evicted
            What left, in order.

        Raises
        ------
        DecodeError
            Cache and ledger are as before the call, and no lane stands.
        """
        backend, ledger = self._backend, self._ledger
        groups = [at // n_discard for at in range(len(tokens))]
        last = groups[-1]
        gone = ledger.oldest(last * n_discard)
        try:
            # Standing lanes differ in where the window begins, so all that leaves must be of it: a
            # smaller n_keep lets tokens of the head go first.
            if len(self._ends) == last and gone[0].start >= ledger.runs[-1].pos:
                self._renew(gone[0], n_discard)
            else:
                self.drop()
                self._fill(last, n_discard)
            for span in gone:
                backend.remove(MAIN, span.start, span.stop)
            lanes = [MAIN if group == last else _lane(group, last) for group in groups]
            backend.decode_lanes(tokens, ledger.next_pos, lanes, rows)
        except BaseException:
            # Some may still stand that were to be dropped.
            self._ends = [0] * max(last, len(self._ends))
            # Should putting it right fail too, all is to be evaluated anew.
            ledger.missing = Missing.ALL
            for span in gone:
                backend.copy(_lane(0, last), MAIN, span.start, span.stop)
            self.drop()
            ledger.missing = Missing.NOTHING
            raise
        self._ends = [ledger.next_pos + (group + 1) * n_discard for group in range(last)]
        records = [record for _ in range(last) for record in ledger.evict(n_discard)]
        ledger.append(tokens)
        return records

    def drop(self) -> None:
        """Empty all lanes, the fullest first; on failure the others still stand."""
        while self._ends:
            self._backend.remove(_lane(0, len(self._ends)), 0, -1)
            del self._ends[0]

    def _fill(self, last: int, n_discard: int) -> None:
        for group in range(last):
            lane = _lane(group, last)
            evicted = self._ledger.oldest(group * n_discard)
            if evicted:
                self._backend.copy(MAIN, lane, self._ledger.first_pos, evicted[0].start)
            self._backend.copy(MAIN, lane, evicted[-1].stop if evicted else 0, -1)

    def _renew(self, gone: Span, n_discard: int) -> None:
        sink_end = self._ledger.head[-1].end
        for group, end in enumerate(self._ends):
            lane = _lane(group, len(self._ends))
            self._backend.remove(lane, sink_end, gone.start + group * n_discard)
            self._backend.copy(MAIN, lane, end, -1)


def _lane(group: int, last: int) -> int:
    """Sequence of a group before the last: the fuller the lane, the higher its number."""
    return FIRST_LANE + last - 1 - group
