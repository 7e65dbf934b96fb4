"""What a grammar lets follow, by llama.cpp's own sampler, which never meets what it cannot bear."""

from __future__ import annotations

import ctypes
import string
import time
import weakref
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path

import llama_cpp.llama_cpp as llama
import numpy as np
from numpy.typing import NDArray

from streamsink.errors import ModelError, UsageError
from streamsink.llama.gbnf import MOST_BYTES, bounded
from streamsink.llama.library import hearing
from streamsink.llama.tokenizer import NativeTokenizer
from streamsink.system.child import Child, Died
from streamsink.system.interrupt import deferred

CHECKER = "streamsink.llama.grammar_child"
LOADING_SECONDS = 60.0
SECONDS = 5.0
"""How long the check of a grammar may take."""
MOST_MEMORY = 2**30
SLOWEST, SLOWER = 2.0, 10.0
"""Seconds of computing time that a token may take to be followed, or how many times as long as the
beginning took."""

CANDIDATE = np.dtype(llama.llama_token_data)
"""llama.h: llama_token_data, the fields ``id``, ``logit`` and ``p``."""


class Candidates:
    """Tokens and their logits, in the form in which llama.cpp's samplers take them.

    Parameters
    ----------
    tokens, logits : array-like
        One logit a token, or one for all.
    """

    def __init__(self, tokens: NDArray[np.int32], logits: NDArray[np.float32] | float) -> None:
        self._data = np.empty(len(tokens), CANDIDATE)
        self._data["id"] = tokens
        self._data["logit"] = logits
        pointer = self._data.ctypes.data_as(ctypes.POINTER(llama.llama_token_data))
        self._array = llama.llama_token_data_array(pointer, len(tokens), -1, False)

    def apply(self, sampler: llama.llama_sampler_p) -> None:
        """Let a sampler or a chain act on them."""
        llama.llama_sampler_apply(sampler, ctypes.byref(self._array))

    @property
    def admitted(self) -> NDArray[np.int32]:
        """Tokens whose logits were not set to minus infinity."""
        return np.ascontiguousarray(self._data["id"][self._data["logit"] > -np.inf])

    @property
    def selected(self) -> int:
        """The token that a chain selected."""
        at = int(self._array.selected)
        assert 0 <= at < self._array.size
        return int(self._data["id"][at])


