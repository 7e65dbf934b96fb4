"""The trial of a file, see `streamsink.gguf.preflight`: loads it, reads with it, shifts its cache.

Run as a module, in a process that may die.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np

from streamsink.core.plan import MAIN
from streamsink.engine.context import Logits
from streamsink.gguf.preflight import FAR, Measured
from streamsink.gguf.settings import CacheSettings
from streamsink.llama.context import NativeContext
from streamsink.llama.weights import Weights
from streamsink.system.serve import Answer, serve

TEXT = "The white whale swam on. 鯨 🐋 <|im_start|>user\n"
N_TOKENS = 12
STEP = 5
"""Positions of one shift; `FAR` is a multiple of it."""
N_CTX = 256
SMALL = 2**27
"""Bytes of weights with which one thread is done before another has begun."""


def answer(request: Answer) -> Answer:
    """Try a file; dies, or says what was measured."""
    weights = Weights(Path(request["path"]), 0)
    tokenizer = weights.tokenizer
    for special in (False, True):
        for token in tokenizer.tokenize(TEXT, special=special):
            tokenizer.token_to_piece(token, special=special)
    n_ctx = min(N_CTX, max(2 * N_TOKENS, weights.traits.n_ctx_train))
    threads = 1 if weights.path.stat().st_size < SMALL else None
    settings = CacheSettings("f32", "f32", n_batch=32, n_lanes=1, threads=threads)
    context = NativeContext(weights, n_ctx, settings, swa_full=True)
    measured = Measured()
    if not context.capabilities.no_stream:
        measured = _measure(context, tokenizer.n_tokens, hybrid=weights.traits.hybrid)
    context.close()
    weights.close()
    return asdict(measured)


def _measure(context: NativeContext, n_vocab: int, *, hybrid: bool) -> Measured:
    # Arbitrary tokens: all that matters is that they differ.
    tokens = [(17 + 7919 * at) % n_vocab for at in range(N_TOKENS)]
    near = _logits(context, tokens, 0)
    far = _logits(context, tokens, FAR)
    spread = float(far.std()) or 1.0
    place = _rms(near - far) / spread
    if hybrid or context.capabilities.rotate.level == "impossible":
        return Measured(place=place)  # a recurrent state cannot take a token back
    return Measured(shift=_rms(_shifted(context, tokens) - far) / spread, place=place)


def _shifted(context: NativeContext, tokens: list[int]) -> Logits:
    """The logits of `_logits` at ``FAR``, of keys that got there in many shifts.

    A gain in each of them adds up, while that of rounding stays small.
    """
    context.clear()
    context.decode(tokens[:-1], 0, MAIN, "last")
    for step in range(STEP, FAR + 1, STEP):
        context.shift(MAIN, 0, -1, STEP)
        pos = step + len(tokens) - 1
        context.decode(tokens[-1:], pos, MAIN, "last")
        if step < FAR:
            context.remove(MAIN, pos, -1)
    row: Logits = context.logits()[-1].copy()
    return row


def _logits(context: NativeContext, tokens: list[int], pos: int) -> Logits:
    """Logits after the last token, which is decoded alone, as after a shift."""
    context.clear()
    context.decode(tokens[:-1], pos, MAIN, "last")
    context.decode(tokens[-1:], pos + len(tokens) - 1, MAIN, "last")
    row: Logits = context.logits()[-1].copy()
    return row


def _rms(difference: Logits) -> float:
    return float(np.sqrt(np.mean(np.square(difference, dtype=np.float64))))


if __name__ == "__main__":
    serve(answer)
