"""With which context and cache to begin on a model that was inspected: one that a stream opens."""

from __future__ import annotations

from dataclasses import dataclass

from streamsink.core.placement import choose
from streamsink.core.policy import SinkPolicy
from streamsink.errors import CapabilityError
from streamsink.gguf.budget import PART, context_bytes, largest
from streamsink.gguf.inspection import Inspection, Need, cache_settings
from streamsink.gguf.settings import CacheSettings
from streamsink.system.sizes import gib

ROOM = 0.9
"""Part of the free memory that a recommended context may take, its weights included."""
LEAST = 256
"""Tokens of context in which a question and its answer find room."""
USUAL = 2048
"""Tokens of context to try where none of those inspected fits."""


@dataclass(frozen=True, slots=True)
class Recommendation:
    """What to begin with.

    Attributes
    ----------
    n_ctx : int
        Tokens of context.
    settings : CacheSettings
        Those of the inspection, with types of the cache.
    policy : SinkPolicy
        Its placement is one that is right on the model.
    """

    n_ctx: int
    settings: CacheSettings
    policy: SinkPolicy


def fits(found: Inspection, need: Need, free: int, *, swa_full: bool = False) -> bool:
    """Whether a context and the weights fit, by llama.cpp's own figures and by ours.

    A stream is opened or refused by ours (`streamsink.gguf.budget`): what is said to fit is opened.

    Parameters
    ----------
    found : Inspection
        The model.
    need : Need
        What llama.cpp says of the context.
    free : int
        Bytes that are free where the layers go.
    swa_full : bool
        Whether sliding-window layers are to keep all cells; llama.cpp was asked without.
    """
    left = free - found.weight_bytes
    if need.cache_bytes + need.scratch_bytes > left:
        return False
    if found.gpu_bytes is not None:  # there llama.cpp alone decides
        return True
    (settings,) = (
        settings
        for settings in cache_settings(found.settings, found.traits)
        if settings.cache_type_k == need.cache_type
    )
    return context_bytes(found.traits, settings, need.n_ctx, swa_full=swa_full) <= PART * left


def recommend(found: Inspection, free: int) -> Recommendation | str:
    """The largest context, of those inspected, that fits; or why there is none.

    Parameters
    ----------
    found : Inspection
        The model.
    free : int
        Bytes that are free where its layers go.
    """
    why = ""
    for policy in SinkPolicy(), SinkPolicy(placement="rotate"):
        # As `Model.stream` makes the context.
        swa_full = policy.placement == "rotate"
        streaming = []
        for settings in cache_settings(found.settings, found.traits):
            try:
                choose(policy, found.able(settings, swa_full=swa_full), 0, LEAST)
            except CapabilityError as error:
                why = why or str(error)
            else:
                streaming.append(settings)
        if streaming:
            return _fitting(found, int(ROOM * free), streaming, policy)
    return why


def _fitting(
    found: Inspection, free: int, streaming: list[CacheSettings], policy: SinkPolicy
) -> Recommendation | str:
    swa_full = policy.placement == "rotate"
    within = found.traits.n_ctx_within(found.settings)
    # The types stand in the order of their precision: a larger context counts more.
    fitting = [
        (need.n_ctx, settings)
        for settings in streaming
        for need in found.needs
        if need.cache_type == settings.cache_type_k
        and min(LEAST, within) <= need.n_ctx <= within
        and fits(found, need, free, swa_full=swa_full)
    ]
    if fitting:
        return Recommendation(*max(fitting, key=lambda one: one[0]), policy)
    left = free - found.weight_bytes - min((need.scratch_bytes for need in found.needs), default=0)
    for settings in streaming:
        n_ctx = largest(found.traits, settings, min(USUAL, within), left, swa_full=swa_full)
        if n_ctx:
            return Recommendation(n_ctx, settings, policy)
    return (
        f"its weights take {gib(found.weight_bytes)} of {gib(free)}, the part of the free memory "
        "that may be used, which leaves no room for a context"
    )
