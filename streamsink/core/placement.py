"""Bringing sink and window side by side again after an eviction.

RoPE attention depends on the difference of two positions only (StreamingLLM, section 3.2, assigns
positions inside the cache for that reason), so a gap can be closed from either side:

* ``rotate`` moves the window down, llama.cpp's context shift: ``seq_add``, upon which llama.cpp
  rotates every key of the cache before the next decode;
* ``reanchor`` moves the sink up: its tokens, which attend only to one another, are evaluated anew
  right below the window. No key is ever rotated, so nothing is lost to rounding, and models whose
  keys llama.cpp cannot rotate rightly (YaRN, M-RoPE) stream all the same.

Which of the two is right depends on the model, which is cheaper on the policy; how they are done is
in `streamsink.core.moves`.
"""

from __future__ import annotations

from typing import NamedTuple

from streamsink.core.capabilities import Capabilities
from streamsink.core.policy import (
    Placement,
    SinkPolicy,
    default_slack,
    discard_size,
    move_cost,
)
from streamsink.errors import CapabilityError, setting

CHEAP = 0.01
"""Part of the time up to which a sink is evaluated again though a shift would take less."""
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
    n_discard : int
        Tokens of an eviction from a full cache, where it need not take out what is whole.
    """

    placement: Placement
    slack: int
    why: str
    n_discard: int


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
    n_discard = discard_size(policy, n_ctx, n_keep)
    return Choice(placement, min(slack, MOST_SLACK), why, n_discard)


def _placement(
    policy: SinkPolicy, able: Capabilities, n_keep: int, n_ctx: int
) -> tuple[Placement, str]:
    verdicts = {"rotate": able.rotate, "reanchor": able.reanchor}
    if policy.placement != "auto":
        level, why = verdicts[policy.placement]
        if level == "impossible" or (level == "approximate" and not policy.force):
            is_near = level == "approximate"
            or_force = f", or {setting('force', True)} to have it all the same" if is_near else ""
            raise CapabilityError(
                f"{setting('placement', policy.placement)} would be wrong here: {why}; "
                f"use {setting('placement', 'auto')}{or_force}"
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
    if again <= max(CHEAP, shift):
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
