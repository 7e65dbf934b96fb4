"""Exact one-token eviction, a batch at a time.

Feeding with a small ``n_discard`` needs no token-by-token loop. In llama.cpp's unified cache a cell
may belong to many sequences, and a token sees the cells of one of its own. So for the groups of
tokens between two evictions, lane ``i`` is a sequence that holds the sink and what is left of the
window after ``i`` evictions; the tokens of group ``i`` see lane ``i`` and are written to it and to
all later ones, the last of which is the stream itself. One decode evaluates every token with
exactly the cells that it would have seen alone.

Filling a lane takes llama.cpp as long as there are cells, so lanes stand from one batch to the next
and are only brought up to date: what has left the stream leaves them, what they lack comes in.
While they stand, nothing else may be done to the cache but evictions; all else takes them down.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial

from streamsink.core.ledger import Ledger, Segment
from streamsink.core.plan import FIRST_LANE, MAIN, Copy, Happened, Op, Plan, Remove, Rows
from streamsink.core.state import State


def feed(state: State, tokens: Sequence[int], n_discard: int) -> Plan:
    """Decode groups of ``n_discard`` tokens with an eviction between each two.

    There is room for the first group. Lanes that do not fit these groups are taken down first.
    """
    ledger = state.ledger
    n_lanes = (len(tokens) - 1) // n_discard
    gone = ledger.leaving(n_lanes * n_discard)
    if state.lanes:
        # Lanes differ in where the window begins, so they can go on only if all that leaves is of
        # it: a smaller n_keep lets tokens of the head go first.
        if len(state.lanes) != n_lanes or gone[0].pos < ledger.segments[-1].pos:
            return take_down(state)
        brought_up = _renewed(state, gone[0], n_discard)
    else:
        brought_up = _filled(ledger, n_lanes, n_discard)
    after, told = ledger, []
    for _ in range(n_lanes):
        told += [
            Happened("evict", part.n, range(part.index, part.stop))
            for part in after.leaving(n_discard)
        ]
        after = after.evict(n_discard)
    return Plan(
        state,
        state.but(
            ledger=after.append(len(tokens)),
            counters=state.counters.with_evictions(n_lanes, n_lanes * n_discard),
            lanes=tuple(ledger.next_pos + (at + 1) * n_discard for at in range(n_lanes)),
            is_scattered=True,
            has_logits=True,
            is_shifting=False,
        ),
        (*brought_up, *(Remove(MAIN, part.pos, part.end) for part in gone)),
        Rows(tokens, ledger.next_pos, MAIN, _seen(len(tokens), n_discard)),
        # The fullest lane still holds what was evicted from the stream.
        (
            *(Copy(_lane(0, n_lanes), MAIN, part.pos, part.end) for part in gone),
            *_emptied(n_lanes),
        ),
        partial(take_down, state),
        tuple(told),
    )


def take_down(state: State) -> Plan:
    """Empty all lanes, the fullest first."""
    ops = _emptied(len(state.lanes))
    return Plan(state, state.but(lanes=()), ops, back=ops)


def _emptied(n_lanes: int) -> tuple[Op, ...]:
    return tuple(Remove(_lane(at, n_lanes), 0, -1) for at in range(n_lanes))


def _filled(ledger: Ledger, last: int, n_discard: int) -> list[Op]:
    ops: list[Op] = []
    for group in range(last):
        lane = _lane(group, last)
        evicted = ledger.leaving(group * n_discard) if group else ()
        if evicted:
            ops.append(Copy(MAIN, lane, ledger.first_pos, evicted[0].pos))
        ops.append(Copy(MAIN, lane, evicted[-1].end if evicted else 0, -1))
    return ops


def _renewed(state: State, gone: Segment, n_discard: int) -> list[Op]:
    sink_end = state.ledger.segments[-2].end
    ops: list[Op] = []
    for group, end in enumerate(state.lanes):
        lane = _lane(group, len(state.lanes))
        ops.append(Remove(lane, sink_end, gone.pos + group * n_discard))
        ops.append(Copy(MAIN, lane, end, -1))
    return ops


@lru_cache(maxsize=64)
def _seen(n_tokens: int, n_discard: int) -> tuple[int, ...]:
    """The lane that each token sees; those of the last group see the stream itself."""
    groups = [at // n_discard for at in range(n_tokens)]
    return tuple(MAIN if at == groups[-1] else _lane(at, groups[-1]) for at in groups)


def _lane(group: int, last: int) -> int:
    """Sequence of a group before the last: the fuller the lane, the higher its number."""
    return FIRST_LANE + last - 1 - group
