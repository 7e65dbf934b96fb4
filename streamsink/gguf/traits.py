"""What a model is like, and what that lets a stream do with its cache.

The traits come from the file's header and from what llama.cpp makes of it; the verdicts follow from
the traits and the settings alone, so that they are the same for a loaded model and for one that
was only looked at.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from streamsink.core.capabilities import EXACT, Capabilities, Verdict
from streamsink.errors import CapabilityError, setting
from streamsink.gguf.cache_types import CACHE_TYPES
from streamsink.gguf.preflight import FAR, Measured
from streamsink.gguf.settings import CacheSettings

Rope: TypeAlias = Literal["none", "norm", "neox", "mrope", "vision", "imrope"]
Positions: TypeAlias = Literal["rope", "alibi", "learned", "none"]

# A quantised K is shifted by way of a Hadamard matrix, which llama.cpp makes for heads of so many
# dimensions only; without one the shift takes the process with it (llama-kv-cache.cpp:
# build_rope_shift; https://github.com/ggml-org/llama.cpp/pull/25636).
HADAMARD = 64
TOLERANCE = 0.3
"""Part of the spread of logits by which rounding may move them in a trial: up to 0.09 was measured
on SmolLM2-135M Q4_1 and Q8_0, and 1.1 to 2.1 with YaRN x 4."""
EXACT_TOLERANCE, NOISES = 0.02, 10
"""The same where rounding is less: in F32 it is 1e-6, and layers without RoPE make 0.16 and more
(SmolLM3, Cohere2). What a mere change of place does is the measure of rounding."""
BLOCK = 32
"""Elements of a block of every quantised type of cache (ggml-common.h)."""
GAIN_TOLERANCE = 1e-6
"""A gain this near to 1 is one, in f32."""


@dataclass(frozen=True, slots=True)
class Traits:
    """What a model is like.

    Attributes
    ----------
    architecture : str
        llama.cpp's name of it.
    description : str
        Family, size and quantisation in llama.cpp's words.
    n_ctx_train : int
        Tokens of context that the model was trained on, its own RoPE scaling included.
    n_layer, n_head : int
        Layers, and attention heads of the first one.
    n_head_kv : tuple of int
        Heads of keys and values by layer.
    n_key, n_value : int
        Dimensions of a key and of a value of one head.
    n_swa : int
        Width of the sliding window that some layers have; 0 without.
    rope : str
        Which dimensions are rotated together (llama.h: enum llama_rope_type).
    scaling : str
        How RoPE is stretched: none, linear, yarn, longrope.
    scale : float
        By which factor.
    attention_factor, yarn_log_multiplier : float
        What else the file says of the gain of rotated keys.
    n_ctx_unscaled : int
        The trained context before RoPE was stretched.
    positions : str
        How a position enters: rope, alibi, learned, none.
    skips_rope : bool
        Whether some layers have no RoPE, which llama.cpp's K-shift does not know of.
    temperature_length : int
        Positions after which the model attends more sharply; 0 where it does not.
    recurrent, hybrid, encoder, decoder, causal, diffusion : bool
        What kind of network it is.
    mla : bool
        Whether keys and values are kept as one latent vector.
    sinks : bool
        Whether the model has learned attention sinks of its own.
    swa_layers : tuple of int
        Layers with the sliding window.
    n_vocab : int
        Tokens of the vocabulary.
    bos, eos : int or None
        The tokens that begin and end a text.
    adds_bos : bool
        Whether a text is to begin with BOS.
    chat_template : str
        The Jinja template of a chat; empty where there is none.
    complaints : tuple of str
        What llama.cpp finds odd in the vocabulary.
    """

    architecture: str
    description: str
    n_ctx_train: int
    n_layer: int
    n_head: int
    n_head_kv: tuple[int, ...]
    n_key: int
    n_value: int
    n_swa: int
    rope: Rope
    scaling: str
    scale: float
    attention_factor: float
    yarn_log_multiplier: float
    n_ctx_unscaled: int
    positions: Positions
    skips_rope: bool
    temperature_length: int
    recurrent: bool
    hybrid: bool
    encoder: bool
    decoder: bool
    causal: bool
    diffusion: bool
    mla: bool
    sinks: bool
    swa_layers: tuple[int, ...]
    n_vocab: int
    bos: int | None
    eos: int | None
    adds_bos: bool
    chat_template: str
    complaints: tuple[str, ...]

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Traits:
        """Traits that were written as JSON."""
        lists = {key: tuple(value) for key, value in data.items() if isinstance(value, list)}
        return cls(**{**data, **lists})

    def cell_bytes(self, type_k: str, type_v: str) -> float:
        """Bytes that one token takes in a cache of these types; an upper estimate."""
        return sum(self.n_head_kv) * self._head_bytes(type_k, type_v)

    def cache_bytes(self, settings: CacheSettings, n_cells: int, n_windowed: int) -> float:
        """Bytes of a cache; an upper estimate.

        Parameters
        ----------
        settings : CacheSettings
            Types of keys and values.
        n_cells, n_windowed : int
            Cells of a layer, and of one with the sliding window.
        """
        windowed = {*self.swa_layers}
        heads = (
            n_head * (n_windowed if layer in windowed else n_cells)
            for layer, n_head in enumerate(self.n_head_kv)
        )
        return sum(heads) * self._head_bytes(settings.cache_type_k, settings.cache_type_v)

    def _head_bytes(self, type_k: str, type_v: str) -> float:
        """Bytes of a key and a value of one head."""
        key, value = CACHE_TYPES[type_k], CACHE_TYPES[type_v]
        return self.n_key * key.element_bytes + self.n_value * value.element_bytes

    def n_ctx_within(self, settings: CacheSettings) -> int:
        """Tokens of context that the model is good for under these settings' RoPE scaling."""
        if settings.rope_scaling is None:
            return self.n_ctx_train
        return int(self.n_ctx_unscaled * settings.rope_scale)

    def shift_gain(self, settings: CacheSettings) -> float:
        """By what one K-shift multiplies a key (llama-context.cpp; ggml-cpu/ops.cpp: rope_yarn).

        Rotating a key that was rotated already applies the scaling's gain a second time.
        """
        scaling, scale = self.scaling, self.scale
        if settings.rope_scaling is not None:
            scaling, scale = settings.rope_scaling, settings.rope_scale
        if scaling != "yarn" or scale <= 1:
            return self.attention_factor
        multiplier = self.yarn_log_multiplier
        own = multiplier if multiplier and self.architecture == "deepseek2" else 1.0
        logarithm = 0.1 * math.log(scale)
        return self.attention_factor * (1 + own * logarithm) / (1 + multiplier * logarithm)


