"""Sampler chains of llama.cpp.

Logits pass through Python only under a grammar, or where a copy of them is all that is left.

Under a grammar a token is drawn as if there were none, and kept if the grammar admits it; else it
is drawn again from those that are admitted, as llama.cpp does it (common/sampling.cpp).
Without samplers that cut off (top-k, top-p, min-p) both ways together draw each admitted token with
its probability among the admitted ones: p + (1 - P) p / P = p / P, where P is what they share.
With them, the first draw is from what is left of all tokens, the second from what is left of the
admitted ones, which may be others.
"""

from __future__ import annotations

import secrets
import weakref
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import llama_cpp.llama_cpp as llama
import numpy as np
from numpy.typing import NDArray

from streamsink.core.sampling import Sampling
from streamsink.engine.context import Logits
from streamsink.errors import ClosedError, LogitsError, UsageError, setting
from streamsink.llama.grammar import Candidates, Grammar, checked
from streamsink.llama.json_schema import grammar_of
from streamsink.llama.tokenizer import NativeTokenizer

N_SEEDS = 2**32 - 1
"""The number after the last seed means to llama.cpp: a random one (llama.h: LLAMA_DEFAULT_SEED)."""
COLDEST = 1e-4
"""A temperature below this divides logits beyond f32, and above it already takes the likeliest."""
MOST_LOGIT = 1e30
"""Far beyond any model's, and far enough from f32's end for penalties."""


class NativeSampler:
    """A chain built from `Sampling`, and the grammar in front of it.

    Parameters
    ----------
    tokenizer : NativeTokenizer
        Tokens of the model.
    path : Path
        Its file.
    sampling : Sampling
        The settings.
    recent : sequence of int
        Tokens that count for repetition penalties.

    Raises
    ------
    UsageError
        The grammar or the schema cannot be read, or not be followed.
    """

    def __init__(
        self, tokenizer: NativeTokenizer, path: Path, sampling: Sampling, recent: Sequence[int]
    ) -> None:
        text = grammar_of(sampling)
        self._grammar = None if text is None else Grammar(tokenizer, checked(text, path))
        self._n_vocab = tokenizer.n_tokens
        params = llama.llama_sampler_chain_default_params()
        params.no_perf = True
        self._seed: int | None = None
        self._chain: llama.llama_sampler_p | None = llama.llama_sampler_chain_init(params)
        self._free = weakref.finalize(self, llama.llama_sampler_free, self._chain)
        if sampling.penalizes:
            penalties = _penalties(tokenizer.n_tokens, sampling)
            for token in recent:
                llama.llama_sampler_accept(penalties, token)
            self._add(penalties)
        if sampling.temperature < COLDEST:
            self._add(llama.llama_sampler_init_greedy())
            return
        if sampling.top_k > 0:
            self._add(llama.llama_sampler_init_top_k(sampling.top_k))
        if sampling.top_p < 1:
            self._add(llama.llama_sampler_init_top_p(sampling.top_p, 1))
        if sampling.min_p > 0:
            self._add(llama.llama_sampler_init_min_p(sampling.min_p, 1))
        if sampling.temperature != 1:
            self._add(llama.llama_sampler_init_temp(sampling.temperature))
        self._seed = secrets.randbelow(N_SEEDS) if sampling.seed is None else sampling.seed
        self._add(llama.llama_sampler_init_dist(self._seed))

    @property
    def stuck(self) -> bool:
        """Whether the grammar lets nothing follow, not even the end of the text."""
        return self._grammar is not None and self._grammar.stuck

    def _add(self, sampler: llama.llama_sampler_p) -> None:
        # The chain owns what is added to it (llama.h).
        llama.llama_sampler_chain_add(self._chain, sampler)

    def sample(
        self,
        logits: Logits,
        index: int,
        context: llama.llama_context_p | None = None,
        at: int = -1,
    ) -> int:
        """Choose the token of an index, and accept it.

        Parameters
        ----------
        logits : ndarray of float32, shape (n_vocab,)
            A row.
        index : int
            The token's place in the stream.
        context : ctypes pointer, optional
            The ``llama_context *`` that has this row, if one still has it.
        at : int
            Of which token of its last batch; -1 is the last one.

        Raises
        ------
        LogitsError
            The row has numbers that are none, or is far beyond what a model computes.
        UsageError
            The grammar is at a dead end; see `stuck`.
        """
        if self._chain is None:
            raise ClosedError("this sampler is closed: build another")
        # A row's maximum is NaN if any of it is. llama.cpp's samplers sort by comparison, and take
        # differences of logits: with NaN or infinity they end the process or choose at random.
        if not -np.inf < logits.max() < MOST_LOGIT:
            raise LogitsError(
                "the model's logits are no numbers any more: keys that are rotated again and again "
                f"while quantised are worn out by it ({setting('cache_type_k', 'f16')}, or "
                f"{setting('placement', 'reanchor')}); "
                "otherwise the file is damaged"
            )
        if self._seed is not None:
            self._reseed(seed_at(self._seed, index))
        if self._grammar is None and context is not None:
            return int(llama.llama_sampler_sample(self._chain, context, at))
        token = self._drawn(self._all, logits)
        if self._grammar is not None:
            token = self._admitted(self._grammar, token, logits)
            self._grammar.accept(token)
        llama.llama_sampler_accept(self._chain, token)
        return token

    @cached_property
    def _all(self) -> NDArray[np.int32]:
        return np.arange(self._n_vocab, dtype=np.int32)

    def _admitted(self, grammar: Grammar, token: int, logits: Logits) -> int:
        """The token, or another one that the grammar admits."""
        if grammar.admits(token):
            return token
        tokens = grammar.admitted[logits[grammar.admitted] > -np.inf]
        if not tokens.size:
            raise UsageError("the grammar lets nothing follow that the model could say")
        return self._drawn(tokens, logits[tokens])

    def _drawn(self, tokens: NDArray[np.int32], logits: NDArray[np.float32]) -> int:
        candidates = Candidates(tokens, logits)
        candidates.apply(self._chain)
        return candidates.selected

    def _reseed(self, seed: int) -> None:
        # llama.cpp can neither give out the state of a generator nor seed it anew, and a new one
        # costs microseconds. It draws once a token, so no state is left to be kept.
        last = llama.llama_sampler_chain_n(self._chain) - 1
        llama.llama_sampler_free(llama.llama_sampler_chain_remove(self._chain, last))
        self._add(llama.llama_sampler_init_dist(seed))

    def close(self) -> None:
        """Free the chain. Twice is fine."""
        self._chain = None
        self._free()
        if self._grammar:
            self._grammar.close()


def seed_at(seed: int, index: int) -> int:
    """The seed of one token's draw: neighbours are as unlike as strangers.

    The last steps of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
    """
    mixed = (seed * 0x9E3779B97F4A7C15 + index + 1) * 0x9E3779B97F4A7C15 % 2**64
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB % 2**64
    return (mixed ^ mixed >> 31) % N_SEEDS


def _penalties(n_vocab: int, sampling: Sampling) -> llama.llama_sampler_p:
    settings = (
        sampling.repeat_last_n,
        sampling.repeat_penalty,
        sampling.frequency_penalty,
        sampling.presence_penalty,
    )
    init = llama.llama_sampler_init_penalties
    # Newer llama.cpp wants the size of the vocabulary in front.
    return init(n_vocab, *settings) if len(init.argtypes) == 5 else init(*settings)
