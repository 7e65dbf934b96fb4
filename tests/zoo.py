"""A zoo of tiny seeded GGUF models: one for each way in which tokens see one another.

Each family is drawn by a short function; its decorator states, as data, what streamsink has to find
out about the file and what a stream may do with it. The names of metadata and tensors are those of
``src/llama-arch.cpp`` in llama.cpp, and a family's docstring names the file of ``src/models`` that
reads it.

As in `tests.tiny_gguf` the weights are random but not small: attention is far from uniform, so that
a wrong mask or a wrong position changes the logits by far more than rounding does.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import gguf
import numpy as np
from numpy.typing import NDArray

from tests.tiny_gguf import BOS, CHATML, EOS, IM_END, MERGES, SPECIALS, vocabulary

Array: TypeAlias = NDArray[np.float32]
Value: TypeAlias = "bool | int | float | str | list[int] | list[str]"
Level: TypeAlias = Literal["exact", "approximate", "impossible"]

N_EMBD, N_HEAD, N_HEAD_KV, HEAD_DIM, N_FF = 64, 4, 2, 16, 128
N_EXPERT, N_EXPERT_USED = 4, 2
N_VOCAB = len(vocabulary())
N_CTX, N_CTX_ORIGINAL = 128, 64
"""Trained context, and the one before it was stretched."""
N_SWA = 32
"""Width of a sliding window."""
EPS = 1e-5
SHARPNESS = 1.5
"""Standard deviation of an entry of q or k; a score then has about its square."""
LOGITS = 2.0
"""Standard deviation of a logit, roughly."""


# -- a model as its file has it -----------------------------------------------------------------


@dataclass(frozen=True)
class ZooModel:
    """Metadata and weights, before they are a file.

    Attributes
    ----------
    architecture
        llama.cpp's name of it.
    metadata
        By key, without the architecture's prefix.
    weights
        Float32 arrays by GGUF tensor name; a matrix is (outputs, inputs).
    """

    architecture: str
    metadata: Mapping[str, Value]
    weights: Mapping[str, Array]

    def write(self, path: Path) -> Path:
        """Write the model as GGUF and return `path`."""
        writer = gguf.GGUFWriter(path, self.architecture)
        writer.add_name("streamsink zoo")
        writer.add_file_type(gguf.LlamaFileType.ALL_F32)
        keys = {f"{self.architecture}.{key}": value for key, value in self.metadata.items()}
        for key, value in {**keys, **_tokenizer()}.items():
            _ADD[type(value)](writer, key, value)
        for name, array in self.weights.items():
            writer.add_tensor(name, array)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path


_ADD: dict[type, Callable[[gguf.GGUFWriter, str, Value], None]] = {
    bool: gguf.GGUFWriter.add_bool,
    int: gguf.GGUFWriter.add_uint32,
    float: gguf.GGUFWriter.add_float32,
    str: gguf.GGUFWriter.add_string,
    list: gguf.GGUFWriter.add_array,
}


def _tokenizer() -> dict[str, Value]:
    """The tokenizer and chat template of `tests.tiny_gguf`."""
    tokens = vocabulary()
    n_normal = len(tokens) - len(SPECIALS)
    control, normal = int(gguf.TokenType.CONTROL), int(gguf.TokenType.NORMAL)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [control] * len(SPECIALS) + [normal] * n_normal,
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": SPECIALS.index(BOS),
        "tokenizer.ggml.eos_token_id": SPECIALS.index(EOS),
        "tokenizer.ggml.eot_token_id": SPECIALS.index(IM_END),
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.token_type_count": 2,  # BERT's kinds of sentence
        "tokenizer.chat_template": CHATML,
    }


# -- drawing ------------------------------------------------------------------------------------


class Draft:
    """A model in the making: what the families have in common."""

    def __init__(self, architecture: str, seed: int, n_layer: int = 3, n_embd: int = N_EMBD):
        self._rng = np.random.default_rng(seed)
        self.architecture = architecture
        self.n_layer = n_layer
        self.n_embd = n_embd
        self.weights: dict[str, Array] = {}
        self.metadata: dict[str, Value] = {
            "vocab_size": N_VOCAB,
            "context_length": N_CTX,
            "block_count": n_layer,
            "embedding_length": n_embd,
            "feed_forward_length": N_FF,
            "attention.head_count": N_HEAD,
            "attention.head_count_kv": N_HEAD_KV,
        }

    def done(self, **metadata: Value) -> ZooModel:
        """The model, with this metadata too: ``rope__freq_base`` is ``rope.freq_base``."""
        more = {key.replace("__", "."): value for key, value in metadata.items()}
        return ZooModel(self.architecture, {**self.metadata, **more}, self.weights)

    def layers(self) -> list[str]:
        """Prefixes of the layers' tensors."""
        return [f"blk.{i}." for i in range(self.n_layer)]

    def matrix(self, name: str, *shape: int, gain: float = 1.0) -> None:
        """Draw a matrix that turns entries of unit variance into entries of variance gain²."""
        draw = self._rng.normal(0.0, gain / np.sqrt(shape[-1]), shape)
        self.weights[f"{name}.weight"] = draw.astype(np.float32)

    def norm(self, name: str, size: int | None = None, gain: float = 1.0) -> None:
        """Draw a norm's weights: about `gain`, but none equal to it, so that a lack shows."""
        draw = self._rng.uniform(0.7, 1.3, size or self.n_embd) * gain
        self.weights[f"{name}.weight"] = draw.astype(np.float32)

    def bias(self, name: str, *shape: int) -> None:
        """Draw a bias, large enough to show."""
        self.weights[f"{name}.bias"] = self._rng.normal(0.0, 0.3, shape).astype(np.float32)

    def normal(self, name: str, *shape: int, gain: float = 1.0) -> None:
        """Draw a tensor of unrelated numbers, its name as it is."""
        self.weights[name] = self._rng.normal(0.0, gain, shape).astype(np.float32)

    def uniform(self, name: str, low: float, high: float, *shape: int) -> None:
        """Draw a tensor of numbers between bounds, its name as it is."""
        self.weights[name] = self._rng.uniform(low, high, shape).astype(np.float32)

    def ends(self, *, tied: bool = False, bias: bool = False, gain: float = LOGITS) -> None:
        """Embedding, last norm and output matrix. Tied, the embedding is the output matrix too."""
        first = gain if tied else float(np.sqrt(self.n_embd))
        self.matrix("token_embd", N_VOCAB, self.n_embd, gain=first)
        self.norm("output_norm")
        if bias:
            self.bias("output_norm", self.n_embd)
        if not tied:
            self.matrix("output", N_VOCAB, self.n_embd, gain=gain)

    def queries(self, at: str, *, bias: bool = False) -> None:
        """Three matrices for q, k and v."""
        kv = N_HEAD_KV * HEAD_DIM
        for name, size, gain in (("q", N_EMBD, SHARPNESS), ("k", kv, SHARPNESS), ("v", kv, 1.0)):
            self.matrix(f"{at}attn_{name}", size, self.n_embd, gain=gain)
            if bias:
                self.bias(f"{at}attn_{name}", size)

    def fused_queries(self, at: str, n_head_kv: int = N_HEAD_KV, *, bias: bool = False) -> None:
        """One matrix for q, k and v together."""
        kv = n_head_kv * HEAD_DIM
        size = N_EMBD + 2 * kv
        self.matrix(f"{at}attn_qkv", size, self.n_embd)
        self.weights[f"{at}attn_qkv.weight"][: N_EMBD + kv] *= SHARPNESS
        if bias:
            self.bias(f"{at}attn_qkv", size)

    def normed_queries(self, at: str, *sizes: int) -> None:
        """Norms of q and k: it is these, then, that say how sharp attention is."""
        for name, size in zip("qk", sizes or (HEAD_DIM, HEAD_DIM), strict=True):
            self.norm(f"{at}attn_{name}_norm", size, SHARPNESS)

    def output(self, at: str, *, bias: bool = False) -> None:
        """What comes after attention."""
        self.matrix(f"{at}attn_output", self.n_embd, N_EMBD)
        if bias:
            self.bias(f"{at}attn_output", self.n_embd)

    def norms(self, at: str, *names: str, bias: bool = False) -> None:
        """Norms of a layer."""
        for name in names or ("attn_norm", "ffn_norm"):
            self.norm(at + name)
            if bias:
                self.bias(at + name, self.n_embd)

    def gated(self, at: str) -> None:
        """A feed-forward network with a gate."""
        self.matrix(f"{at}ffn_gate", N_FF, self.n_embd)
        self.plain(at)

    def plain(self, at: str, *, bias: bool = False, n_up: int = N_FF) -> None:
        """A feed-forward network without one."""
        self.matrix(f"{at}ffn_up", n_up, self.n_embd)
        self.matrix(f"{at}ffn_down", self.n_embd, N_FF)
        if bias:
            self.bias(f"{at}ffn_up", n_up)
            self.bias(f"{at}ffn_down", self.n_embd)

    def experts(self, at: str, *, bias: bool = False) -> None:
        """Experts, and what chooses among them."""
        n_ff = N_FF // 2
        self.matrix(f"{at}ffn_gate_inp", N_EXPERT, self.n_embd, gain=2.0)
        self.matrix(f"{at}ffn_gate_exps", N_EXPERT, n_ff, self.n_embd)
        self.matrix(f"{at}ffn_up_exps", N_EXPERT, n_ff, self.n_embd)
        self.matrix(f"{at}ffn_down_exps", N_EXPERT, self.n_embd, n_ff)
        self.metadata |= {
            "expert_count": N_EXPERT,
            "expert_used_count": N_EXPERT_USED,
            "expert_feed_forward_length": n_ff,
        }
        if bias:
            self.bias(f"{at}ffn_gate_inp", N_EXPERT)
            self.bias(f"{at}ffn_gate_exps", N_EXPERT, n_ff)
            self.bias(f"{at}ffn_up_exps", N_EXPERT, n_ff)
            self.bias(f"{at}ffn_down_exps", N_EXPERT, self.n_embd)


