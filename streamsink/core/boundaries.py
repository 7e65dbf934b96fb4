"""Where a window may begin: evictions of whole turns or sentences end there."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence

from streamsink.engine.context import Tokenizer

ENDS = ".!?…。！？"
CLOSERS = "\"'”’»)]}*_ \n\t"
"""What may stand between the end of a sentence and the next one."""


class Boundaries:
    """Indices of a stream at which the window may begin, in order."""

    def __init__(self, indices: Iterable[int] = ()) -> None:
        self._indices = list(indices)

    @property
    def indices(self) -> tuple[int, ...]:
        """Those that are known."""
        return tuple(self._indices)

    def add(self, index: int) -> None:
        """Let the window begin at an index, which is not before those there are."""
        if not self._indices or self._indices[-1] < index:
            self._indices.append(index)

    def after(self, index: int) -> int | None:
        """The next place at which the window may begin; what lies before is forgotten."""
        del self._indices[: bisect_right(self._indices, index)]
        return self._indices[0] if self._indices else None

    def cut(self, index: int) -> None:
        """Forget those behind an index."""
        del self._indices[bisect_right(self._indices, index) :]

    def clear(self) -> None:
        """Forget all."""
        self._indices.clear()


class Sentences:
    """Tells tokens that end a sentence, by their text alone: ``e.g.`` passes for one."""

    def __init__(self, vocabulary: Tokenizer) -> None:
        self._tokenizer = vocabulary
        self._known: dict[int, bool] = {}

    def ends(self, tokens: Sequence[int], index: int) -> list[int]:
        """Indices behind those of the tokens, the first of which is at ``index``."""
        return [index + at + 1 for at, token in enumerate(tokens) if self._is_end(token)]

    def _is_end(self, token: int) -> bool:
        known = self._known.get(token)
        if known is None:
            text = self._tokenizer.token_to_piece(token).decode("utf-8", "replace")
            bare = text.rstrip(CLOSERS)
            known = self._known[token] = bare[-1:] in ENDS if bare else "\n" in text
        return known
