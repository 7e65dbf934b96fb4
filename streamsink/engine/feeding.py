"""Tokens that come from outside: fed, scored, taken back, all of them or none."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from streamsink.core.snapshot import Snapshot
from streamsink.engine.base import Base, Input, place_of
from streamsink.engine.context import Logits
from streamsink.engine.scoring import nll
from streamsink.engine.task import T, Task, call, quick
from streamsink.engine.undo import Undo
from streamsink.errors import UsageError


class Feeding(Base):
    """What is fed to a stream."""

    def feed(self, text: Input, *, special: bool = False) -> int:
        """Take in text or tokens of any length, evicting on the way.

        Parameters
        ----------
        text : str or sequence of int
            Text gets the model's BOS in front if the stream is empty; tokens are taken as they are.
        special : bool, default False
            Read ``<|...|>`` in the text as control tokens.

        Returns
        -------
        int
            Tokens taken in.

        Raises
        ------
        UsageError
            A token that the vocabulary does not have, or a first prompt too long to be pinned.
        DecodeError, CacheError
            llama.cpp failed; the stream holds what was decoded before and goes on. ``stats.index``
            says how far it came.
        """
        return self._do(self._feed(text, special))

    async def afeed(self, text: Input, *, special: bool = False) -> int:
        """`feed` for an event loop, which is free meanwhile.

        Cancelled, the stream holds what was decoded before; ``stats.index`` says how far it came.
        """
        return await self._ado(self._feed(text, special))

    def _feed(self, text: Input, special: bool) -> Task[int]:
        tokens = self._tokens(text, special)
        self._begin(tokens)
        start = time.perf_counter()
        yield from self._take_in(tokens)
        self._feeding.add(len(tokens), start)
        return len(tokens)

    @call
    def score(self, text: Input, *, special: bool = False) -> Task[NDArray[np.float64]]:
        """Take in text or tokens like `feed`, and say how well the stream foresaw each token.

        Returns
        -------
        ndarray of float64, shape (n_tokens,)
            Negative log-likelihood in nat of each token given the stream before it; NaN for a
            first token that has nothing before it. A BOS that was put in front counts as a token.

        Raises
        ------
        UsageError, DecodeError, CacheError
            As for `feed`.
        """
        tokens = self._tokens(text, special)
        self._begin(tokens)
        scores = np.full(len(tokens), np.nan)
        if not tokens:
            return scores
        start = time.perf_counter()
        if self._controller.live():
            scores[:1] = nll((yield from self._driver.logits()), tokens[:1])
        yield from self._take_in(tokens, scores)
        self._feeding.add(len(tokens), start)
        return scores

    @call
    def rewind(self, index: int, *, anew: bool = False) -> Task[None]:
        """Go back to where the token of an index was yet to come; what came since is gone.

        Parameters
        ----------
        index : int
            An index of the window, or the stream's next.
        anew : bool, default False
            Where the model cannot take tokens back, evaluate again what is visible before them; it
            remembers nothing of what was evicted.

        Raises
        ------
        UsageError
            It is not in the window: what was evicted before it does not come back.
        CacheError
            The model cannot take tokens back: a recurrent state holds them.
        DecodeError
            What is visible could not be evaluated; whatever comes next tries again.
        """
        index = place_of(index)
        controller = self._controller
        ledger = controller.ledger
        first, last = ledger.next_index - ledger.n_newest, controller.state.n_given
        if not first <= index <= last:
            raise UsageError(
                f"the stream cannot go back to {index}: {first} to {last} are possible"
            )
        if index < ledger.next_index:
            if anew and not self._context.capabilities.takes_back:
                yield from self._driver.read_until(index)
            else:
                yield from self._driver.truncate(ledger.next_index - index)
        controller.drop(index)
        pinned = controller.state.pinned
        if (left := pinned.until(index)) is not pinned:
            controller.settle_on(controller.state.but(pinned=left))

    @quick
    def begin_turn(self) -> None:
        """Begin a turn with the next token: ``n_discard="turn"`` evicts up to such places."""
        self._controller.begin_turn()

    @call
    def logits(self) -> Task[Logits]:
        """What the stream foresees: the logits of the next token.

        Returns
        -------
        ndarray of float32, shape (n_vocab,)
            A copy.

        Raises
        ------
        UsageError
            Nothing has been fed.
        """
        if self._controller.is_empty:
            raise UsageError("nothing to go on from: feed a prompt first")
        row: Logits = (yield from self._driver.logits())[0].copy()
        return row

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is done within happens, or nothing of it.

        >>> with stream.transaction():
        ...     stream.feed(question)
        ...     stream.begin_turn()

        What ends the block, an error or Ctrl-C, puts the stream back to where it stood before.
        Tokens that came are taken out, and what was evicted for them comes back: from a copy of its
        cells where that was worth making, or else evaluated anew, and then it does not remember
        what was evicted earlier. Signals wait until the end of the block or between two decodes.
        Other threads are told that the stream is busy, and a generation goes on after the block.
        """
        if self._door.guest == threading.get_ident():  # within another one, it is a part of that
            yield
            return
        with self._alone, self._door.left_open():
            before, n_news = self._begin_undo(), len(self._news)
            try:
                yield
            except BaseException:
                self._go_back(before)
                while len(self._news) > n_news:
                    self._news.pop()
                raise
            finally:
                self._driver.undo = None

    def _all_or_nothing(self, task: Task[T]) -> Task[T]:
        """A task of which all happens, or nothing."""
        if self._driver.undo:  # within a transaction it is a part of that
            return (yield from task)
        before, n_news = self._note_undo(), len(self._news)
        try:
            return (yield from task)
        except GeneratorExit:  # nobody runs it any more
            self._controller.resume(before, with_cells=False)
            raise
        except BaseException:
            yield from self._undo(before)
            while len(self._news) > n_news:
                self._news.pop()
            raise
        finally:
            self._driver.undo = None

    @quick
    def _begin_undo(self) -> Snapshot:
        return self._note_undo()

    def _note_undo(self) -> Snapshot:
        self._driver.undo = Undo(
            self._context.save,
            self._controller.snapshot,
            self._feeding.rate,
            takes_back=self._context.capabilities.takes_back,
        )
        return self._controller.snapshot()

    @call
    def _go_back(self, before: Snapshot) -> Task[None]:
        yield from self._undo(before)

    def _undo(self, before: Snapshot) -> Task[None]:
        undo, self._driver.undo = self._driver.undo, None
        if undo:
            yield from self._driver.go_back(before, undo)

    def _take_in(
        self, tokens: Sequence[int], scores: NDArray[np.float64] | None = None
    ) -> Task[None]:
        """Decode tokens; those that a failure leaves over are not part of the stream."""
        controller = self._controller
        n_given = controller.n_given
        controller.take(tokens)
        try:
            yield from self._driver.advance(scores)
        except BaseException:
            self._driver.clear_doubt()
            controller.drop(max(n_given, controller.next_index))
            raise
