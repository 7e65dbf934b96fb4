"""What a stream does next, and what each step leads to: from a state to a plan.

Pure functions. Each gives one `Plan`, or None where nothing of its kind is due. They come in the
order in which a stream asks them before it takes tokens in: bring back what is missing, bring down
positions that have grown large, close the gap behind the sink, make room, take in.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from msgspec.structs import replace

from streamsink.core.capabilities import Capabilities
from streamsink.core.ledger import Ledger, Missing, Segment
from streamsink.core.matching import Passage
from streamsink.core.plan import (
    MAIN,
    SCRATCH,
    Clear,
    Compact,
    Copy,
    Happened,
    Op,
    Plan,
    Remove,
    Rows,
    Shift,
)
from streamsink.core.state import State
from streamsink.core.tape import Tape

# -- what is missing ------------------------------------------------------------------------------


def rebuild(state: State, n_batch: int) -> Plan | None:
    """Evaluate the next of the missing tokens; of all tokens the newest is decoded last."""
    ledger = state.ledger
    if ledger.missing is Missing.NOTHING:
        return None
    if ledger.missing is Missing.ALL:
        return _rebuild_all(state, n_batch)
    return _rebuild_head(state, n_batch)


def _rebuild_all(state: State, n_batch: int) -> Plan:
    """From position 0 on; what the window remembered of tokens long evicted is gone."""
    ledger = state.ledger
    tokens = state.tape.read(*ledger.indices)[ledger.n_ready :][:n_batch]
    n_ready = ledger.n_ready + len(tokens)
    done = n_ready == ledger.n_live
    if done:
        ledger = ledger.placed(0).lacking(Missing.NOTHING)
    else:
        ledger = ledger.lacking(Missing.ALL, n_ready)
    ops: tuple[Op, ...] = () if state.ledger.n_ready else (Clear(),)
    return Plan(
        state,
        state.but(
            ledger=ledger,
            is_scattered=False,
            has_logits=done and n_ready > 0,
            is_shifting=False,
            cause="" if done else state.cause,
        ),
        ops,
        Rows(tokens, state.ledger.n_ready, is_input=False) if tokens else None,
        (),
        partial(Plan, state, state.without_cells()),
        _rebuilt(state, n_ready) if done else (),
    )


def _rebuild_head(state: State, n_batch: int) -> Plan:
    """In a sequence of its own, right below the window; it then joins the window's.

    The old head leaves first: its cells are the ones that the new head takes, so that the cache
    needs no spare cells and llama.cpp does not compute attention over them (256 more cells, its
    granularity, cost 7 % of a decode at n_ctx 2,048).
    """
    ledger = state.ledger
    start, n_head = ledger.head_place, ledger.n_head
    if ledger.n_ready == n_head > 0:
        ops: tuple[Op, ...] = (Copy(SCRATCH, MAIN, start, -1), Remove(SCRATCH, 0, -1))
        there = state.but(
            ledger=ledger.with_head_at(start).lacking(Missing.NOTHING), has_logits=False, cause=""
        )
        return Plan(state, there, ops, back=ops, told=_rebuilt(state, n_head))
    ops = ()
    if not ledger.n_ready:
        # All that stands below the window goes, also what an attempt that failed has left there.
        below = Remove(MAIN, 0, ledger.segments[-1].pos)
        ops = (below, Remove(SCRATCH, 0, -1))
    tokens = state.tape.read(*ledger.indices[:-1])[ledger.n_ready :][:n_batch]
    n_ready = ledger.n_ready + len(tokens)
    return Plan(
        state,
        state.but(
            ledger=ledger.lacking(Missing.HEAD if n_head else Missing.NOTHING, n_ready),
            has_logits=False,
            is_shifting=False if tokens else state.is_shifting,
            cause=state.cause if n_head else "",
        ),
        ops,
        Rows(tokens, start + ledger.n_ready, SCRATCH, is_input=False) if tokens else None,
        ops,
        partial(Plan, state, state.but(ledger=ledger.lacking(Missing.HEAD))),
        () if n_head else _rebuilt(state, 0),
    )


def _rebuilt(state: State, n_tokens: int) -> tuple[Happened, ...]:
    return (Happened(state.cause, n_tokens),) if state.cause else ()


# -- positions ------------------------------------------------------------------------------------


def rebase(state: State, able: Capabilities, most: int) -> Plan | None:
    """Bring positions beyond ``most`` back to 0, before they are too large for 32-bit angles."""
    ledger = state.ledger
    if not ledger.first_pos or ledger.next_pos <= most:
        return None
    counters = replace(state.counters, rebases=state.counters.rebases + 1)
    if able.rotate.level != "exact":
        return Plan(state, state.without_cells().but(counters=counters, cause="rebase"))
    delta = -ledger.first_pos
    return Plan(
        state,
        state.but(ledger=ledger.shifted(delta), counters=counters, is_shifting=True),
        (Shift(MAIN, ledger.first_pos, ledger.next_pos, delta),),
        told=(Happened("rebase", ledger.n_live),),
    )


def close_gap(state: State) -> Plan | None:
    """Bring sink and window together, where the sink lags too far or no window is left.

    ``reanchor`` has the head evaluated anew; ``rotate`` moves what comes behind it down, one
    segment at a time: the window moves last, and the gap is there until it has.
    """
    ledger = state.ledger
    lag = ledger.sink_lag
    if not lag or (lag <= state.choice.slack and ledger.n_newest):
        return None
    if state.choice.placement == "reanchor":
        counters = replace(state.counters, reanchors=state.counters.reanchors + 1)
        missing = ledger.lacking(Missing.HEAD)
        return Plan(state, state.but(ledger=missing, counters=counters, cause="reanchor"))
    shift = ledger.next_shift()
    after = ledger.moved(*shift) if shift else ledger.placed(ledger.first_pos)
    ops: tuple[Op, ...] = ()
    if shift:
        (start, stop), delta = shift
        ops = (Shift(MAIN, start, stop, delta),)
    then = state.but(ledger=after, is_shifting=shift is not None or state.is_shifting)
    if after.sink_lag:
        return Plan(state, then, ops)
    counters = replace(state.counters, shifts=state.counters.shifts + 1)
    return Plan(
        state, then.but(counters=counters), ops, told=(Happened("rotate", ledger.n_newest),)
    )


# -- tokens that go -------------------------------------------------------------------------------


def evict(state: State, n: int, *, cut: bool = False) -> Plan:
    """Take the oldest tokens out of the window; lanes may stand, see `streamsink.core.lanes`."""
    leaving, ledger = state.ledger.leaving(n), state.ledger.evict(n)
    ops = _removal(leaving)
    then = state.but(
        ledger=ledger,
        counters=state.counters.with_evictions(1, n),
        boundaries=later(state.boundaries, ledger.window_index),
        has_logits=state.has_logits and n < state.ledger.n_window,
    )
    return Plan(state, then, ops, back=ops, told=_gone(leaving, cut=cut))


def _removal(leaving: Sequence[Segment]) -> tuple[Op, ...]:
    return tuple([Remove(MAIN, part.pos, part.end) for part in leaving])


def _gone(leaving: Sequence[Segment], *, cut: bool) -> tuple[Happened, ...]:
    return tuple([Happened("evict", part.n, range(part.index, part.stop), cut) for part in leaving])


def truncate(state: State, n: int) -> Plan:
    """Take the ``n`` newest tokens out of cells and ledger: they are pending then."""
    ledger = state.ledger
    ops: tuple[Op, ...] = ()
    if ledger.missing is not Missing.ALL:
        ops = (Remove(MAIN, ledger.next_pos - n, -1),)
    after = ledger.truncate(n).lacking(ledger.missing)
    return Plan(state, state.but(ledger=after, has_logits=False), ops, back=ops)


def keep(
    state: State,
    head: Sequence[Segment],
    kept: Sequence[Passage],
    start: int,
    tape: Tape,
    *,
    anew: bool,
) -> Plan:
    """Of the tokens behind the head keep some passages, as neighbours, and number all anew.

    What stood before the first of them leaves as in an eviction. What follows another gap moves
    down, all of it in one K-shift.

    Parameters
    ----------
    head : sequence of Segment
        The tokens before them, at the positions that they have, with the indices that they get.
    kept : sequence of Passage
        In order; ``old`` counts from the first token behind the head.
    start : int
        Index that the first of those kept gets, or the next token if there is none.
    tape : Tape
        The ids by these indices.
    anew : bool
        What stays is evaluated again: nothing can be taken out of this cache.
    """
    ledger = state.ledger
    n_head = sum(part.n for part in head)
    _, (*_, window) = ledger.divided(n_head)
    ops: list[Op] = []
    n_kept, at, gap = 0, 0, 0
    first = window.pos + kept[0].old if kept else max((part.end for part in head), default=0)
    for one in kept:
        old = window.pos + one.old
        if one.old > at:
            ops.append(Remove(MAIN, window.pos + at, old))
            gap = one.old - n_kept - kept[0].old
        if gap:
            ops.append(Shift(MAIN, old, old + one.n, -gap))
        n_kept += one.n
        at = one.old + one.n
    if window.n > at:
        ops.append(Remove(MAIN, window.pos + at, -1))
    after = Ledger.of((*head, Segment(start, first, n_kept)), ledger.n_keep)
    then = state.but(
        tape=tape,
        ledger=after,
        n_given=after.next_index,
        boundaries=_followed(state.boundaries, window.index, kept, start),
        has_logits=state.has_logits and not ops,
        is_shifting=state.is_shifting or gap > 0,
    )
    told = (Happened("align", ledger.n_live - after.n_live),) if ops else ()
    lost = Plan(state, then.without_cells(), told=told)
    return lost if anew and ops else Plan(state, then, tuple(ops), None, (), lambda: lost, told)


def _followed(
    boundaries: Sequence[int], first: int, kept: Sequence[Passage], start: int
) -> tuple[int, ...]:
    """Where boundaries are when passages, counted from an index, have become neighbours."""
    moved: list[int] = []
    for one in kept:
        here = (place - first - one.old for place in boundaries)
        moved += (start + place for place in here if 0 <= place <= one.n)
        start += one.n
    return tuple(sorted(set(moved)))


def splice(state: State, at: int, n: int, n_new: int, able: Capabilities, *, exact: bool) -> Plan:
    """Swap ``n`` of the oldest tokens, after the first ``at``, for others, evaluated thereafter.

    They are evaluated right below the window, which makes way if it stands too low; or all anew,
    where the model does not allow that, nothing is left to stand below, or ``exact`` asks for it.
    """
    after, _ = state.ledger.splice(at, n, n_new)
    lift = max(0, -after.head_place)
    beside = able.evaluates_beside and not (lift and able.rotate.level != "exact")
    then = state.but(has_logits=False, cause="repin")
    if exact or not beside or not after.n_newest:
        return Plan(state, then.but(ledger=after.lacking(Missing.ALL)))
    if not lift:
        return Plan(state, then.but(ledger=after.lacking(Missing.HEAD)))
    window = after.segments[-1]
    lifted = Ledger(
        (*after.segments[:-1], window.at(window.pos + lift)),
        after.next_index,
        after.n_live,
        after.n_keep,
        Missing.HEAD,
    )
    return Plan(
        state,
        then.but(ledger=lifted.with_head_at(lifted.head_place), is_shifting=True),
        (Shift(MAIN, window.pos, window.end, lift),),
    )


# -- tokens that come -----------------------------------------------------------------------------


def compact(state: State) -> Plan | None:
    """Put cells together that lanes have scattered, before tokens come one by one."""
    if not state.is_scattered:
        return None
    return Plan(state, state.but(is_scattered=False), (Compact(MAIN),))


def take_in(
    state: State,
    tokens: Sequence[int],
    ends: Sequence[int] = (),
    *,
    n_out: int = 0,
    cut: bool = False,
) -> Plan:
    """Decode tokens for which there is room once the ``n_out`` oldest have left.

    The window may begin at the indices ``ends``.
    """
    ledger, counters, boundaries = state.ledger, state.counters, state.boundaries
    ops: tuple[Op, ...] = ()
    told: tuple[Happened, ...] = ()
    otherwise = partial(Plan, state, state)
    if n_out:
        leaving, ledger = ledger.leaving(n_out), ledger.evict(n_out)
        ops = _removal(leaving)
        counters = counters.with_evictions(1, n_out)
        told = _gone(leaving, cut=cut)
        otherwise = partial(evict, state, n_out, cut=cut)
        if boundaries:
            boundaries = later(boundaries, ledger.window_index)
    if ends:
        boundaries = merged(boundaries, ends)
    then = State(
        state.policy,
        state.pinned,
        state.choice,
        state.tape,
        ledger.append(len(tokens)),
        state.n_given,
        boundaries,
        counters,
        state.lanes,
        state.is_scattered,
        True,
        False,
        state.cause,
    )
    return Plan(state, then, ops, Rows(tokens, ledger.next_pos), ops, otherwise, told)


def merged(boundaries: tuple[int, ...], more: Sequence[int]) -> tuple[int, ...]:
    """Boundaries with others, which are not before those there are."""
    for index in more:
        if not boundaries or index > boundaries[-1]:
            boundaries = (*boundaries, index)
    return boundaries


def later(boundaries: tuple[int, ...], index: int) -> tuple[int, ...]:
    """Boundaries behind an index: those before it are of what was forgotten."""
    if not boundaries or boundaries[0] > index:
        return boundaries
    return tuple(place for place in boundaries if place > index)