# -- what is expected of a family ---------------------------------------------------------------


@dataclass(frozen=True)
class Facts:
    """What is to be found out about a file, by the names of `streamsink.gguf.traits.Traits`."""

    rope: str = "norm"
    scaling: str = "none"
    n_swa: int = 0
    positions: str = "rope"
    skips_rope: bool = False
    recurrent: bool = False
    hybrid: bool = False
    encoder: bool = False
    diffusion: bool = False
    mla: bool = False
    sinks: bool = False


Drawer: TypeAlias = Callable[[int], ZooModel]


@dataclass(frozen=True)
class Family:
    """A kind of model, and what is expected of it.

    Attributes
    ----------
    name
        Of the family, and of its file.
    about
        What in it matters.
    draw
        Makes the model of a seed.
    facts
        What is to be found out about the file.
    rotate, reanchor
        How right the placement is; for rotation, sliding windows are kept whole.
    refusal
        Words of the reason why it cannot stream at all; empty where it can.
    """

    name: str
    about: str
    draw: Drawer
    facts: Facts
    rotate: Level
    reanchor: Level
    refusal: str

    def write(self, path: Path, seed: int = 0) -> Path:
        """Write the family's file and return `path`."""
        return self.draw(seed).write(path)


FAMILIES: dict[str, Family] = {}
"""All families by name."""


