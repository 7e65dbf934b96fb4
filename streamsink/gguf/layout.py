"""How many streams share a context, by what is exact and what is faster.

With a *pool* of cells for each, attention is computed over a stream's own cells, but only whole
sequences can be copied between pools: so the window rotates. In one *unified* pool a row's
attention runs over the cells of all streams, but a sink can be evaluated anew beside each.
*Separate* contexts are right for all and share no work: the weights are read for every stream.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from streamsink.errors import UsageError
from streamsink.gguf.preflight import Measured
from streamsink.gguf.settings import CacheSettings
from streamsink.gguf.traits import Traits, capabilities

LayoutName: TypeAlias = Literal["auto", "pools", "unified", "separate"]
LAYOUTS = ("auto", "pools", "unified", "separate")
MOST_STREAMS = 128
"""Two sequences each: llama.cpp has 256 in a context (llama-cparams.h: LLAMA_MAX_SEQ)."""
WEIGHTS_TO_CELLS = 2.0
"""How much larger the weights must be than the cells of all streams, for one pool to be worth its
attention over all of them. SmolLM2-135M, 4 x 512: 2.0, and 0.97 times as fast as apart;
Qwen2.5-0.5B: 16, and 1.23 times (docs/README.md, streams)."""


def choose_layout(
    name: LayoutName,
    n_streams: int,
    n_ctx: int,
    traits: Traits,
    settings: CacheSettings,
    measured: Measured,
    n_weight_bytes: int,
) -> tuple[LayoutName, str]:
    """Settle ``auto``.

    Parameters
    ----------
    name : {"auto", "pools", "unified", "separate"}
        What was asked for.
    n_streams, n_ctx : int
        Streams that are to decode together, and live tokens of each.
    traits, settings, measured
        The model, the cache, and what a trial found.
    n_weight_bytes : int
        Size of the weights.

    Returns
    -------
    LayoutName
        Not ``auto``.
    str
        Why, as a clause.

    Raises
    ------
    UsageError
        No such layout, or not on this model.
    """
    if name not in LAYOUTS:
        raise UsageError(f"layout {name!r} is not one of {', '.join(LAYOUTS)}")
    bars = {
        "pools": _bar_to_pools(traits, settings, measured),
        "unified": _bar_to_sharing(traits),
        "separate": "",
    }
    if name != "auto":
        if bars[name]:
            raise UsageError(f'layout "{name}" would be wrong here: {bars[name]}; use "auto"')
        return name, "as asked"
    if n_streams == 1:
        return "separate", "a single stream has all cells to itself"
    if not bars["pools"]:
        return "pools", "the window can rotate, and attention is computed over its own cells only"
    cells = n_streams * n_ctx * traits.cell_bytes(settings.cache_type_k, settings.cache_type_v)
    if bars["unified"] or n_weight_bytes < WEIGHTS_TO_CELLS * cells:
        why = bars["unified"] or "attention over the cells of all streams would take longer"
        return "separate", f"{bars['pools']}, and {why}" if why != bars["pools"] else why
    return "unified", f"{bars['pools']}, so sinks are evaluated anew in one pool for all"


def _bar_to_pools(traits: Traits, settings: CacheSettings, measured: Measured) -> str:
    """Why a pool for each would be wrong; empty where it is right."""
    able = capabilities(traits, settings, swa_full=True, shifts=True, measured=measured)
    return _bar_to_sharing(traits) or able.rotate.why


def _bar_to_sharing(traits: Traits) -> str:
    if traits.n_swa:
        return "of a sliding window's cells llama.cpp gives out those alone that are in sight"
    if traits.recurrent or traits.hybrid:
        return "a recurrent state cannot give up what a failed decode has left in it"
    if traits.scaling == "longrope":
        return "LongRoPE's factors follow the size of the whole context"
    return ""
