"""The trial of a grammar, see `streamsink.llama.grammar`: read it, begin with it, follow it.

Run as a module, in a process that may die.
"""

from __future__ import annotations

import os
import string
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import llama_cpp.llama_cpp as llama

from streamsink.errors import ModelError, UsageError
from streamsink.llama import gbnf
from streamsink.llama.grammar import Grammar
from streamsink.llama.library import hearing
from streamsink.llama.tokenizer import NativeTokenizer
from streamsink.system.serve import Answer, serve

T = TypeVar("T")

STACK_BYTES = 2**19
"""Less than any thread has in which a grammar may be used later."""
BUDGET = 2.0
"""Seconds of computing time after which rules are left untried."""
N_STEPS = 48
MOST_SHOWN = 160
N_STARTS = 8

_loaded: list[NativeTokenizer] = []
"""The tokenizer, once it is there."""


def answer(request: Answer) -> Answer:
    """Load the vocabulary of the file ``path``; then try a ``grammar``."""
    if "path" in request:
        _loaded[:] = [_tokenizer(request["path"])]
    else:
        _on_a_small_stack(lambda: _try(_loaded[0], request["grammar"]))
    return {}


def _tokenizer(path: str) -> NativeTokenizer:
    params = llama.llama_model_default_params()
    params.vocab_only = True
    with hearing() as said:
        model = llama.llama_model_load_from_file(path.encode(), params)
    if not model:
        raise ModelError(f"the vocabulary for the grammar cannot be read: {said.reason or path}")
    return NativeTokenizer(model)


def _try(tokenizer: NativeTokenizer, text: str) -> None:
    rules = gbnf.check(text)
    with _printed() as lines:
        try:
            Grammar(tokenizer, text)
        except UsageError as error:
            # The parser prints what it stopped at, and logs only that it failed.
            why = " ".join(lines()).partition("error parsing grammar: ")[2]
            raise UsageError(
                f"the grammar is not GBNF: {why[:MOST_SHOWN]}" if why else str(error)
            ) from None
    text = gbnf.bounded(text)
    root = Grammar(tokenizer, text)
    if not root.admitted.size:
        raise UsageError("the grammar admits no token of this model to begin with")
    single = sorted(
        {
            token
            for character in string.printable
            for token in tokenizer.tokenize(character)[-1:]
            if tokenizer.token_to_piece(token) == character.encode()
        }
    )
    end = time.process_time() + BUDGET
    for rule in (name for name in rules if "(" not in name):
        if time.process_time() > end:
            break
        _follow(tokenizer, text, rule, single)


def _follow(tokenizer: NativeTokenizer, text: str, rule: str, single: Sequence[int]) -> None:
    """Go some way from a rule, the same character over and over where it may be.

    Ambiguity that grows with the text or within long tokens then takes more time than there is.
    """
    admitted = {*Grammar(tokenizer, text, rule).admitted.tolist()}
    for token in [token for token in single if token in admitted][:N_STARTS]:
        grammar = Grammar(tokenizer, text, rule, only=single)
        for _ in range(N_STEPS):
            if token not in grammar.admitted:
                break
            grammar.accept(token)
        grammar.close()


def _on_a_small_stack(work: Callable[[], T]) -> T:
    """Do work in a thread whose stack soon overflows."""
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:
            failed.append(error)

    before = threading.stack_size(STACK_BYTES)
    thread = threading.Thread(target=run)
    thread.start()
    threading.stack_size(before)
    thread.join()
    if failed:
        raise failed[0]
    return done[0]


@contextmanager
def _printed() -> Iterator[Callable[[], list[str]]]:
    """Catch what C code prints to stderr past its log (llama-grammar.cpp: parse)."""
    kept = os.dup(2)
    with os.fdopen(kept, "wb"), tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)

        def lines() -> list[str]:
            file.seek(0)
            # The parser adds the whole grammar.
            return file.read().decode("utf-8", "replace").partition("\n\n")[0].splitlines()

        try:
            yield lines
        finally:
            os.dup2(kept, 2)


if __name__ == "__main__":
    serve(answer)