def family(
    facts: Facts, rotate: Level = "exact", reanchor: Level = "exact", refusal: str = ""
) -> Callable[[Drawer], Drawer]:
    """Enter the decorated function into the zoo, with what is expected of its models."""

    def enter(draw: Drawer) -> Drawer:
        name = draw.__name__.replace("_", "-")
        about = " ".join((draw.__doc__ or "").split())
        FAMILIES[name] = Family(name, about, draw, facts, rotate, reanchor, refusal)
        return draw

    return enter


# -- plain RoPE ---------------------------------------------------------------------------------


def _llama(architecture: str, seed: int, n_layer: int = 3, *, bias: bool = False) -> Draft:
    """What ``llama`` and many others consist of."""
    draft = Draft(architecture, seed, n_layer)
    draft.metadata["attention.layer_norm_rms_epsilon"] = EPS
    draft.ends()
    for at in draft.layers():
        draft.norms(at)
        draft.queries(at, bias=bias)
        draft.output(at)
        draft.gated(at)
    return draft


@family(Facts())
def llama(seed: int) -> ZooModel:
    """RoPE that turns neighbours together, two query heads to a key head (llama.cpp)."""
    return _llama("llama", seed).done(rope__dimension_count=HEAD_DIM)


@family(Facts())
def llama_frequencies(seed: int) -> ZooModel:
    """Llama 3's RoPE, each pair's speed divided by a factor of the file (llama.cpp)."""
    draft = _llama("llama", seed)
    draft.uniform("rope_freqs.weight", 1.0, 8.0, HEAD_DIM // 2)
    return draft.done(rope__dimension_count=HEAD_DIM)


@family(Facts(scaling="linear"))
def llama_linear(seed: int) -> ZooModel:
    """All pairs slowed down alike (llama.cpp)."""
    return _llama("llama", seed).done(
        rope__dimension_count=HEAD_DIM, rope__scaling__type="linear", rope__scaling__factor=4.0
    )


@family(Facts(rope="neox"))
def qwen2(seed: int) -> ZooModel:
    """RoPE that turns the halves of a head together; biases of q, k and v (qwen2.cpp)."""
    return _llama("qwen2", seed, bias=True).done()


@family(Facts(rope="neox"))
def qwen3(seed: int) -> ZooModel:
    """Q and k have norms, and heads are not n_embd / n_head wide (qwen3.cpp)."""
    draft = Draft("qwen3", seed, n_embd=48)
    draft.ends(tied=True)
    for at in draft.layers():
        draft.norms(at)
        draft.queries(at)
        draft.normed_queries(at)
        draft.output(at)
        draft.gated(at)
    return draft.done(
        attention__layer_norm_rms_epsilon=EPS,
        attention__key_length=HEAD_DIM,
        attention__value_length=HEAD_DIM,
        rope__freq_base=1e6,
    )


@family(Facts(rope="neox"))
def olmoe(seed: int) -> ZooModel:
    """A mixture of experts, with norms over all heads of q and k at once (olmoe.cpp)."""
    draft = Draft("olmoe", seed)
    draft.ends()
    for at in draft.layers():
        draft.norms(at)
        for name, gain in (("q", SHARPNESS), ("k", SHARPNESS), ("v", 1.0), ("output", 1.0)):
            draft.matrix(f"{at}attn_{name}", N_EMBD, N_EMBD, gain=gain)
        draft.normed_queries(at, N_EMBD, N_EMBD)
        draft.experts(at)
    return draft.done(
        attention__layer_norm_rms_epsilon=EPS,
        attention__head_count_kv=N_HEAD,
        feed_forward_length=N_FF // 2,
    )


@family(Facts(rope="neox"))
def stablelm(seed: int) -> ZooModel:
    """Half of each head is rotated, the rest has no position (stablelm.cpp)."""
    draft = Draft("stablelm", seed)
    draft.ends(bias=True)
    for at in draft.layers():
        draft.norms(at, bias=True)
        draft.queries(at)
        draft.output(at)
        draft.gated(at)
    return draft.done(
        attention__layer_norm_epsilon=EPS,
        rope__dimension_count=HEAD_DIM // 2,
        use_parallel_residual=False,
    )


# -- stretched RoPE with a gain -----------------------------------------------------------------


@family(Facts(scaling="yarn"), rotate="approximate")
def llama_yarn(seed: int) -> ZooModel:
    """YaRN x 4 lengthens every rotated key, at each K-shift once more (llama.cpp).

    See ``rope_yarn`` in ggml-cpu/ops.cpp and ``build_rope_shift`` in llama-kv-cache.cpp.
    """
    return _llama("llama", seed).done(
        context_length=4 * N_CTX_ORIGINAL,
        rope__dimension_count=HEAD_DIM,
        rope__scaling__type="yarn",
        rope__scaling__factor=4.0,
        rope__scaling__original_context_length=N_CTX_ORIGINAL,
    )


@family(Facts(rope="neox", scaling="longrope"), rotate="approximate")
def phi3(seed: int) -> ZooModel:
    """LongRoPE: a speed for each pair, and a gain; q, k, v as one and gate, up as one (phi3.cpp).

    llama.cpp takes the long factors where the context, rounded up to whole 256 cells, is longer
    than the original one (``get_rope_factors`` in llama-model.cpp).
    """
    draft = Draft("phi3", seed)
    draft.ends()
    draft.uniform("rope_factors_long.weight", 2.0, 8.0, HEAD_DIM // 2)
    draft.uniform("rope_factors_short.weight", 1.0, 2.0, HEAD_DIM // 2)
    for at in draft.layers():
        draft.norms(at)
        draft.fused_queries(at)
        draft.output(at)
        draft.plain(at, n_up=2 * N_FF)
    return draft.done(
        attention__layer_norm_rms_epsilon=EPS,
        rope__dimension_count=HEAD_DIM,
        rope__scaling__type="longrope",
        rope__scaling__attn_factor=1.19,
        rope__scaling__original_context_length=N_CTX_ORIGINAL,
    )


N_LATENT, N_ROPE = 32, 8


@family(Facts(scaling="yarn", mla=True))
def deepseek2(seed: int) -> ZooModel:
    """Keys and values are one latent vector and a rotated rest (deepseek2.cpp).

    Its YaRN moves the gain from the keys into the scores, so that a K-shift adds none: see
    ``yarn_log_mul`` in llama-context.cpp. The file gives a tenth of the multiplier.
    """
    draft = Draft("deepseek2", seed)
    draft.ends()
    for i, at in enumerate(draft.layers()):
        draft.norms(at)
        draft.matrix(f"{at}attn_q_a", N_LATENT, N_EMBD)
        draft.norm(f"{at}attn_q_a_norm", N_LATENT)
        draft.matrix(f"{at}attn_q_b", N_HEAD * HEAD_DIM, N_LATENT, gain=SHARPNESS)
        draft.matrix(f"{at}attn_kv_a_mqa", N_LATENT + N_ROPE, N_EMBD, gain=SHARPNESS)
        draft.norm(f"{at}attn_kv_a_norm", N_LATENT)
        draft.matrix(f"{at}attn_k_b", N_HEAD, N_LATENT, HEAD_DIM - N_ROPE)
        draft.matrix(f"{at}attn_v_b", N_HEAD, HEAD_DIM, N_LATENT)
        draft.output(at)
        if i == 0:
            draft.gated(at)
            continue
        draft.experts(at)
        draft.matrix(f"{at}ffn_gate_shexp", N_FF // 2, N_EMBD)
        draft.matrix(f"{at}ffn_up_shexp", N_FF // 2, N_EMBD)
        draft.matrix(f"{at}ffn_down_shexp", N_EMBD, N_FF // 2)
    return draft.done(
        context_length=4 * N_CTX_ORIGINAL,
        attention__layer_norm_rms_epsilon=EPS,
        attention__head_count_kv=1,
        attention__q_lora_rank=N_LATENT,
        attention__kv_lora_rank=N_LATENT,
        attention__key_length=N_LATENT + N_ROPE,
        attention__value_length=N_LATENT,
        attention__key_length_mla=HEAD_DIM,
        attention__value_length_mla=HEAD_DIM,
        leading_dense_block_count=1,
        expert_shared_count=1,
        expert_weights_scale=1.5,
        rope__dimension_count=N_ROPE,
        rope__scaling__type="yarn",
        rope__scaling__factor=4.0,
        rope__scaling__original_context_length=N_CTX_ORIGINAL,
        rope__scaling__yarn_log_multiplier=0.0707,
    )


@family(Facts(scaling="yarn"), reanchor="approximate")
def mistral3(seed: int) -> ZooModel:
    """Attention grows sharper with a token's own position, not only distances count (mistral3.cpp).

    ``build_inp_attn_scale`` in llama-graph.cpp. So positions must not grow: rotation keeps them
    low. Its YaRN has no gain, as that of ``deepseek2``; its file gives the whole multiplier.
    """
    return _llama("mistral3", seed).done(
        context_length=4 * N_CTX_ORIGINAL,
        attention__temperature_scale=0.5,
        rope__dimension_count=HEAD_DIM,
        rope__scaling__type="yarn",
        rope__scaling__factor=4.0,
        rope__scaling__original_context_length=N_CTX_ORIGINAL,
        rope__scaling__yarn_log_multiplier=1.0,
    )


@family(Facts(rope="mrope"), rotate="impossible")
def qwen2vl(seed: int) -> ZooModel:
    """M-RoPE: a token has four positions, and llama.cpp cannot shift them (qwen2vl.cpp).

    A text's token has the same position four times (llama-batch.cpp), which is NEOX RoPE.
    """
    return _llama("qwen2vl", seed, bias=True).done(rope__dimension_sections=[2, 3, 3, 0])


# -- sliding windows ----------------------------------------------------------------------------


@family(Facts(rope="neox", scaling="linear", n_swa=N_SWA))
def gemma3(seed: int) -> ZooModel:
    """Every other layer sees a window, and has a RoPE base of its own (gemma3.cpp).

    Only the other layers' RoPE is stretched (``get_rope_freq_scale`` in llama-model.cpp).
    """
    draft = Draft("gemma3", seed, n_layer=4)
    # The embedding is multiplied by sqrt(n_embd) and is the output matrix too.
    draft.ends(tied=True)
    for at in draft.layers():
        draft.norms(at, "attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm")
        draft.queries(at)
        draft.normed_queries(at)
        draft.output(at)
        draft.gated(at)
    return draft.done(
        attention__layer_norm_rms_epsilon=EPS,
        attention__key_length=HEAD_DIM,
        attention__value_length=HEAD_DIM,
        attention__sliding_window=N_SWA,
        attention__sliding_window_pattern=2,
        rope__freq_base=1e6,
        rope__scaling__type="linear",
        rope__scaling__factor=8.0,
    )


@family(Facts(rope="neox", scaling="yarn", n_swa=N_SWA, sinks=True), rotate="approximate")
def gpt_oss(seed: int) -> ZooModel:
    """Learned sinks, every other layer a window, experts, and YaRN (openai-moe.cpp)."""
    draft = Draft("gpt-oss", seed, n_layer=4)
    draft.ends()
    for at in draft.layers():
        draft.norms(at, "attn_norm", "post_attention_norm")
        draft.queries(at, bias=True)
        draft.output(at, bias=True)
        draft.normal(f"{at}attn_sinks.weight", N_HEAD, gain=2.0)
        draft.experts(at, bias=True)
    return draft.done(
        context_length=4 * N_CTX_ORIGINAL,
        attention__layer_norm_rms_epsilon=EPS,
        attention__key_length=HEAD_DIM,
        attention__value_length=HEAD_DIM,
        attention__sliding_window=N_SWA,
        rope__freq_base=150000.0,
        rope__scaling__type="yarn",
        rope__scaling__factor=4.0,
        rope__scaling__original_context_length=N_CTX_ORIGINAL,
    )


@family(Facts(n_swa=N_SWA, skips_rope=True), rotate="approximate")
def cohere2(seed: int) -> ZooModel:
    """Layers with a window have RoPE, those that see everything have none (cohere2.cpp).

    llama.cpp's K-shift rotates the keys of all of them (``has_rope`` in llama-hparams.cpp).
    """
    draft = Draft("cohere2", seed, n_layer=4)
    draft.ends(tied=True)
    for at in draft.layers():
        draft.norms(at, "attn_norm")
        draft.queries(at)
        draft.output(at)
        draft.gated(at)
    return draft.done(
        attention__layer_norm_epsilon=EPS,
        attention__sliding_window=N_SWA,
        rope__dimension_count=HEAD_DIM,
        logit_scale=0.5,
    )


# -- no RoPE, or not everywhere -----------------------------------------------------------------


@family(Facts(skips_rope=True), rotate="approximate")
def smollm3(seed: int) -> ZooModel:
    """Every fourth layer has no position at all, but K-shift does not know (smollm3.cpp)."""
    return _llama("smollm3", seed, n_layer=4).done(rope__dimension_count=HEAD_DIM)


@family(Facts(rope="none", positions="alibi"))
def mpt(seed: int) -> ZooModel:
    """ALiBi: a bias by distance, computed from the cells' positions at every step (mpt.cpp).

    A shift renumbers the cells and touches no key (``update`` in llama-kv-cache.cpp).
    """
    return _mpt(seed).done(attention__max_alibi_bias=8.0)


@family(Facts(rope="none", positions="learned"), refusal="learned")
def mpt_learned(seed: int) -> ZooModel:
    """The same architecture with a table of positions instead (mpt.cpp: pos_embd)."""
    draft = _mpt(seed)
    draft.matrix("position_embd", N_CTX, N_EMBD, gain=8.0)
    return draft.done()


def _mpt(seed: int) -> Draft:
    draft = Draft("mpt", seed)
    draft.metadata["attention.layer_norm_epsilon"] = EPS
    draft.ends()
    for at in draft.layers():
        draft.norms(at)
        draft.fused_queries(at)
        draft.output(at)
        draft.plain(at)
    return draft


@family(Facts(rope="none", positions="alibi"))
def bloom(seed: int) -> ZooModel:
    """ALiBi that the file does not mention, and biases everywhere (bloom.cpp)."""
    draft = Draft("bloom", seed)
    draft.ends(bias=True)
    draft.norms("", "token_embd_norm", bias=True)
    for at in draft.layers():
        draft.norms(at, bias=True)
        draft.fused_queries(at, N_HEAD, bias=True)
        draft.output(at, bias=True)
        draft.plain(at, bias=True)
    return draft.done(attention__layer_norm_epsilon=EPS, attention__head_count_kv=N_HEAD)


@family(Facts(positions="alibi", skips_rope=True), rotate="approximate")
def baichuan_13b(seed: int) -> ZooModel:
    """ALiBi instead of RoPE by its 40 layers alone, but K-shift rotates (baichuan.cpp)."""
    draft = Draft("baichuan", seed, n_layer=40, n_embd=32)
    draft.ends()
    for at in draft.layers():
        draft.norms(at)
        for name, gain in (("q", SHARPNESS), ("k", SHARPNESS), ("v", 1.0), ("output", 1.0)):
            draft.matrix(f"{at}attn_{name}", 32, 32, gain=gain)
        for name, n_out, n_in in (("gate", 48, 32), ("up", 48, 32), ("down", 32, 48)):
            draft.matrix(f"{at}ffn_{name}", n_out, n_in)
    return draft.done(
        attention__layer_norm_rms_epsilon=EPS,
        attention__head_count=2,
        attention__head_count_kv=2,
        feed_forward_length=48,
        rope__dimension_count=HEAD_DIM,
    )


@family(Facts(rope="none", positions="learned"), refusal="learned")
def gpt2(seed: int) -> ZooModel:
    """Positions out of a table that ends with the trained context (gpt2.cpp)."""
    draft = Draft("gpt2", seed)
    draft.ends(bias=True)
    draft.matrix("position_embd", N_CTX, N_EMBD, gain=8.0)
    for at in draft.layers():
        draft.norms(at, bias=True)
        draft.fused_queries(at, N_HEAD, bias=True)
        draft.output(at, bias=True)
        draft.plain(at, bias=True)
    return draft.done(attention__layer_norm_epsilon=EPS, attention__head_count_kv=N_HEAD)


# -- recurrent state ----------------------------------------------------------------------------

N_CONV, N_STATE, N_RANK = 4, 8, 4


@family(Facts(rope="none", positions="none", recurrent=True), refusal="recurrent")
def mamba(seed: int) -> ZooModel:
    """A state in place of a cache: no window to manage (mamba.cpp, mamba-base.cpp)."""
    draft = Draft("mamba", seed)
    inner = 2 * N_EMBD
    draft.ends()
    for at in draft.layers():
        draft.norms(at, "attn_norm")
        draft.matrix(f"{at}ssm_in", 2 * inner, N_EMBD)
        draft.matrix(f"{at}ssm_conv1d", inner, N_CONV)
        draft.bias(f"{at}ssm_conv1d", inner)
        draft.matrix(f"{at}ssm_x", N_RANK + 2 * N_STATE, inner)
        draft.matrix(f"{at}ssm_dt", inner, N_RANK)
        draft.bias(f"{at}ssm_dt", inner)
        draft.uniform(f"{at}ssm_a", -1.0, -0.1, inner, N_STATE)
        draft.normal(f"{at}ssm_d", inner)
        draft.matrix(f"{at}ssm_out", N_EMBD, inner)
    return draft.done(
        attention__layer_norm_rms_epsilon=EPS,
        attention__head_count=0,
        attention__head_count_kv=0,
        feed_forward_length=0,
        ssm__conv_kernel=N_CONV,
        ssm__inner_size=inner,
        ssm__state_size=N_STATE,
        ssm__time_step_rank=N_RANK,
    )


@family(Facts(rope="neox", hybrid=True), reanchor="impossible")
def lfm2(seed: int) -> ZooModel:
    """Layers of attention between layers that remember their last tokens (lfm2.cpp).

    An eviction takes nothing out of the state: ``llama_memory_recurrent::seq_rm`` says true and
    leaves it, unless the newest token goes. But ``seq_cp`` of a sink would put the sink's state in
    place of the stream's (llama-memory-hybrid.cpp, llama-memory-recurrent.cpp).
    """
    draft = Draft("lfm2", seed, n_layer=4)
    draft.ends()
    draft.weights["token_embd_norm.weight"] = draft.weights.pop("output_norm.weight")
    for i, at in enumerate(draft.layers()):
        draft.norms(at)
        draft.gated(at)
        if i % 2:
            draft.queries(at)
            draft.normed_queries(at)
            draft.output(at)
        else:
            draft.matrix(f"{at}shortconv.conv", N_EMBD, 3)
            draft.matrix(f"{at}shortconv.in_proj", 3 * N_EMBD, N_EMBD)
            draft.matrix(f"{at}shortconv.out_proj", N_EMBD, N_EMBD)
    return draft.done(
        attention__layer_norm_rms_epsilon=EPS,
        attention__head_count_kv=[0, N_HEAD_KV, 0, N_HEAD_KV],
        shortconv__l_cache=3,
        rope__freq_base=1e6,
    )


# -- what does not write token after token ------------------------------------------------------


@family(Facts(rope="neox", positions="learned"), refusal="left to right")
def bert(seed: int) -> ZooModel:
    """An encoder that llama.cpp does not call one; it has no cache at all (bert.cpp)."""
    draft = Draft("bert", seed)
    draft.matrix("token_embd", N_VOCAB, N_EMBD, gain=8.0)
    draft.matrix("token_types", 2, N_EMBD, gain=8.0)
    draft.matrix("position_embd", N_CTX, N_EMBD, gain=8.0)
    draft.norms("", "token_embd_norm", bias=True)
    for at in draft.layers():
        draft.queries(at, bias=True)
        draft.output(at, bias=True)
        draft.norms(at, "attn_output_norm", "layer_output_norm", bias=True)
        draft.plain(at, bias=True)
    return draft.done(attention__layer_norm_epsilon=EPS, attention__causal=False)


@family(Facts(rope="none", positions="none", encoder=True), refusal="encoder")
def t5(seed: int) -> ZooModel:
    """An encoder and a decoder, with a learned bias by distance (t5.cpp)."""
    draft = Draft("t5", seed, n_layer=2)
    draft.matrix("token_embd", N_VOCAB, N_EMBD, gain=8.0)
    draft.matrix("output", N_VOCAB, N_EMBD, gain=LOGITS)
    for side, kinds in (("enc", ("attn",)), ("dec", ("attn", "cross_attn"))):
        draft.norm(f"{side}.output_norm")
        for at in (f"{side}.{layer}" for layer in draft.layers()):
            for kind in kinds:
                draft.norm(f"{at}{kind}_norm")
                for name in "qkvo":
                    draft.matrix(f"{at}{kind}_{name}", N_EMBD, N_EMBD)
            draft.norm(f"{at}ffn_norm")
            draft.gated(at)
        draft.matrix(f"{side}.blk.0.attn_rel_b", 8, N_HEAD)
    return draft.done(
        attention__layer_norm_rms_epsilon=EPS,
        attention__head_count_kv=N_HEAD,
        attention__relative_buckets_count=8,
        decoder_start_token_id=0,
    )


@family(Facts(rope="neox", diffusion=True), refusal="diffusion")
def dream(seed: int) -> ZooModel:
    """Qwen 2 that fills in text by diffusion: tokens see later ones, no cache (dream.cpp)."""
    return _llama("dream", seed, bias=True).done()
