"""What of a header llama.cpp trusts unseen: held against what it can bear."""

from __future__ import annotations

import numpy as np

from streamsink.gguf.header import Header, Strings, damaged


def check_vocabulary(header: Header) -> None:
    """Check what llama.cpp reads without looking at its type (src/llama-vocab.cpp)."""
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if tokens is None:
        return
    if not isinstance(tokens, Strings):
        raise damaged(header.path, "tokenizer.ggml.tokens is no list of strings")
    for key, kinds in (("scores", ("<f4", "<i4")), ("token_type", ("<i4", "<u4"))):
        value = header.metadata.get(f"tokenizer.ggml.{key}")
        if value is None:
            continue
        if not isinstance(value, np.ndarray) or value.dtype.str not in kinds:
            raise damaged(header.path, f"tokenizer.ggml.{key} is no list of 32-bit numbers")
        if len(value) < len(tokens):
            why = f"tokenizer.ggml.{key} is of {len(value)} tokens, and there are {len(tokens)}"
            raise damaged(header.path, why)
    merges = header.metadata.get("tokenizer.ggml.merges")
    if merges is not None and not isinstance(merges, Strings):
        raise damaged(header.path, "tokenizer.ggml.merges is no list of strings")


def check_sizes(header: Header) -> None:
    """Check numbers by which llama.cpp divides, or of which it makes as many of something."""
    architecture = header.architecture
    for key, least, most in (
        ("block_count", 1, 2**16),
        ("embedding_length", 1, 2**24),
        ("attention.head_count", 0, 2**16),  # recurrent models have none
        ("context_length", 1, 2**31 - 1),
    ):
        value = header.metadata.get(f"{architecture}.{key}")
        # By layer, some may have none (hybrid models).
        largest = value.max() if isinstance(value, np.ndarray) and value.size else value
        if isinstance(largest, (int, np.integer)) and not least <= largest <= most:
            why = f"{architecture}.{key} is {largest}, of {least} to {most}"
            raise damaged(header.path, why)
    for key in ("layer_norm_epsilon", "layer_norm_rms_epsilon"):
        epsilon = header.metadata.get(f"{architecture}.attention.{key}")
        if isinstance(epsilon, float) and not 0 <= epsilon < 1:
            raise damaged(header.path, f"{architecture}.attention.{key} is {epsilon}")
