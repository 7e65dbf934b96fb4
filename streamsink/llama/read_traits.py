"""Traits of a model: from its header, and from what llama.cpp makes of it."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Collection, Sequence
from typing import cast

import llama_cpp.llama_cpp as llama
import numpy as np

from streamsink.gguf.header import Header
from streamsink.gguf.traits import Positions, Rope, Traits
from streamsink.llama.tokenizer import NativeTokenizer

# llama.h: enum llama_rope_type
ROPES: dict[int, Rope] = {-1: "none", 0: "norm", 2: "neox", 8: "mrope", 24: "vision", 40: "imrope"}
# Architectures that have ALiBi without saying so in the file (src/models: f_max_alibi_bias).
ALIBI = ("bloom", "refact", "jina-bert-v2")
# Architectures some of whose layers have no RoPE (src/models: use_rope, is_swa around
# ggml_rope_ext), where hparams.has_rope says that all have (src/llama-hparams.cpp).
SKIP_ROPE = (
    "afmoe", "cohere2", "cohere2moe", "exaone-moe", "llama4", "muse-glimmer", "smallthinker",
    "smollm3",
)  # fmt: skip
SKIP_ROPE_WITH_WINDOW = ("exaone4",)
BAICHUAN_13B = ("baichuan", 40)
"""Has ALiBi, and a RoPE type all the same (src/models/baichuan.cpp)."""
TEMPERATURE_LENGTH = {"llama4": 8192}
"""Where the file does not say it (src/models/llama4.cpp)."""
YARN_TENTHS = ("deepseek2", "deepseek32")
"""Whose files give a tenth of the multiplier (src/models/deepseek2.cpp)."""

# llama-model.cpp: load_tensors; llama-vocab.cpp.
_SWA_LAYER = re.compile(r"layer +(\d+) assigned to device \S+, is_swa = 1")
_COMPLAINT = re.compile(
    r"(missing pre-tokenizer type.*|unrecognized pre-tokenizer type.*|bad manual newline token.*"
    r"|special_\w+ is not in special_eog_ids.*|model vocab missing.*)"
)
TOLD = re.compile(f"{_SWA_LAYER.pattern}|{_COMPLAINT.pattern}")
"""What is listened for while a model is loaded."""

# Not in every llama-cpp-python that streamsink works with.
_is_diffusion = getattr(llama, "llama_model_is_diffusion", lambda _: False)


def read_traits(
    model: llama.llama_model_p,
    tokenizer: NativeTokenizer,
    header: Header,
    names: Collection[str],
    lines: Sequence[str],
) -> Traits:
    """Ask llama.cpp and the header about a model.

    Parameters
    ----------
    model : ctypes pointer
        A ``llama_model *``, its weights loaded or not.
    tokenizer : NativeTokenizer
        Its tokenizer.
    header : Header
        Of its file.
    names : collection of str
        Of the tensors in all its parts.
    lines : sequence of str
        What llama.cpp's log said while loading, of what `TOLD` is found in.
    """
    about = _About(header)
    template = llama.llama_model_chat_template(model, None)
    n_layer = int(llama.llama_model_n_layer(model))
    n_head = int(llama.llama_model_n_head(model))
    n_head_kv = about.by_layer("attention.head_count_kv", n_layer)
    n_embd_head = int(llama.llama_model_n_embd(model)) // max(1, n_head)
    n_ctx_train = int(llama.llama_model_n_ctx_train(model))
    scaling = about.text("rope.scaling.type", "none")
    scale = about.number("rope.scaling.factor", about.number("rope.scale_linear", 1)) or 1.0
    if scaling == "none" and scale != 1:
        scaling = "linear"  # so llama.cpp reads it (llama-model.cpp: load_hparams)
    rope = ROPES.get(int(llama.llama_model_rope_type(model)), "none")
    n_swa = int(llama.llama_model_n_swa(model))
    baichuan = (header.architecture, n_layer) == BAICHUAN_13B
    tenths = 10 if header.architecture in YARN_TENTHS else 1
    return Traits(
        architecture=header.architecture,
        description=_description(model),
        n_ctx_train=n_ctx_train,
        n_layer=n_layer,
        n_head=n_head,
        n_head_kv=n_head_kv or (int(llama.llama_model_n_head_kv(model)),) * n_layer,
        n_key=int(about.number("attention.key_length", n_embd_head)),
        n_value=int(about.number("attention.value_length", n_embd_head)),
        n_swa=n_swa,
        rope=rope,
        scaling=scaling,
        scale=scale,
        attention_factor=about.number("rope.scaling.attn_factor", 1),
        yarn_log_multiplier=tenths * about.number("rope.scaling.yarn_log_multiplier", 0),
        n_ctx_unscaled=int(about.number("rope.scaling.original_context_length", n_ctx_train)),
        positions="alibi" if baichuan else _positions(about, rope, names),
        skips_rope=baichuan
        or header.architecture in SKIP_ROPE
        or (n_swa > 0 and header.architecture in SKIP_ROPE_WITH_WINDOW),
        temperature_length=about.temperature_length(),
        recurrent=bool(llama.llama_model_is_recurrent(model)),
        hybrid=bool(llama.llama_model_is_hybrid(model)),
        encoder=bool(llama.llama_model_has_encoder(model)),
        decoder=bool(llama.llama_model_has_decoder(model)),
        causal=bool(about.number("attention.causal", 1)),
        diffusion=bool(_is_diffusion(model)),
        mla=about.has("attention.kv_lora_rank"),
        swa_layers=tuple(layer for layer in map(int, _found(_SWA_LAYER, lines)) if layer < n_layer),
        n_vocab=tokenizer.n_tokens,
        bos=tokenizer.bos_token,
        eos=tokenizer.eos_token,
        adds_bos=bool(llama.llama_vocab_get_add_bos(tokenizer.handle)),
        chat_template=template.decode("utf-8", "replace") if template else "",
        complaints=tuple(sorted(set(_found(_COMPLAINT, lines)))),
        sinks=any(name.endswith(".attn_sinks.weight") for name in names),
    )


def _description(model: llama.llama_model_p) -> str:
    """Architecture, parameters and type of the weights: ``llama 135M Q4_1``.

    llama.cpp's own guesses the parameters from the number of layers (llama-model.cpp: type_name):
    ``256M`` for this one.
    """
    buffer = ctypes.create_string_buffer(256)
    llama.llama_model_desc(model, buffer, 256)
    guessed = buffer.value.decode("utf-8", "replace")
    n_params = int(llama.llama_model_n_params(model))
    match guessed.split(" ", 2):
        case architecture, _, types if n_params:
            return f"{architecture} {_in_short(n_params)} {types}"
    return guessed


def _in_short(n: int) -> str:
    """A number of parameters as people say it: 135M, 1.5B."""
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if n >= size:
            short = n / size
            return (
                f"{short:.1f}{letter}" if letter == "B" and short < 10 else f"{short:.0f}{letter}"
            )
    return str(n)


def _positions(about: _About, rope: Rope, names: Collection[str]) -> Positions:
    if "position_embd.weight" in names:
        return "learned"
    if about.number("attention.max_alibi_bias", 0) > 0 or about.architecture in ALIBI:
        return "alibi"
    return "none" if rope == "none" else "rope"


def _found(pattern: re.Pattern[str], lines: Sequence[str]) -> list[str]:
    return [found for line in lines for found in pattern.findall(line)]


class _About:
    """A header's metadata under its architecture's prefix; what is of another type is not there."""

    def __init__(self, header: Header) -> None:
        self.architecture = header.architecture
        self._metadata = header.metadata

    def has(self, key: str) -> bool:
        return self._key(key) in self._metadata

    def number(self, key: str, default: float) -> float:
        value = self._metadata.get(self._key(key))
        return float(value) if isinstance(value, (bool, int, float)) else float(default)

    def text(self, key: str, default: str) -> str:
        value = self._metadata.get(self._key(key))
        return value if isinstance(value, str) else default

    def by_layer(self, key: str, n_layer: int) -> tuple[int, ...]:
        value = self._metadata.get(self._key(key))
        if isinstance(value, np.ndarray):
            return tuple(int(one) for one in cast("Sequence[int]", value.tolist()))[:n_layer]
        return ()

    def temperature_length(self) -> int:
        given = int(self.number("attention.temperature_length", 0))
        if self.number("attention.temperature_scale", 0) and not given:
            given = int(self.number("rope.scaling.original_context_length", 0))  # mistral3.cpp
        return given or TEMPERATURE_LENGTH.get(self.architecture, 0)

    def _key(self, key: str) -> str:
        return f"{self.architecture}.{key}"
