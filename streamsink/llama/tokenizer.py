"""Tokens and text, by llama.cpp's own tokenizer."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cached_property
from itertools import repeat

import llama_cpp.llama_cpp as llama

from streamsink.errors import ClosedError, UsageError
from streamsink.llama.tokenize_parts import (
    Kind,
    SpecialToken,
    cut,
    join,
    looks_like_a_mark,
    touches,
)

PIECE_BYTES = 256

_SPECIAL = (
    llama.LLAMA_TOKEN_ATTR_CONTROL
    | llama.LLAMA_TOKEN_ATTR_UNKNOWN
    | llama.LLAMA_TOKEN_ATTR_USER_DEFINED
)
_NAMED = {
    name: getattr(llama, f"llama_vocab_{name}")
    for name in ("bos", "eos", "sep", "pad", "mask")
    if hasattr(llama, f"llama_vocab_{name}")
}
_FRONTS = (b"|", b".", b"0", b"~", b"(", b";")
"""Texts to which no tokenizer gives unknown tokens, one of which merges with none that follows."""


class NativeTokenizer:
    """The vocabulary of a loaded model; implements `streamsink.engine.context.Tokenizer`.

    Parameters
    ----------
    model : ctypes pointer
        A ``llama_model *`` that outlives this object.
    """

    def __init__(self, model: llama.llama_model_p) -> None:
        self._vocab: llama.llama_vocab_p | None = llama.llama_model_get_vocab(model)
        self.n_tokens = int(llama.llama_vocab_n_tokens(self._vocab))
        bos = int(llama.llama_vocab_bos(self._vocab))
        self.bos_token: int | None = bos if bos >= 0 else None
        eos = int(llama.llama_vocab_eos(self._vocab))
        self.eos_token: int | None = eos if eos >= 0 else None
        # The GGUF says whether a text begins with BOS; llama.cpp asks the same (llama-vocab.cpp).
        self.bos = self.bos_token if llama.llama_vocab_get_add_bos(self._vocab) else None
        # Tables that fill as they are asked; several threads may, and all write the same.
        self._pieces: dict[bool, dict[int, bytes]] = {False: {}, True: {}}
        self._ends: dict[int, bool] = {}

    @property
    def handle(self) -> llama.llama_vocab_p:
        """The ``llama_vocab *``.

        Raises
        ------
        ClosedError
            The model is closed.
        """
        if self._vocab is None:
            raise ClosedError("this model is closed: open it again with Model.open()")
        return self._vocab

    def close(self) -> None:
        """Forget the pointer: the model is about to be freed."""
        self._vocab = None
        self._pieces = {False: {}, True: {}}
        self._ends = {}

    @property
    def named_tokens(self) -> dict[str, int]:
        """Special tokens that there are, by transformers' names of them."""
        found = {f"{name}_token": int(token(self.handle)) for name, token in _NAMED.items()}
        found["unk_token"] = next(
            (one.token for one in self._specials if one.kind == "unknown"), llama.LLAMA_TOKEN_NULL
        )
        return {name: token for name, token in found.items() if 0 <= token < self.n_tokens}

    @property
    def special_texts(self) -> dict[str, str]:
        """See `Model.special_texts`."""
        texts = {
            name: self.token_to_piece(token, special=True).decode("utf-8", "replace")
            for name, token in self.named_tokens.items()
        }
        return {"bos_token": "", "eos_token": "", **texts}

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Tokens of ``text``, no BOS added; ``special`` reads ``<|...|>`` as control tokens."""
        # A lone surrogate has no UTF-8, and llama.cpp's tokenizers are not made for anything else.
        return self._tokenize(text.encode("utf-8", "replace"), special=special)

    def tokenize_parts(
        self, parts: Sequence[tuple[str, bool]], *, after_text: bool = False
    ) -> list[int]:
        """Tokens of a text in parts as those of the whole; see `streamsink.engine.context`."""
        text, words = join(parts)
        tokens: list[int] = []
        goes_on = after_text
        for start, stop, token in cut(text, words, self._specials):
            if token is not None:
                tokens.append(token)
            else:
                raw = text[start:stop]
                found = self._behind_text(raw) if goes_on else self._tokenize(raw)
                tokens += self._spelled(found, raw) if touches(start, stop, words) else found
            goes_on = token is None
        return tokens

    def _spelled(self, tokens: list[int], text: bytes) -> list[int]:
        """Tokens of somebody's words, in which a tokenizer may put control tokens together.

        A tokenizer is free to make them of letters: merges and vocabularies know no kinds. What it
        puts for letters that it does not know is a control token too, but not one of the text.
        """
        spelled: list[int] = []
        for token in tokens:
            written = self._controls.get(token)
            if written is None or written not in text:
                spelled.append(token)
                continue
            half = len(written.decode("utf-8", "replace")[: len(written) // 2].encode())
            for part in (written[:half], written[half:]) if half < len(written) else ():
                spelled += self._spelled(self._behind_text(part), part)
        return spelled

    def _behind_text(self, text: bytes) -> list[int]:
        """Tokens of a text that goes on from another: nothing is put before it."""
        kind = llama.llama_vocab_type(self.handle)
        if text and kind in (llama.LLAMA_VOCAB_TYPE_SPM, llama.LLAMA_VOCAB_TYPE_UGM):
            # These put a space before every text. Behind one that its first letter does not merge
            # with there is none.
            for front in _FRONTS:
                before, whole = self._tokenize(front), self._tokenize(front + text)
                if before and whole[: len(before)] == before:
                    return whole[len(before) :]
        return self._tokenize(text)

    @cached_property
    def _specials(self) -> list[SpecialToken]:
        """What is found in a text before it is tokenized, the longest first."""
        vocab = self.handle
        attributes = map(llama.llama_vocab_get_attr, repeat(vocab), range(self.n_tokens))
        found = [
            SpecialToken(
                token,
                text := llama.llama_vocab_get_text(vocab, token),
                _kind(attr, text),
                strips_left=bool(attr & llama.LLAMA_TOKEN_ATTR_LSTRIP),
                strips_right=bool(attr & llama.LLAMA_TOKEN_ATTR_RSTRIP),
            )
            for token, attr in enumerate(attributes)
            if attr & _SPECIAL
        ]
        return sorted((one for one in found if one.text), key=lambda one: -len(one.text))

    @cached_property
    def _controls(self) -> dict[int, bytes]:
        """Texts of the control tokens."""
        return {one.token: one.text for one in self._specials if one.kind == "control"}

    def _tokenize(self, data: bytes, *, special: bool = False) -> list[int]:
        if not data:
            return []
        room = len(data) + 16
        while True:
            tokens = (ctypes.c_int32 * room)()
            n = int(
                llama.llama_tokenize(self.handle, data, len(data), tokens, room, False, special)
            )
            if n >= 0:
                return list(tokens[:n])
            if n == -(2**31):
                raise UsageError(
                    f"a text of {len(data)} bytes is too long for one call: feed parts"
                )
            room = -n

    def token_to_piece(self, token: int, *, special: bool = False) -> bytes:
        """Bytes of one token, perhaps not whole characters; control tokens only on ``special``."""
        table = self._pieces[special]
        piece = table.get(token)
        if piece is None:
            piece = table[token] = self._piece(token, special=special)
        return piece

    def _piece(self, token: int, *, special: bool) -> bytes:
        if not 0 <= token < self.n_tokens:  # llama.cpp throws through C, which ends the process
            raise UsageError(f"token {token} is not in the vocabulary of {self.n_tokens} tokens")
        room = PIECE_BYTES
        while True:
            # One for each call: a vocabulary is shared by threads.
            buffer = (ctypes.c_char * room)()
            n = int(llama.llama_token_to_piece(self.handle, token, buffer, room, 0, special))
            if n >= 0:
                return buffer.raw[:n]
            room = -n

    def is_eog(self, token: int) -> bool:
        """Whether the token ends a turn or a text."""
        ends = self._ends.get(token)
        if ends is None:
            ends = self._ends[token] = bool(llama.llama_vocab_is_eog(self.handle, token))
        return ends


def _kind(attributes: int, text: bytes) -> Kind:
    if attributes & llama.LLAMA_TOKEN_ATTR_CONTROL:
        return "control"
    if attributes & llama.LLAMA_TOKEN_ATTR_UNKNOWN:
        return "unknown"
    return "mark" if looks_like_a_mark(text) else "user-defined"