class Grammar:
    """A place in a text that follows a grammar, which `checked` has let pass.

    llama.cpp ends the process where a grammar admits no token, and where one is accepted that it
    does not admit (llama_sampler_sample, llama_grammar_accept_token). So it is asked before. About
    one token it answers in microseconds, about a whole vocabulary in as many as there are tokens:
    that is asked only where one token has been refused.

    Parameters
    ----------
    tokenizer : NativeTokenizer
        The tokens.
    text : str
        The grammar.
    start : str
        The rule to begin with.
    only : sequence of int, optional
        Tokens to look at; all of them by default.

    Raises
    ------
    UsageError
        llama.cpp cannot read it.
    """

    def __init__(
        self,
        tokenizer: NativeTokenizer,
        text: str,
        start: str = "root",
        only: Sequence[int] | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        with deferred(), hearing() as said:
            sampler = llama.llama_sampler_init_grammar(
                tokenizer.handle, text.encode(), start.encode()
            )
            if sampler:
                self._free: Callable[[], object] = weakref.finalize(
                    self, llama.llama_sampler_free, sampler
                )
        if not sampler:
            raise UsageError(f"llama.cpp cannot read the grammar: {said.reason}")
        self._sampler = sampler
        tokens = range(tokenizer.n_tokens) if only is None else only
        self._looked_at = np.array(tokens, np.int32)
        begun = time.thread_time()
        self._admitted: NDArray[np.int32] | None = self._of(self._looked_at)
        self._patience = max(SLOWEST, SLOWER * (time.thread_time() - begun))
        self._spent = 0.0

    @property
    def admitted(self) -> NDArray[np.int32]:
        """Tokens that may follow, in ascending order; none at a dead end.

        A grammar that is too ambiguous for its text takes longer with every token; the text ends
        before that is felt as a hang.
        """
        if self._admitted is None:
            begun = time.thread_time()
            found = self._of(self._looked_at)
            self._spent += time.thread_time() - begun
            self._admitted = found if self._spent <= self._patience else found[:0]
        return self._admitted

    @property
    def stuck(self) -> bool:
        """Whether nothing may follow, not even the end of the text.

        A few tokens are asked about first, of which one may follow nearly always: the ends of a
        text, and single letters.
        """
        if self._admitted is None and self._spent <= self._patience:
            begun = time.thread_time()
            some = bool(self._of(self._likely).size)
            self._spent += time.thread_time() - begun
            if some and self._spent <= self._patience:
                return False
        return not self.admitted.size

    @cached_property
    def _likely(self) -> NDArray[np.int32]:
        tokenizer = self._tokenizer
        letters = {token for letter in string.printable for token in tokenizer.tokenize(letter)}
        ends = {one for one in tokenizer.named_tokens.values() if tokenizer.is_eog(one)}
        return np.array(sorted(letters | ends), np.int32)

    def admits(self, token: int) -> bool:
        """Whether a token may follow."""
        if self._admitted is not None:
            at = int(np.searchsorted(self._admitted, token))
            return at < self._admitted.size and int(self._admitted[at]) == token
        return bool(self._of(np.array([token], np.int32)).size)

    def accept(self, token: int) -> None:
        """Go on behind a token that is admitted."""
        begun = time.thread_time()
        llama.llama_sampler_accept(self._sampler, token)
        if not self._tokenizer.is_eog(token):
            self._admitted = None
            self._spent = time.thread_time() - begun

    def _of(self, tokens: NDArray[np.int32]) -> NDArray[np.int32]:
        """Those of some tokens that may follow."""
        candidates = Candidates(tokens, 0.0)
        candidates.apply(self._sampler)
        return candidates.admitted

    def close(self) -> None:
        """Free the sampler. Twice is fine."""
        self._free()


def checked(text: str, path: Path) -> str:
    """The grammar, `bounded`, if it does no harm; each is tried once in a process of its own.

    Parameters
    ----------
    text : str
        GBNF.
    path : Path
        The model's file.

    Raises
    ------
    UsageError
        It is not GBNF, too large or too ambiguous, or admits no token of the vocabulary.
    ModelError
        The file's vocabulary cannot be read any more.
    """
    if not text.strip():
        raise UsageError("the grammar is empty: give GBNF with a rule named root")
    try:
        n_bytes = len(text.encode())
    except UnicodeEncodeError as error:
        raise UsageError(f"the grammar is not Unicode: {error}") from None
    if n_bytes > MOST_BYTES:
        raise UsageError(f"the grammar has {n_bytes:,} bytes: {MOST_BYTES:,} are possible")
    if "\0" in text:
        raise UsageError("the grammar holds a character 0, where llama.cpp would stop reading")
    kept = bounded(text)
    if why := _verdict(text, path):
        raise UsageError(why)
    return kept


@lru_cache(maxsize=128)
def _verdict(text: str, path: Path) -> str:
    """Why a grammar is refused; '' where it is not. A child's death is no verdict to be kept."""
    try:
        with Child(CHECKER, n_bytes=MOST_MEMORY) as child:
            child.ask({"path": str(path)}, seconds=LOADING_SECONDS)
            try:
                child.ask({"grammar": text}, seconds=SECONDS)
            except UsageError as error:
                return str(error)
            except Died as death:
                raise UsageError(
                    f"the grammar is too large, too deep or too ambiguous for llama.cpp ({death})"
                ) from None
    except Died as death:
        raise ModelError(f"the grammar cannot be tried: {death}") from None
    return ""
