"""Where sentences end, by the text of single tokens: evictions of whole sentences end there."""

from __future__ import annotations

from streamsink.engine.context import Tokenizer

ENDS = ".!?…。！？"
CLOSERS = "\"'”’»)]}*_ \n\t"
"""What may stand between the end of a sentence and the next one."""


class Sentences:
    """Tells tokens that end a sentence, by their text alone: ``e.g.`` passes for one."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, bool] = {}

    def ends_with(self, token: int) -> bool:
        """Whether a sentence ends with a token."""
        known = self._known.get(token)
        if known is None:
            text = self._tokenizer.token_to_piece(token).decode("utf-8", "replace")
            bare = text.rstrip(CLOSERS)
            known = self._known[token] = bare[-1:] in ENDS if bare else "\n" in text
        return known
