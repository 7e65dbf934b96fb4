"""What a context takes of the memory, before it is made: one estimate for all who ask."""

from __future__ import annotations

from streamsink.errors import MemoryBudgetError, setting
from streamsink.gguf.places import ALONE, CELL_STEP, Places, padded
from streamsink.gguf.settings import CacheSettings
from streamsink.gguf.traits import Traits
from streamsink.system.sizes import gib

PART = 0.95
"""Part of the free memory that a context may take: Linux would kill the process beyond."""


def n_lanes_of(n_ctx: int, settings: CacheSettings, traits: Traits, places: Places = ALONE) -> int:
    """Lanes of a context: as many as a batch has tokens for, and 1 where streams share it.

    A recurrent state cannot be divided into lanes. Layers with a sliding window run in them only as
    long as they see all there is: llama.cpp gives cells out of sight to other tokens if they belong
    to one sequence (llama-kv-cache.cpp: find_slot), the sink's among them; then lanes begin at
    different positions, and it refuses tokens that are written to several such sequences
    (llama-batch.cpp: init).
    """
    if places.n > 1 or traits.hybrid or 0 < traits.n_swa <= n_ctx:
        return 1
    n_lanes = max(1, min(settings.n_lanes, settings.n_batch - 1))
    if traits.scaling == "longrope" and n_ctx <= traits.n_ctx_unscaled:
        # One cell more, and llama.cpp takes the factors of long contexts (get_rope_factors).
        n_lanes = min(n_lanes, 1 + traits.n_ctx_unscaled - n_ctx)
    return n_lanes


def flash_of(settings: CacheSettings, *, offloads: bool) -> bool | None:
    """Whether attention is computed by flash attention; ``None`` leaves it to llama.cpp."""
    if settings.needs_flash:
        return True
    if settings.flash_attn is None and not offloads:
        return False
    return settings.flash_attn


def context_bytes(
    traits: Traits,
    settings: CacheSettings,
    n_ctx: int,
    *,
    swa_full: bool,
    places: Places = ALONE,
) -> int:
    """Bytes of a context's cache and of the largest thing that is computed in; an upper estimate.

    Parameters
    ----------
    traits : Traits
        The model.
    settings : CacheSettings
        The cache.
    n_ctx : int
        Live tokens that the cache must hold.
    swa_full : bool
        Whether sliding-window layers keep all cells, as a rotation needs. Without, they keep the
        window of every sequence and a batch (llama-kv-cache-iswa.cpp).
    places : Places
        Streams that share it; one by default.
    """
    n_lanes = n_lanes_of(n_ctx, settings, traits, places)
    n_cells = padded(places.n_cells(n_ctx, n_lanes))
    n_sequences = places.n_sequences(n_lanes)
    n_batch = max(settings.n_batch, n_sequences)
    n_windowed = n_cells
    if traits.n_swa and not swa_full:
        n_windowed = min(n_cells, padded(traits.n_swa * n_sequences + n_batch))
    cache = traits.cache_bytes(settings, n_cells, n_windowed)
    # Without flash attention the scores of a whole batch stand in memory, in f32.
    flash = flash_of(settings, offloads=False)
    n_seen = n_cells if places.unified else n_cells // places.n
    scores = 0 if flash else 4 * traits.n_head * min(n_batch, n_cells) * n_seen
    return round(cache + scores)


def require_memory(
    traits: Traits,
    settings: CacheSettings,
    n_ctx: int,
    free: int,
    *,
    swa_full: bool,
    places: Places = ALONE,
) -> None:
    """Refuse a context that would drive the machine out of memory.

    Parameters
    ----------
    traits, settings, n_ctx, swa_full, places
        See `context_bytes`.
    free : int
        Bytes that are free.

    Raises
    ------
    MemoryBudgetError
        It would; the message says how much would not.
    """
    needed = context_bytes(traits, settings, n_ctx, swa_full=swa_full, places=places)
    if needed > PART * free:
        fits = largest(traits, settings, n_ctx, free, swa_full=swa_full, places=places)
        of = n_ctx if places.n == 1 else f"{places.n} times {n_ctx}"
        raise MemoryBudgetError(
            f"a context of {of} tokens takes {gib(needed)}, and {gib(free)} are free: "
            f"lower {setting('n_ctx')} (about {fits} fit), or take "
            f"{setting('cache_type_k', 'q8_0')} and {setting('cache_type_v', 'q8_0')}"
        )


def largest(
    traits: Traits,
    settings: CacheSettings,
    most: int,
    free: int,
    *,
    swa_full: bool,
    places: Places = ALONE,
) -> int:
    """The largest context up to ``most`` tokens that memory has room for, in whole steps; or 0."""

    def fits(n_ctx: int) -> bool:
        return (
            context_bytes(traits, settings, n_ctx, swa_full=swa_full, places=places) <= PART * free
        )

    if fits(most):
        return most
    low, high = 0, most // CELL_STEP
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle * CELL_STEP) else (low, middle - 1)
    return low * CELL_STEP
