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
        seed = secrets.randbelow(2**32 - 1) if sampling.seed is None else sampling.seed
        self._add(llama.llama_sampler_init_dist(seed))

    def _add(self, sampler: llama.llama_sampler_p) -> None:
        # The chain owns what is added to it (llama.h).
        llama.llama_sampler_chain_add(self._chain, sampler)

    def clone(self) -> NativeSampler:
        """Copy the chain, its state included: both go on alike."""
        if self._chain is None:
            raise ClosedError("this sampler is closed: build another")
        other = object.__new__(NativeSampler)
        other._chain = llama.llama_sampler_clone(self._chain)
        other._free = weakref.finalize(other, llama.llama_sampler_free, other._chain)
        return other

    def sample(self, context: llama.llama_context_p) -> int:
        """Choose by the last row of logits, and accept."""
        if self._chain is None:
            raise ClosedError("this sampler is closed: build another")
        return int(llama.llama_sampler_sample(self._chain, context, -1))

    def close(self) -> None:
        """Free the chain. Twice is fine."""
        self._chain = None
        self._free()


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
