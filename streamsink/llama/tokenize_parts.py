"""Tokens of a text of which some parts may hold control tokens and others not.

Tokenized part by part, a text gets other tokens than as a whole: merges end at every border, and
SentencePiece puts a space before every part. So the text is cut as llama.cpp cuts a whole one
(llama-vocab.cpp: tokenizer_st_partition), at its special tokens, only that those of control are
not looked for in the words of people.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

Kind: TypeAlias = Literal["control", "unknown", "mark", "user-defined"]
"""Which texts become a token before anything else does.

llama.cpp finds user-defined tokens in every text, as they mostly are runs of spaces and the like.
Some converters count turn markers as such, and these are marks here, by their look.
"""

_MARK = re.compile("<[|｜].*>|<.*[|｜]>".encode(), re.DOTALL)
_SPACES = b" \t\n\v\f\r"  # C's isspace


@dataclass(frozen=True, slots=True)
class SpecialToken:
    """A token that is found in a text before the text is tokenized.

    Attributes
    ----------
    token : int
        Its id.
    text : bytes
        As it stands in a text.
    kind : {"control", "unknown", "mark", "user-defined"}
        Only the last are found in somebody's words.
    strips_left, strips_right : bool
        Whether it takes the spaces beside it away.
    """

    token: int
    text: bytes
    kind: Kind
    strips_left: bool = False
    strips_right: bool = False


class Range(NamedTuple):
    """Bytes of a text, half-open, that are one special token, or are not yet tokenized (None)."""

    start: int
    stop: int
    token: int | None = None


Words: TypeAlias = Sequence[tuple[int, int]]
"""Ranges of a text that are somebody's words."""


def looks_like_a_mark(text: bytes) -> bool:
    """Whether a text is one that begins or ends turns in chat templates."""
    return bool(_MARK.fullmatch(text))


def join(parts: Sequence[tuple[str, bool]]) -> tuple[bytes, list[tuple[int, int]]]:
    """The whole text, and where in it somebody's words are."""
    text, words = bytearray(), []
    for part, special in parts:
        # A lone surrogate has no UTF-8, and llama.cpp's tokenizers are not made for anything else.
        data = part.encode("utf-8", "replace")
        if data and not special:
            words.append((len(text), len(text) + len(data)))
        text += data
    return bytes(text), words


def touches(start: int, stop: int, words: Words) -> bool:
    """Whether a range has bytes of somebody's words."""
    return any(begun < stop and start < end for begun, end in words)


def cut(text: bytes, words: Words, specials: Sequence[SpecialToken]) -> list[Range]:
    """Cut a text at its special tokens.

    Parameters
    ----------
    text : bytes
        The whole text.
    words : sequence of tuple
        Where in it somebody's words are.
    specials : sequence of SpecialToken
        The longest first.
    """
    ranges = [Range(0, len(text))] if text else []
    for special in specials:
        if special.text in text:
            ranges = [
                part
                for whole in ranges
                for part in (_cut(text, whole, words, special) if whole.token is None else [whole])
            ]
    return ranges


def _cut(text: bytes, whole: Range, words: Words, special: SpecialToken) -> Iterator[Range]:
    start, stop, _ = whole
    searched = start
    while (at := text.find(special.text, searched, stop)) >= 0:
        end = at + len(special.text)
        if special.kind != "user-defined" and touches(at, end, words):
            searched = at + 1
            if special.kind == "mark":  # in two it is none any more
                yield Range(start, searched)
                start = searched
            continue
        left = len(text[start:at].rstrip(_SPACES)) if special.strips_left else at - start
        if left:
            yield Range(start, start + left)
        yield Range(at, end, special.token)
        if special.strips_right:
            end = stop - len(text[end:stop].lstrip(_SPACES))
        start = searched = end
    if start < stop:
        yield Range(start, stop)
