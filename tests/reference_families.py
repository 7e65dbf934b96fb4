"""The reference of `tests.reference` for the families of `tests.zoo`, one token at a time.

Everything comes from a model's own metadata and weights, and from what the papers and llama.cpp's
``src/models`` say of an architecture; what a layer computes is told by the weights that it has. As
there, keys are kept un-rotated, a token's key and value are computed once, from what it saw when
it entered, and all arithmetic is float64.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from tests.reference import Complexes, Floats, Step, rope_speeds
from tests.tiny_gguf import TinyConfig
from tests.zoo import ZooModel

Weights = Mapping[str, Floats]

MOST_POSITIONS = 512
"""Distances in a stream are smaller than that."""


# -- architectures ------------------------------------------------------------------------------


def _every(_: int) -> bool:
    return True


def _none(_: int) -> bool:
    return False


def _but_last_of(n: int) -> Callable[[int], bool]:
    return lambda layer: layer % n < n - 1


@dataclass(frozen=True)
class Architecture:
    """What the file does not say.

    Attributes
    ----------
    pairs
        The numbers that RoPE turns together: neighbours, or one of each half.
    norm
        By the root of the mean square, or by mean and variance.
    activation
        Of the feed-forward network.
    rotated, windowed
        Which layers have RoPE, and which see a sliding window only.
    own_base
        Whether windowed layers have the base 10,000 and are not stretched.
    parallel
        Whether attention and feed-forward network see the same.
    max_alibi_bias
        Of ALiBi; 0 where there is none or the file says it.
    reads_eps
        Whether llama.cpp reads the epsilon of the norms; else it is 0.
    """

    pairs: Literal["neighbours", "halves"] = "neighbours"
    norm: Literal["rms", "layer"] = "rms"
    activation: Literal["silu", "gelu", "oai"] = "silu"
    rotated: Callable[[int], bool] = _every
    windowed: Callable[[int], bool] = _none
    own_base: bool = False
    parallel: bool = False
    max_alibi_bias: float = 0.0
    reads_eps: bool = True


ARCHITECTURES = {
    "llama": Architecture(),
    "mistral3": Architecture(),
    "qwen2": Architecture("halves"),
    "qwen2vl": Architecture("halves", reads_eps=False),  # qwen2vl.cpp: load_arch_hparams
    "qwen3": Architecture("halves"),
    "olmoe": Architecture("halves"),
    "lfm2": Architecture("halves"),
    "phi3": Architecture("halves"),
    "stablelm": Architecture("halves", "layer"),
    "deepseek2": Architecture(),
    "smollm3": Architecture(rotated=_but_last_of(4)),
    "gemma3": Architecture("halves", activation="gelu", windowed=_but_last_of(2), own_base=True),
    "gpt-oss": Architecture("halves", activation="oai", windowed=_but_last_of(2)),
    "cohere2": Architecture(
        norm="layer", rotated=_but_last_of(4), windowed=_but_last_of(4), parallel=True
    ),
    "mpt": Architecture(norm="layer", activation="gelu", rotated=_none),
    "bloom": Architecture(norm="layer", activation="gelu", rotated=_none, max_alibi_bias=8.0),
    "baichuan": Architecture(rotated=_none, max_alibi_bias=8.0),
}


# -- the network --------------------------------------------------------------------------------


def replay(model: ZooModel, tokens: Sequence[int], steps: Iterable[Step]) -> Floats:
    """Logits after each token, where token i sees what the i-th step says; (n, n_vocab)."""
    network = Network(model, len(tokens))
    return np.array(
        [network(index, tokens[index], step) for index, step in enumerate(steps)], np.float64
    )


def dense(n_tokens: int) -> list[Step]:
    """Steps of a stream that forgets nothing."""
    return [Step(np.arange(n + 1), np.arange(n + 1)) for n in range(n_tokens)]


class Network:
    """A model, and what it remembers of one stream."""

    def __init__(self, model: ZooModel, n_tokens: int) -> None:
        weights = {name: array.astype(np.float64) for name, array in model.weights.items()}
        self.kind = ARCHITECTURES[model.architecture]
        self.metadata = model.metadata
        kind = "layer_norm_rms" if self.kind.norm == "rms" else "layer_norm"
        self.eps = self.number(f"attention.{kind}_epsilon", 0.0) if self.kind.reads_eps else 0.0
        self.ends = weights
        n_layer = int(self.number("block_count", 0))
        self._layers = [Layer(self, i, _of_layer(weights, i), n_tokens) for i in range(n_layer)]

    def number(self, key: str, default: float) -> float:
        """A number of the metadata."""
        value = self.metadata.get(key, default)
        assert isinstance(value, (int, float))
        return float(value)

    def __call__(self, index: int, token: int, step: Step) -> Floats:
        """Take in a token; logits after it, (n_vocab,)."""
        ends = self.ends
        x = ends["token_embd.weight"][token]
        if self.kind.own_base:  # Gemma's
            x = x * np.sqrt(len(x))
        x = self.norm(ends, "token_embd_norm", x) if "output_norm.weight" in ends else x
        for layer in self._layers:
            x = layer(x, index, step)
        last = "output_norm" if "output_norm.weight" in ends else "token_embd_norm"  # LFM2's name
        output = ends.get("output.weight", ends["token_embd.weight"])
        logits: Floats = output @ self.norm(ends, last, x) * self.number("logit_scale", 1.0)
        return logits

    def norm(self, weights: Weights, name: str, x: Floats) -> Floats:
        """Norm of the last axis, by the weights of that name; nothing where there are none."""
        if f"{name}.weight" not in weights:
            return x
        if self.kind.norm == "layer":
            x = x - x.mean(axis=-1, keepdims=True)
        normed: Floats = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + self.eps)
        return normed * weights[f"{name}.weight"] + weights.get(f"{name}.bias", 0.0)


class Layer:
    """One layer: what mixes tokens, then a feed-forward network."""

    def __init__(self, network: Network, i: int, weights: Weights, n_tokens: int) -> None:
        self._network = network
        self._weights = weights
        self._mix: Attention | Convolution
        if "shortconv.conv.weight" in weights:
            self._mix = Convolution(weights)
        else:
            self._mix = Attention(network, i, weights, n_tokens)
        # GPT-OSS has no other norm there, and Gemma 3 has both.
        both = "ffn_norm.weight" in weights
        self._before_ffn = "ffn_norm" if both else "post_attention_norm"
        self._after_attention = "post_attention_norm" if both else ""

    def __call__(self, x: Floats, index: int, step: Step) -> Floats:
        norm, w = self._network.norm, self._weights
        h = norm(w, "attn_norm", x)
        mixed = norm(w, self._after_attention, self._mix(h, index, step))
        if self._network.kind.parallel:
            return x + mixed + self._feed_forward(h)
        x = x + mixed
        h = norm(w, self._before_ffn, x)
        return x + norm(w, "post_ffw_norm", self._feed_forward(h))

    def _feed_forward(self, h: Floats) -> Floats:
        w = self._weights
        if "ffn_gate_inp.weight" in w:
            return self._experts(h) + (
                self._gated(h, "_shexp") if "ffn_up_shexp.weight" in w else 0
            )
        return self._gated(h, "")

    def _gated(self, h: Floats, suffix: str) -> Floats:
        w = self._weights
        up = linear(w, f"ffn_up{suffix}", h)
        down = w[f"ffn_down{suffix}.weight"]
        if f"ffn_gate{suffix}.weight" in w:
            up = self._act(linear(w, f"ffn_gate{suffix}", h)) * up
        elif len(up) == 2 * down.shape[1]:  # Phi 3: gate and up as one
            gate, up = np.split(up, 2)
            up = self._act(gate) * up
        else:
            up = self._act(up)
        return linear(w, f"ffn_down{suffix}", up)

    def _experts(self, h: Floats) -> Floats:
        number, w = self._network.number, self._weights
        scores = linear(w, "ffn_gate_inp", h)
        chosen = np.argsort(-scores)[: int(number("expert_used_count", 0))]
        oai = self._network.kind.activation == "oai"
        shares = softmax(scores[chosen]) if oai else softmax(scores)[chosen]
        shares = shares * number("expert_weights_scale", 1.0)
        return sum(
            (share * self._expert(h, e) for share, e in zip(shares, chosen, strict=True)),
            np.zeros_like(h),
        )

    def _expert(self, h: Floats, e: int) -> Floats:
        w = {name: a[e] for name, a in self._weights.items() if "_exps." in name}
        gate, up = linear(w, "ffn_gate_exps", h), linear(w, "ffn_up_exps", h)
        if self._network.kind.activation == "oai":  # ops.cpp: swiglu_oai
            gate, up = np.minimum(gate, 7.0), np.clip(up, -7.0, 7.0) + 1.0
            gate = gate / (1 + np.exp(-1.702 * gate))
        else:
            gate = self._act(gate)
        return linear(w, "ffn_down_exps", gate * up)

    def _act(self, x: Floats) -> Floats:
        return gelu(x) if self._network.kind.activation == "gelu" else x / (1 + np.exp(-x))


class Convolution:
    """LFM2's short convolution: over the last tokens of the stream, forgotten or not."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        kernel = weights["shortconv.conv.weight"]
        self._last = np.zeros_like(kernel)  # (n_embd, taps), the newest token last

    def __call__(self, h: Floats, index: int, step: Step) -> Floats:
        w = self._weights
        b, c, x = np.split(linear(w, "shortconv.in_proj", h), 3)
        self._last = np.column_stack([self._last[:, 1:], b * x])
        mixed = (self._last * w["shortconv.conv.weight"]).sum(axis=1)
        return linear(w, "shortconv.out_proj", c * mixed)


