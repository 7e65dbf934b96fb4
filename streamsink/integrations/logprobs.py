"""Logprobs of an endless completion: what is told of a token is taken down when it is chosen.

``llama_cpp.Llama`` keeps a row of the vocabulary for every token, and works them out together when
the completion has ended. A completion without an end has no room for that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import llama_cpp.llama_cpp as native
import numpy as np
from llama_cpp import Llama
from numpy.typing import NDArray


class Chosen(NamedTuple):
    """A token, its logprob, and the most probable tokens with theirs, best first."""

    token: int
    logprob: float
    best: tuple[tuple[int, float], ...]

    @classmethod
    def of(cls, token: int, logits: NDArray[np.single], n_top: int) -> Chosen:
        """What is told of a token that was chosen by these logits."""
        row = Llama.logits_to_logprobs(logits)
        ids = np.arange(len(row))
        best = np.lexsort((ids, row))[::-1][:n_top]  # of equals the last one first, as in `Llama`
        return cls(token, float(row[token]), tuple((int(at), float(row[at])) for at in best))


class Newest:
    """Rows of logits by the index of their token, of which the newest are there.

    Parameters
    ----------
    rows : ndarray of float32, shape (n_rows, n_vocab)
        Places that are used again and again.
    n_tokens : int
        Tokens so far.
    """

    def __init__(self, rows: NDArray[np.single], n_tokens: int) -> None:
        self._rows = rows
        self._n_tokens = n_tokens

    def __getitem__(self, at: int | tuple[int, slice]) -> NDArray[np.single]:
        """The row of a token, or a part of it; negative indices count from the newest token.

        Raises
        ------
        IndexError
            It is not there any more.
        """
        index, part = at if isinstance(at, tuple) else (at, slice(None))
        index = index + self._n_tokens if index < 0 else index
        if not max(0, self._n_tokens - len(self._rows)) <= index < self._n_tokens:
            raise IndexError(f"the logits of token {index} are not kept: the newest are")
        row: NDArray[np.single] = self._rows[index % len(self._rows), part]
        return row


def told(chosen: Sequence[Chosen], llama: Llama, *, n_before: int) -> dict[str, list[Any]]:
    """Logprobs of a completion as `Llama` tells them.

    Parameters
    ----------
    chosen : sequence of Chosen
        Its tokens; one that ended it may be the last, and is not told of.
    llama : Llama
        Whose tokens they are.
    n_before : int
        Letters of the text before it.
    """
    record: dict[str, list[Any]] = {
        name: [] for name in ("tokens", "text_offset", "token_logprobs", "top_logprobs")
    }
    vocab = native.llama_model_get_vocab(llama.model)
    text = b""
    before: list[int] = []
    for token, logprob, best in chosen:
        if native.llama_vocab_is_eog(vocab, token):
            break
        if token != llama.token_bos():
            piece = llama.detokenize([token], prev_tokens=before).decode("utf-8", "ignore")
            top = {
                llama.detokenize([other], prev_tokens=before).decode("utf-8", "ignore"): value
                for other, value in best
            }
            record["tokens"].append(piece)
            record["text_offset"].append(n_before + len(text.decode("utf-8", "ignore")))
            record["token_logprobs"].append(logprob)
            record["top_logprobs"].append({**top, piece: logprob})
        before.append(token)
        text = llama.detokenize(before)
    return record
