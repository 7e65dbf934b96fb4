"""Sampler chains of llama.cpp: nothing of the vocabulary passes through Python."""

from __future__ import annotations

import secrets
import weakref
from collections.abc import Sequence

import llama_cpp.llama_cpp as llama

from streamsink.errors import ClosedError, UsageError
from streamsink.native.library import caught_stderr, forget_errors, last_error
from streamsink.native.vocabulary import NativeVocabulary
from streamsink.sampling import Sampling

N_SEEDS = 2**32 - 1
"""The number after the last seed means to llama.cpp: a random one (llama.h: LLAMA_DEFAULT_SEED)."""


class NativeSampler:
    """A chain built from `Sampling`.

    The grammar comes first, so that whatever follows chooses among what it allows.

    Raises
    ------
    UsageError
        The grammar cannot be read.
    """

    def __init__(
        self, vocabulary: NativeVocabulary, sampling: Sampling, recent: Sequence[int]
    ) -> None:
        params = llama.llama_sampler_chain_default_params()
        params.no_perf = True
        self._seed: int | None = None
        self._chain: llama.llama_sampler_p | None = llama.llama_sampler_chain_init(params)
        self._free = weakref.finalize(self, llama.llama_sampler_free, self._chain)
        try:
            self._build(vocabulary, sampling, recent)
        except Exception:
            self.close()
            raise

    def _build(
        self, vocabulary: NativeVocabulary, sampling: Sampling, recent: Sequence[int]
    ) -> None:
        if sampling.grammar is not None:
            if not sampling.grammar.strip():
                raise UsageError("the grammar is empty: give GBNF with a rule named root")
            forget_errors()
            with caught_stderr() as printed:
                grammar = llama.llama_sampler_init_grammar(
                    vocabulary.handle, sampling.grammar.encode(), b"root"
                )
            if not grammar:
                reason = "; ".join(filter(None, [*printed, last_error()]))
                raise UsageError(f"the grammar is not GBNF that llama.cpp reads: {reason}")
            self._add(grammar)
        if sampling.penalizes:
            penalties = _penalties(vocabulary.n_tokens, sampling)
            for token in recent:
                llama.llama_sampler_accept(penalties, token)
            self._add(penalties)
        if sampling.temperature == 0:
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

    def _add(self, sampler: llama.llama_sampler_p) -> None:
        # The chain owns what is added to it (llama.h).
        llama.llama_sampler_chain_add(self._chain, sampler)

    def sample(self, context: llama.llama_context_p, index: int) -> int:
        """Choose the token of an index by the last row of logits, and accept it."""
        if self._chain is None:
            raise ClosedError("this sampler is closed: build another")
        if self._seed is not None:
            self._reseed(seed_at(self._seed, index))
        return int(llama.llama_sampler_sample(self._chain, context, -1))

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
