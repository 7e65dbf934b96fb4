"""StreamingLLM in NumPy, straight from the paper: what every streamed logit has to be.

Nothing here knows llama.cpp or streamsink. Un-rotated keys are kept, and at every step RoPE is
applied to each by the slot that it then holds in the cache (arXiv 2309.17453, section 3.2, and
``llama_pos_shift_attention_forward`` of the paper's code). All arithmetic is float64.

A token's key and value are computed once, when it enters, from what it then sees, and kept. That is
also what a re-anchored sink holds, though it is decoded anew: the sink tokens are the first of the
stream, so each of them sees only sink tokens, then as now. Their hidden states depend on positions
only through differences within the sink, and a shift of all of them leaves those as they are. So
layer by layer the same values come out, and the same keys but for the rotation of the new position.
(A window token has no such luck: it saw tokens that are gone, and cannot be decoded anew.)
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tests.tiny_gguf import TinyConfig, TinyModel

Floats = NDArray[np.float64]
Complexes = NDArray[np.complex128]
Ints = NDArray[np.int64]


class Step(NamedTuple):
    """What one token sees when it enters.

    Attributes
    ----------
    live
        Indices in the stream of the tokens that it attends to, in cache order, itself last; (n,).
    positions
        The RoPE position of each of them; (n,). Only differences matter.
    """

    live: Ints
    positions: Ints


def schedule(
    n_tokens: int,
    n_ctx: int,
    n_keep: int,
    n_discard: int | Literal["half"] = 1,
    slack: int = 0,
) -> Iterator[Step]:
    """What each token of a stream sees, in turn.

    Before a token enters a full cache, the oldest unpinned tokens are evicted.

    Parameters
    ----------
    n_tokens
        Length of the stream.
    n_ctx
        Most tokens that a token may attend to, itself included. The paper's ``start_size +
        recent_size`` counts the same where ``evict_for_space`` makes room beforehand; in its
        perplexity script, which evicts afterwards, it is ``n_ctx - 1``.
    n_keep
        The first so many tokens of the stream are pinned.
    n_discard
        Tokens evicted at once; ``"half"``: half of the window, ``(n_ctx - n_keep) // 2``, rounded
        down and at least 1. Never more are evicted than are unpinned.
    slack
        How far the sink may trail the window, in positions. Each eviction widens the gap between
        them by as many tokens as it takes; a gap above `slack` is closed at once. 0 is the paper.

    Raises
    ------
    ValueError
        If the sink leaves no room for a token, or `n_discard` is below 1.
    """
    if not 0 <= n_keep < n_ctx:
        raise ValueError(f"n_keep must be in 0..n_ctx-1, got {n_keep} for n_ctx {n_ctx}")
    discard = max(1, (n_ctx - n_keep) // 2) if n_discard == "half" else n_discard
    if discard < 1:
        raise ValueError(f"n_discard must be at least 1, got {discard}")
    discard = min(discard, n_ctx - n_keep)
    live: list[int] = []
    gap = 0
    for index in range(n_tokens):
        if len(live) == n_ctx:
            del live[n_keep : n_keep + discard]
            gap += discard
            if gap > slack:
                gap = 0
        live.append(index)
        slots = np.arange(len(live))
        yield Step(np.array(live), slots + gap * (slots >= n_keep))


def stream_logits(
    model: TinyModel,
    tokens: Sequence[int],
    n_ctx: int,
    n_keep: int,
    n_discard: int | Literal["half"] = 1,
    slack: int = 0,
) -> Floats:
    """Logits after each token of an endless stream; (len(tokens), n_vocab). See `schedule`."""
    return replay_logits(model, tokens, schedule(len(tokens), n_ctx, n_keep, n_discard, slack))


def replay_logits(model: TinyModel, tokens: Sequence[int], steps: Iterable[Step]) -> Floats:
    """Logits after each token, where token i sees what the i-th step says.

    Parameters
    ----------
    model
        The weights.
    tokens
        Token ids of the stream; (n,).
    steps
        One per token, in order: any rule of eviction and placement can be written as such a list.

    Returns
    -------
    Floats
        (n, n_vocab).
    """
    c = model.config
    layers = _layers(model)
    kv_shape = (c.n_layer, len(tokens), c.n_head_kv, c.head_dim // 2)
    keys: Complexes = np.empty(kv_shape, np.complex128)  # un-rotated
    values: Floats = np.empty((*kv_shape[:3], c.head_dim))
    logits = np.empty((len(tokens), c.n_vocab))
    table = _rotations(c, np.arange(0))
    for index, (live, positions) in enumerate(steps):
        if positions.max() >= len(table):
            table = _rotations(c, np.arange(2 * positions.max() + 64))
        turn = table[positions]  # (live, head_dim / 2)
        x = model.weights["token_embd.weight"][tokens[index]].astype(np.float64)[None]
        for i, layer in enumerate(layers):
            q, k, v = _qkv(c, layer, x)
            keys[i, index], values[i, index] = k[0], v[0]
            rotated = keys[i, live] * turn[:, None, :]
            query = (q[0] * turn[-1]).reshape(c.n_head_kv, -1, c.head_dim // 2)
            # Query heads that share a key head are neighbours: g is the group, h the key head.
            scores = np.einsum("hgd,lhd->hgl", query, rotated.conj(), optimize=True).real
            weights = _softmax(scores / np.sqrt(c.head_dim))
            mixed = np.einsum("hgl,lhd->hgd", weights, values[i, live], optimize=True)
            x = _finish(c, layer, x, mixed.reshape(1, -1))
        logits[index] = _head(model, x)[0]
    return logits


def dense_logits(model: TinyModel, tokens: Sequence[int]) -> Floats:
    """Logits of the ordinary causal transformer after each token; (len(tokens), n_vocab)."""
    c = model.config
    n = len(tokens)
    turn = _rotations(c, np.arange(n))[:, None, :]
    hidden = np.where(np.tri(n, dtype=bool), 0.0, -np.inf)
    x = model.weights["token_embd.weight"][np.asarray(tokens)].astype(np.float64)
    for layer in _layers(model):
        q, k, v = _qkv(c, layer, x)
        group = c.n_head // c.n_head_kv
        k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
        scores = np.einsum("qhd,khd->hqk", q * turn, (k * turn).conj(), optimize=True).real
        weights = _softmax(scores / np.sqrt(c.head_dim) + hidden)
        mixed = np.einsum("hqk,khd->qhd", weights, v, optimize=True)
        x = _finish(c, layer, x, mixed.reshape(n, -1))
    return _head(model, x)


def nll(logits: Floats, tokens: Sequence[int]) -> Floats:
    """Negative log-likelihood of each token given those before it.

    Parameters
    ----------
    logits
        Logits *after* each token; (n, n_vocab).
    tokens
        Token ids; (n,).

    Returns
    -------
    Floats
        In nat; (n,). The first is NaN: nothing precedes it.
    """
    before = logits[:-1]
    top = before.max(axis=1)
    total = top + np.log(np.exp(before - top[:, None]).sum(axis=1))
    own = before[np.arange(len(before)), np.asarray(tokens[1:])]
    return np.concatenate([[np.nan], total - own])


def _layers(model: TinyModel) -> list[dict[str, Floats]]:
    """The weights of each layer in float64, by short name (``attn_q``, ...)."""
    return [
        {
            name.split(".")[2]: weight.astype(np.float64)
            for name, weight in model.weights.items()
            if name.startswith(f"blk.{i}.")
        }
        for i in range(model.config.n_layer)
    ]


def rope_speeds(c: TinyConfig) -> tuple[Floats, float]:
    """How far RoPE turns each pair a position, in radian, and by what it lengthens q and k.

    Pair j turns by ``position * base ** (-2 j / head_dim)`` (arXiv 2104.09864, eq. 15). Linear
    scaling divides that by the factor. YaRN divides the slow pairs only, with a ramp between the
    pair that turns 32 times within the original context and the one that turns once, and lengthens
    every q and k by ``0.1 ln(factor) + 1`` (arXiv 2309.00071, sections 3.2 and 3.4). The ramp is
    linear in the pair's number and its ends are whole pairs, rounded outwards, as in the authors'
    code (``find_correction_range``).
    """
    pairs = np.arange(c.head_dim // 2)
    speed = c.rope_freq_base ** (-2.0 * pairs / c.head_dim)
    gain = 1.0
    if c.rope_scaling == "linear":
        speed = speed / c.rope_factor
    elif c.rope_scaling == "yarn":

        def pair_that_turns(times: float) -> float:
            length = c.original_context_length / (times * 2 * np.pi)
            return float(c.head_dim * np.log(length) / (2 * np.log(c.rope_freq_base)))

        low = max(np.floor(pair_that_turns(32.0)), 0)
        high = min(np.ceil(pair_that_turns(1.0)), c.head_dim - 1)
        slow = np.clip((pairs - low) / max(high - low, 1e-3), 0.0, 1.0)
        speed = speed * (1 - slow) + speed / c.rope_factor * slow
        gain = 0.1 * np.log(c.rope_factor) + 1.0
    return speed, gain


def _rotations(c: TinyConfig, positions: Ints) -> Complexes:
    """RoPE as complex factors, one per position and pair; (n, head_dim / 2)."""
    speed, gain = rope_speeds(c)
    angles = np.multiply.outer(positions, speed)
    return gain * (np.cos(angles) + 1j * np.sin(angles))


def _qkv(c: TinyConfig, layer: dict[str, Floats], x: Floats) -> tuple[Complexes, Complexes, Floats]:
    """Un-rotated q (n, n_head, head_dim/2) and k (n, n_head_kv, head_dim/2), v (.., head_dim).

    The neighbours that RoPE turns together (arch ``llama``: type NORM) are one complex number.
    """
    h = _rms_norm(c, x, layer["attn_norm"])
    q, k, v = (h @ layer[name].T for name in ("attn_q", "attn_k", "attn_v"))
    n = len(x)
    return (
        q.view(np.complex128).reshape(n, c.n_head, -1),
        k.view(np.complex128).reshape(n, c.n_head_kv, -1),
        v.reshape(n, c.n_head_kv, -1),
    )


def _finish(c: TinyConfig, layer: dict[str, Floats], x: Floats, mixed: Floats) -> Floats:
    """The layer after attention: output projection, SwiGLU, both residuals; (n, n_embd)."""
    x = x + mixed @ layer["attn_output"].T
    h = _rms_norm(c, x, layer["ffn_norm"])
    gate = h @ layer["ffn_gate"].T
    up = h @ layer["ffn_up"].T
    silu: Floats = gate / (1 + np.exp(-gate))
    return x + (silu * up) @ layer["ffn_down"].T


def _head(model: TinyModel, x: Floats) -> Floats:
    """Final norm and output matrix (the embedding where they are tied); (n, n_vocab)."""
    w = model.weights
    output = w.get("output.weight", w["token_embd.weight"]).astype(np.float64)
    logits: Floats = _rms_norm(model.config, x, w["output_norm.weight"]) @ output.T
    return logits


def _rms_norm(c: TinyConfig, x: Floats, weight: Floats | NDArray[np.float32]) -> Floats:
    """Root-mean-square norm over the last axis."""
    normed: Floats = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + c.rms_eps) * weight
    return normed


def _softmax(scores: Floats) -> Floats:
    """Softmax over the last axis."""
    e: Floats = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights: Floats = e / e.sum(axis=-1, keepdims=True)
    return weights