# -- attention ----------------------------------------------------------------------------------


class Vectors(NamedTuple):
    """Queries or keys of some heads: pairs that RoPE turns, and what it leaves as it is."""

    pairs: Complexes
    rest: Floats


class Attention:
    """Attention of one layer, with the keys and values of all tokens so far."""

    def __init__(self, network: Network, i: int, weights: Weights, n_tokens: int) -> None:
        number, kind = network.number, network.kind
        self._network = network
        self._weights = weights
        self._n_head = int(number("attention.head_count", 0))
        by_layer = network.metadata["attention.head_count_kv"]
        self._n_head_kv = int(by_layer[i] if isinstance(by_layer, list) else by_layer)
        self._mla = "attn_kv_a_mqa.weight" in weights
        head_dim = int(number("embedding_length", 0)) // self._n_head
        head_dim = int(number("attention.key_length", head_dim))
        n_rot = int(number("rope.dimension_count", head_dim)) if kind.rotated(i) else 0
        self._n_rot = n_rot
        self._window = int(number("attention.sliding_window", 0)) if kind.windowed(i) else 0
        self._turns = turns(network, n_rot, own_base=bool(self._window) and kind.own_base)
        self._scale = head_dim**-0.5
        if self._mla:
            self._scale = _mla_scale(number)
        bias = number("attention.max_alibi_bias", kind.max_alibi_bias)
        heads = np.arange(1, self._n_head + 1)
        self._slopes = 2.0 ** (-bias * heads / self._n_head) * (bias > 0)
        value_dim = int(number("attention.value_length", head_dim))
        shape = (n_tokens, self._n_head_kv)
        self._key_pairs: Complexes = np.empty((*shape, n_rot // 2), np.complex128)
        self._key_rest: Floats = np.empty((*shape, head_dim - n_rot))
        self._values: Floats = np.empty((*shape, value_dim))

    def __call__(self, h: Floats, index: int, step: Step) -> Floats:
        """What the token of that index gets from those that it sees; (n_embd,)."""
        query, key, value = self._latents(h) if self._mla else self._heads(h)
        self._key_pairs[index], self._key_rest[index] = key
        self._values[index] = value
        live, positions = step
        if self._window:  # llama-hparams.h: is_masked_swa
            seen = positions[-1] - positions < self._window
            live, positions = live[seen], positions[seen]
        distances = positions[-1] - positions
        # Query heads that share a key head are neighbours: (kv, group, ...) and (kv, ..., live).
        group = (self._n_head_kv, self._n_head // self._n_head_kv)
        turned = (self._key_pairs[live] * self._turns[positions][:, None]).transpose(1, 2, 0)
        asked = (query.pairs * self._turns[positions[-1]]).reshape(*group, -1)
        scores = (asked @ turned.conj()).real
        scores += query.rest.reshape(*group, -1) @ self._key_rest[live].transpose(1, 2, 0)
        scores = scores.reshape(self._n_head, -1) * self._scale * self._sharpness(positions[-1])
        scores -= np.multiply.outer(self._slopes, distances)
        shares = softmax(scores, self._weights.get("attn_sinks.weight"))
        mixed = shares.reshape(*group, -1) @ self._values[live].transpose(1, 0, 2)
        return self._output(mixed.reshape(self._n_head, -1))

    def _sharpness(self, position: int) -> float:
        """Mistral 3's temperature, of the query's own position (its ``llama_4_scaling``)."""
        number = self._network.number
        strength = number("attention.temperature_scale", 0.0)
        length = number("rope.scaling.original_context_length", np.inf)
        return float(1 + strength * np.log1p(position // length))

    def _heads(self, h: Floats) -> tuple[Vectors, Vectors, Floats]:
        w = self._weights
        if "attn_qkv.weight" in w:
            fused = linear(w, "attn_qkv", h)
            n_kv = self._values[0].size
            q, k, v = np.split(fused, [len(fused) - 2 * n_kv, len(fused) - n_kv])
        else:
            q, k, v = (linear(w, f"attn_{name}", h) for name in "qkv")
        return (
            self._split(self._normed("q", q, self._n_head)),
            self._split(self._normed("k", k, self._n_head_kv)),
            v.reshape(self._n_head_kv, -1),
        )

    def _normed(self, name: str, x: Floats, n_head: int) -> Floats:
        """Heads of q or k, (n_head, head_dim): normed one by one, or all together as in OLMoE."""
        whole = len(self._weights.get(f"attn_{name}_norm.weight", ())) == len(x)
        shaped = x if whole else x.reshape(n_head, -1)
        normed = self._network.norm(self._weights, f"attn_{name}_norm", shaped)
        return normed.reshape(n_head, -1)

    def _split(self, x: Floats) -> Vectors:
        turned, rest = x[:, : self._n_rot], x[:, self._n_rot :]
        if self._network.kind.pairs == "neighbours":
            return Vectors(turned[:, 0::2] + 1j * turned[:, 1::2], rest)
        first, second = np.split(turned, 2, axis=1)
        return Vectors(first + 1j * second, rest)

    def _latents(self, h: Floats) -> tuple[Vectors, Vectors, Floats]:
        """DeepSeek's: what a key would be made of goes into the query (arXiv 2405.04434, 2.1)."""
        norm, w = self._network.norm, self._weights
        low = norm(w, "attn_q_a_norm", linear(w, "attn_q_a", h))
        query = linear(w, "attn_q_b", low).reshape(self._n_head, -1)
        absorbed = np.einsum("hln,hn->hl", w["attn_k_b.weight"], query[:, : -self._n_rot])
        joint = linear(w, "attn_kv_a_mqa", h)
        latent = norm(w, "attn_kv_a_norm", joint[: -self._n_rot])[None]
        q_pairs = self._split(query[:, -self._n_rot :]).pairs
        k_pairs = self._split(joint[None, -self._n_rot :]).pairs
        return Vectors(q_pairs, absorbed), Vectors(k_pairs, latent), latent

    def _output(self, mixed: Floats) -> Floats:
        if self._mla:
            mixed = np.einsum("hvl,hl->hv", self._weights["attn_v_b.weight"], mixed)
        return linear(self._weights, "attn_output", mixed.reshape(-1))


def turns(network: Network, n_rot: int, *, own_base: bool) -> Complexes:
    """RoPE as complex factors, one per position and pair; (positions, n_rot / 2)."""
    if not n_rot:
        return np.empty((MOST_POSITIONS, 0), np.complex128)
    number = network.number
    scaling = network.metadata.get("rope.scaling.type")
    options: dict[str, Any] = {
        "n_embd": n_rot,
        "n_head": 1,
        "context_length": int(number("context_length", 0)),
        "rope_freq_base": 10000.0 if own_base else number("rope.freq_base", 10000.0),
    }
    if scaling in ("linear", "yarn") and not own_base:
        options |= {"rope_scaling": scaling, "rope_factor": number("rope.scaling.factor", 1.0)}
    speed, gain = rope_speeds(TinyConfig(**options))
    for factors in ("rope_freqs.weight", "rope_factors_long.weight"):
        speed = speed / network.ends.get(factors, 1.0)
    gain *= number("rope.scaling.attn_factor", 1.0)
    if network.metadata.get("rope.scaling.yarn_log_multiplier"):
        gain = 1.0  # DeepSeek has it in the scores, see `_mla_scale`; Mistral 3 has none
    angles = np.multiply.outer(np.arange(MOST_POSITIONS), speed)
    return gain * (np.cos(angles) + 1j * np.sin(angles))


def _mla_scale(number: Callable[[str, float], float]) -> float:
    """DeepSeek's scale of scores (modeling_deepseek.py: DeepseekV2Attention, softmax_scale)."""
    mscale = number("rope.scaling.yarn_log_multiplier", 0.0)  # a tenth of mscale_all_dim
    gain = 1.0 + mscale * np.log(number("rope.scaling.factor", 1.0))
    return float(gain**2 / np.sqrt(number("attention.key_length_mla", 1.0)))


# -- small parts --------------------------------------------------------------------------------


def linear(weights: Weights, name: str, x: Floats) -> Floats:
    """The matrix of that name applied, and its bias if there is one."""
    y: Floats = weights[f"{name}.weight"] @ x + weights.get(f"{name}.bias", 0.0)
    return y


def softmax(scores: Floats, sinks: Floats | None = None) -> Floats:
    """Softmax over the last axis; a sink takes its share of a row and gives nothing."""
    top = scores.max(axis=-1, keepdims=True)
    e = np.exp(scores - top)
    total = e.sum(axis=-1, keepdims=True)
    if sinks is not None:
        total = total + np.exp(sinks[:, None] - top)
    shares: Floats = e / total
    return shares


def gelu(x: Floats) -> Floats:
    """GELU by tanh, looked up by llama.cpp in a table of half precision (ggml-cpu/vec.h)."""
    half = x.astype(np.float16).astype(np.float64)
    y = 0.5 * half * (1 + np.tanh(np.sqrt(2 / np.pi) * half * (1 + 0.044715 * half**2)))
    rounded: Floats = y.astype(np.float16).astype(np.float64)
    return np.where(np.abs(x) < 10, rounded, np.maximum(x, 0.0))


def _of_layer(weights: Weights, i: int) -> dict[str, Floats]:
    """The weights of a layer, by names without its prefix."""
    prefix = f"blk.{i}."
    return {
        name.removeprefix(prefix): array
        for name, array in weights.items()
        if name.startswith(prefix)
    }
