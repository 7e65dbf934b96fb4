"""How models are loaded and contexts made: llama.cpp's parameters from streamsink's settings."""

from __future__ import annotations

import llama_cpp.llama_cpp as llama

from streamsink.gguf.budget import flash_of, n_lanes_of
from streamsink.gguf.cache_types import CACHE_TYPES
from streamsink.gguf.places import ALONE, Places
from streamsink.gguf.settings import ROPE_SCALINGS, CacheSettings
from streamsink.gguf.traits import Traits
from streamsink.llama import amx
from streamsink.system.checked import whole
from streamsink.system.cores import cores

ALL_LAYERS = 999
MOST_LAYERS = 2**31 - 1


def model_params(n_gpu_layers: int | None) -> llama.llama_model_params:
    """How a model is loaded; ``None`` or below 0 puts all layers on a GPU, if there is one."""
    params = llama.llama_model_default_params()
    if n_gpu_layers is not None:
        n_gpu_layers = whole("n_gpu_layers", n_gpu_layers, -MOST_LAYERS, MOST_LAYERS)
    if n_gpu_layers is None or n_gpu_layers < 0:
        n_gpu_layers = ALL_LAYERS
    params.n_gpu_layers = n_gpu_layers if llama.llama_supports_gpu_offload() else 0
    if amx.is_broken():
        params.use_extra_bufts = False
    return params


def context_params(
    n_ctx: int,
    settings: CacheSettings,
    traits: Traits,
    *,
    offloads: bool,
    swa_full: bool,
    places: Places = ALONE,
) -> llama.llama_context_params:
    """How a context is made.

    Parameters
    ----------
    n_ctx : int
        Live tokens that the cache must hold.
    settings : CacheSettings
        The batch is also the physical one, so that a decode is one piece and fails as one.
    traits : Traits
        The model.
    offloads : bool
        Whether layers are on a GPU.
    swa_full : bool
        Whether sliding-window layers keep all cells, as a rotation needs.
    places : Places
        Streams that share it; one by default.
    """
    params = llama.llama_context_default_params()
    n_lanes = n_lanes_of(n_ctx, settings, traits, places)
    flash = flash_of(settings, offloads=offloads)
    params.n_ctx = places.n_cells(n_ctx, n_lanes)
    params.n_seq_max = places.n_sequences(n_lanes)
    # llama.cpp reserves a row of logits for every sequence, and aborts the process where a batch
    # has no room for them (llama-context.cpp: output_reserve).
    params.n_batch = params.n_ubatch = max(settings.n_batch, params.n_seq_max)
    params.n_threads, params.n_threads_batch = settings.n_threads(cores().n_usable)
    params.flash_attn_type = -1 if flash is None else int(flash)
    params.type_k = CACHE_TYPES[settings.cache_type_k].number
    params.type_v = CACHE_TYPES[settings.cache_type_v].number
    if settings.rope_scaling is not None:
        params.rope_scaling_type = ROPE_SCALINGS.index(settings.rope_scaling)
        params.rope_freq_scale = 1 / settings.rope_scale
    params.kv_unified = places.unified
    params.swa_full = swa_full
    params.no_perf = True
    return params
