"""Bringing sink and window side by side again after an eviction.

RoPE attention depends on the difference of two positions only (StreamingLLM, section 3.2, assigns
positions inside the cache for that reason), so a gap can be closed from either side:

* ``rotate`` moves the window down, llama.cpp's context shift: ``seq_add``, upon which llama.cpp
  rotates every key of the cache before the next decode;
* ``reanchor`` moves the sink up: its tokens, which attend only to one another, are evaluated anew
  right below the window. No key is ever rotated, so nothing is lost to rounding, and models whose
  keys llama.cpp cannot rotate rightly (YaRN, M-RoPE) stream all the same.

Each function here changes cache and ledger together, in an order that a failure cannot tear apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

from streamsink.core.ledger import Ledger, Missing
from streamsink.core.policy import SHARE, Placement, SinkPolicy, default_slack, move_cost
from streamsink.engine.context import MAIN, SCRATCH, Backend, Capabilities
from streamsink.errors import CapabilityError, TornError

Pause: TypeAlias = Callable[[], object]

MOST_SLACK = 65_536
"""A sink that is "never" brought up is so after this many positions: they cannot grow for ever."""


class Choice(NamedTuple):
    """The placement in force.

    Attributes
    ----------
    placement : {"rotate", "reanchor"}
        Which side moves.
    slack : int
        Positions the sink may trail.
    why : str
        One clause that says why ``auto`` chose so.
    """

    placement: Placement
    slack: int
    why: str


def choose(policy: SinkPolicy, able: Capabilities, n_keep: int, n_ctx: int) -> Choice:
    """Settle ``auto`` and the default slack for one model and context.

    Raises
    ------
    CapabilityError
        The placement asked for would be wrong on this model.
    """
    if able.no_stream:
        raise CapabilityError(f"this model cannot stream: {able.no_stream}")
    placement, why = _placement(policy, able, n_keep, n_ctx)
    slack = policy.slack
    if slack is None:
        slack = default_slack(move_cost(placement, n_keep), n_ctx, able.n_ctx_train)
    return Choice(placement, min(slack, MOST_SLACK), why)


def _placement(
    policy: SinkPolicy, able: Capabilities, n_keep: int, n_ctx: int
) -> tuple[Placement, str]:
    verdicts = {"rotate": able.rotate, "reanchor": able.reanchor}
    if policy.placement != "auto":
        level, why = verdicts[policy.placement]
        if level == "impossible" or (level == "approximate" and not policy.force):
            raise CapabilityError(
                f"--placement {policy.placement} would be wrong here: {why}; "
                f"use --placement auto{', or --force it' if level == 'approximate' else ''}"
            )
        return policy.placement, f"as asked, though {why}" if why else "as asked"
    right: list[Placement] = [
        name for name in ("rotate", "reanchor") if verdicts[name].level == "exact"
    ]
    if not right:
        raise CapabilityError(
            f"no placement is right on this model: {able.rotate.why}; {able.reanchor.why}"
        )
    if right == ["reanchor"]:
        return "reanchor", able.rotate.why
    if right == ["rotate"]:
        return "rotate", able.reanchor.why
    again, shift = (_share(name, policy, able, n_keep, n_ctx) for name in ("reanchor", "rotate"))
    if again <= max(SHARE, shift):
        return "reanchor", "no key is ever rotated, and the sink is cheap to evaluate again"
    return "rotate", (
        f"evaluating a sink of {n_keep} again would take {again:.0%} of the time of decoding, "
        f"and shifting {shift:.0%}, with the slack that a window of {n_ctx} and a trained context "
        f"of {able.n_ctx_train} leave"
    )


def _share(
    placement: Placement, policy: SinkPolicy, able: Capabilities, n_keep: int, n_ctx: int
) -> float:
    """What moves take, of the time of decoding, if every eviction is of one token."""
    cost = move_cost(placement, n_keep)
    slack = policy.slack
    if slack is None:
        slack = default_slack(cost, n_ctx, able.n_ctx_train)
    return cost / (slack + 1)


def rotate(backend: Backend, ledger: Ledger) -> None:
    """Close every gap by moving the window down. One K-shift, at the next decode."""
    for span, delta in ledger.shifts():
        backend.shift(MAIN, span.start, span.stop, delta)
        ledger.move(span, delta)
    ledger.close_gaps()


def reanchor(backend: Backend, ledger: Ledger, pause: Pause = lambda: None) -> None:
    """Close every gap by evaluating the head anew right below the window.

    The old head leaves first: its cells are the ones that the new head takes, so that the cache
    needs no spare cells and llama.cpp does not compute attention over them (256 more cells, its
    granularity, cost 7 % of a decode at n_ctx 2,048). Should the evaluation fail, the ledger still
    has the tokens, and `Ledger.missing` says that they must be evaluated before anything else.

    Raises
    ------
    DecodeError
        The sink could not be evaluated; calling again tries again.
    """
    start = ledger.head_place()
    ledger.missing = Missing.HEAD
    # All that stands below the window, also what an attempt that failed has left there.
    backend.remove(MAIN, 0, ledger.runs[-1].pos)
    evaluate(backend, ledger.head_tokens(), start, SCRATCH, pause)
    backend.copy(SCRATCH, MAIN, start, -1)
    backend.remove(SCRATCH, 0, -1)
    ledger.place_head(start)
    ledger.missing = Missing.NOTHING


def reevaluate(backend: Backend, ledger: Ledger, pause: Pause = lambda: None) -> None:
    """Evaluate all live tokens anew from position 0, for models that cannot rotate.

    What the window remembered of tokens long evicted goes with it.

    Raises
    ------
    DecodeError
        The cache is empty; the ledger still has the tokens, and calling again tries again.
    """
    ledger.missing = Missing.ALL
    backend.clear()
    evaluate(backend, list(ledger.tokens()), 0, MAIN, pause)
    ledger.place(0)
    ledger.missing = Missing.NOTHING


def rebase(backend: Backend, ledger: Ledger) -> None:
    """Bring positions back to 0 and after, before they grow too large for 32-bit RoPE angles."""
    if backend.capabilities.rotate.level != "exact":
        reevaluate(backend, ledger)
        return
    delta = -ledger.first_pos
    backend.shift(MAIN, ledger.first_pos, ledger.next_pos, delta)
    ledger.rebase(delta)


def repair(backend: Backend, ledger: Ledger, pause: Pause = lambda: None) -> None:
    """Bring back what an interrupted `reanchor` or `reevaluate` left out of the cache."""
    if ledger.missing is Missing.HEAD:
        reanchor(backend, ledger, pause)
    elif ledger.missing is Missing.ALL:
        reevaluate(backend, ledger, pause)


def compact(backend: Backend, ledger: Ledger) -> None:
    """Move scattered cells together, once nothing is missing.

    Raises
    ------
    TornError
        The cells could not be put back; `repair` evaluates the tokens again.
    """
    repair(backend, ledger)
    try:
        backend.compact(MAIN)
    except TornError:
        ledger.missing = Missing.ALL
        raise


def evaluate(
    backend: Backend, tokens: Sequence[int], pos: int, seq: int, pause: Pause = lambda: None
) -> None:
    """Decode tokens into a sequence, piece by piece, and nothing else stays in it.

    Between two pieces ``pause`` is called; what it raises ends the call.
    """
    backend.remove(seq, 0, -1)
    for at in range(0, len(tokens), backend.n_batch):
        if at:
            pause()
        backend.decode(tokens[at : at + backend.n_batch], pos + at, seq, "last")