def check_types(traits: Traits, settings: CacheSettings) -> None:
    """Refuse keys and values that a type's blocks cannot hold head by head.

    llama.cpp checks it under flash attention only (llama-context.cpp: llama_init_from_model), and
    reads across the blocks, or aborts, without.

    Raises
    ------
    CapabilityError
        A head is no whole number of blocks.
    """
    for option, name, what, size in (
        ("cache_type_k", settings.cache_type_k, "keys", traits.n_key),
        ("cache_type_v", settings.cache_type_v, "values", traits.n_value),
    ):
        if CACHE_TYPES[name].quantised and size % BLOCK:
            raise CapabilityError(
                f"{setting(option, name)} is not possible on this model: its {what} have "
                f"{size} dimensions, and {name} goes by {BLOCK}; use f16"
            )


def capabilities(
    traits: Traits, settings: CacheSettings, *, swa_full: bool, shifts: bool, measured: Measured
) -> Capabilities:
    """What streaming may do to a cache.

    Parameters
    ----------
    traits : Traits
        The model.
    settings : CacheSettings
        The cache.
    swa_full : bool
        Whether sliding-window layers keep all cells.
    shifts : bool
        Whether llama.cpp says that it can shift this cache (``llama_memory_can_shift``).
    measured : Measured
        What a trial found: it has the last word on what the traits call exact.
    """
    rotate = _rotate(traits, settings, swa_full=swa_full, shifts=shifts)
    if rotate == EXACT and measured.shift > min(
        TOLERANCE, EXACT_TOLERANCE + NOISES * measured.place
    ):
        why = f"K-shifts moved the logits by {measured.shift:.0%} of their spread in a trial"
        rotate = Verdict("approximate", why)
    reanchor = _reanchor(traits)
    if reanchor == EXACT and measured.place > TOLERANCE:
        why = f"{FAR} positions on, its logits were {measured.place:.0%} of their spread away"
        reanchor = Verdict("approximate", why)
    return Capabilities(
        n_ctx_train=traits.n_ctx_within(settings),
        rotate=rotate,
        reanchor=reanchor,
        no_stream=_no_stream(traits),
        takes_back=not (traits.hybrid or traits.recurrent),
        sight=traits.n_swa,
    )


def _rotate(traits: Traits, settings: CacheSettings, *, swa_full: bool, shifts: bool) -> Verdict:
    type_k = settings.cache_type_k
    if traits.rope in ("mrope", "vision", "imrope"):
        return Verdict("impossible", "llama.cpp cannot shift M-RoPE positions")
    if CACHE_TYPES[type_k].quantised and (
        traits.n_key % HADAMARD or "LLAMA_ATTN_ROT_DISABLE" in os.environ
    ):
        why = f"llama.cpp cannot shift {type_k} keys of {traits.n_key} dimensions"
        return Verdict("impossible", why)
    if type_k == "bf16":  # RoPE aborts the process (ggml-cpu/ops.cpp: ggml_compute_forward_rope)
        return Verdict("impossible", "llama.cpp cannot shift bf16 keys")
    if traits.n_swa and not swa_full:
        why = "a sliding-window cache that holds the window only cannot be shifted"
        return Verdict("impossible", why)
    if not shifts:
        return Verdict("impossible", f"llama.cpp cannot shift a cache of {traits.architecture}")
    if traits.skips_rope:
        why = "llama.cpp's K-shift would rotate the keys of layers that have no RoPE"
        return Verdict("approximate", why)
    gain = traits.shift_gain(settings)
    if abs(gain - 1) > GAIN_TOLERANCE:
        scaling = settings.rope_scaling or traits.scaling
        why = f"every K-shift under {scaling} multiplies the keys by {gain:.3g} once more"
        return Verdict("approximate", why)
    if type_k.startswith(("q4", "q5", "iq4")):
        return Verdict("approximate", f"{type_k} keys would be quantised anew at every shift")
    return EXACT


def _reanchor(traits: Traits) -> Verdict:
    if traits.hybrid:
        why = "its recurrent state cannot be evaluated beside the stream"
        return Verdict("impossible", why)
    if traits.temperature_length:
        why = (
            "its positions grow, and the model attends more sharply from position "
            f"{traits.temperature_length} on"
        )
        return Verdict("approximate", why)
    return EXACT


def _no_stream(traits: Traits) -> str:
    if traits.encoder or not traits.decoder:
        return "it has an encoder; streams need a decoder-only model"
    if not traits.causal:
        return "its tokens see later ones; streams need a model that reads from left to right"
    if traits.diffusion:
        return "it fills in text by diffusion; streams need a model that writes token after token"
    if traits.recurrent:
        return "it is recurrent and has no window to manage"
    if traits.positions == "learned":
        return "its positions are learned one by one and end with the trained context"
    return ""
