"""Tokens and text, by llama.cpp's own tokenizer."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import llama_cpp.llama_cpp as llama

from streamsink.errors import ClosedError, UsageError

PIECE_BYTES = 256


class NativeVocabulary:
    """The vocabulary of a loaded model; implements `streamsink.backend.Vocabulary`.

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

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Tokens of ``text``, no BOS added; ``special`` reads ``<|...|>`` as control tokens."""
        if not text:
            return []
        # A lone surrogate has no UTF-8, and llama.cpp's tokenizers are not made for anything else.
        data = text.encode("utf-8", "replace")
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

    def tokenize_parts(
        self, parts: Sequence[tuple[str, bool]], *, after_text: bool = False
    ) -> list[int]:
        """Tokens of a text in parts, of which those that say so may hold control tokens."""
        return [token for text, special in parts for token in self.tokenize(text, special=special)]

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """Bytes of one token, perhaps not whole characters; control tokens only on ``special``."""
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

    def ends_generation(self, token: int) -> bool:
        """Whether the token ends a turn or a text."""
        return bool(llama.llama_vocab_is_eog(self.handle, token))
