"""Making a llama.cpp context, once there is memory for it."""

from __future__ import annotations

import llama_cpp.llama_cpp as llama

from streamsink.errors import ModelError, setting
from streamsink.gguf.budget import require_memory
from streamsink.gguf.places import ALONE, Places
from streamsink.gguf.settings import CacheSettings
from streamsink.llama.library import hearing
from streamsink.llama.params import context_params
from streamsink.llama.weights import Weights
from streamsink.system.interrupt import deferred
from streamsink.system.memory import available_bytes


def made_context(
    weights: Weights,
    n_ctx: int,
    settings: CacheSettings,
    *,
    swa_full: bool,
    places: Places = ALONE,
) -> llama.llama_context_p:
    """Make a context.

    Raises
    ------
    MemoryBudgetError
        It does not fit into memory.
    ModelError
        llama.cpp cannot make it.
    """
    if not weights.offloads:
        require_memory(
            weights.traits, settings, n_ctx, available_bytes(), swa_full=swa_full, places=places
        )
    params = context_params(
        n_ctx, settings, weights.traits, offloads=weights.offloads, swa_full=swa_full, places=places
    )
    context = None
    try:
        with deferred(), hearing() as said:
            context = llama.llama_init_from_model(weights.handle, params)
    except BaseException:
        if context:
            llama.llama_free(context)
        raise
    if not context:
        raise ModelError(
            f"llama.cpp cannot make a context of {n_ctx} tokens: "
            f"{said.reason or 'no reason given'}; lower {setting('n_ctx')}, or change "
            f"{setting('cache_type_k')} and {setting('cache_type_v')}"
        )
    return context
