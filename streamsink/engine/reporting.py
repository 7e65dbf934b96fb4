"""What a stream tells of itself: numbers, what it can still see, its text."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from streamsink.core.events import Stats, Visible
from streamsink.engine.base import Base
from streamsink.engine.task import Task, call


class Reporting(Base):
    """A stream looked at."""

    @property
    def stats(self) -> Stats:
        """The stream in numbers."""
        with self._still:
            state = self._controller.state
            ledger, counters, choice = state.ledger, state.counters, state.choice
            return Stats(
                index=state.n_given,
                sees=tuple((part.start, part.stop) for part in ledger.visible()),
                positions=(ledger.first_pos, ledger.next_pos),
                pinned=state.n_pinned,
                window=ledger.n_live - state.n_pinned,
                evicted=counters.evicted,
                evictions=counters.evictions,
                reanchors=counters.reanchors,
                shifts=counters.shifts,
                rebases=counters.rebases,
                gap=ledger.sink_lag,
                slack=choice.slack,
                placement=choice.placement,
                why="; ".join(filter(None, (choice.why, self._runner.why))),
                feed_rate=self._feeding.rate,
                rate=self._generating.rate,
                threads=self._driver.context.threads,
            )

    @property
    def n_unread(self) -> int:
        """Tokens taken in that are yet to be evaluated.

        May be asked for from any thread at any time, so also while `feed` is under way: it says how
        far that is.
        """
        return self._controller.n_pending

    @call
    def visible(self) -> Task[list[Visible]]:
        """What the model can still see, oldest first; what lies between was forgotten.

        A token that was generated but not yet evaluated is evaluated first.
        """
        yield from self._driver.advance()
        ledger = self._controller.ledger
        left = ledger.n_pinned
        held = {at for span in self._controller.state.pinned.held for at in range(*span.ranges[0])}
        parts: list[Visible] = []
        for part in ledger.visible():
            n = min(left, len(part))
            left -= n
            rest = ((index in held, index) for index in part[n:])
            grouped = [(k, [index for _, index in g]) for k, g in groupby(rest, lambda one: one[0])]
            runs = [(range(g[0], g[-1] + 1), k) for k, g in grouped]
            for here, pinned in ((part[:n], True), *runs):
                if here:
                    ids = tuple(self._controller.ids(here))
                    parts.append(Visible(here.start, here.stop, pinned, ids, self.text(ids)))
        return parts

    def tokens_between(self, start: int, stop: int) -> list[int]:
        """Ids of the tokens of an index range that the model can still see, oldest first."""

        def look() -> list[int]:
            controller = self._controller
            ledger, n_given = controller.ledger, controller.n_given
            pending = range(max(start, ledger.next_index), min(stop, n_given))
            return controller.ids(*ledger.between(start, stop), pending)

        with self._still:
            return self._runner.look(look)

    def visible_tokens(self) -> list[int]:
        """Ids of all tokens that the model can still see, oldest first."""
        with self._still:
            return self._runner.look(self._controller.live)

    def text(self, tokens: Sequence[int]) -> str:
        """Text of tokens, control tokens included."""
        piece = self._tokenizer.token_to_piece
        return b"".join(piece(token, special=True) for token in tokens).decode("utf-8", "replace")

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Tokens of a text, no BOS added."""
        return self._tokenizer.tokenize(text, special=special)

    def tokenize_parts(
        self, parts: Sequence[tuple[str, bool]], *, after_text: bool = False
    ) -> list[int]:
        """Tokens of a text in parts: those of the whole of it, no BOS added.

        Parameters
        ----------
        parts : sequence of (str, bool)
            Texts, and whether ``<|...|>`` in them are control tokens.
        after_text : bool, default False
            Whether it goes on from ordinary text.
        """
        return self._tokenizer.tokenize_parts(parts, after_text=after_text)
