"""Tokens that the model chooses, one `Step` each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from streamsink.core.events import Finish, Step
from streamsink.core.sampling import Sampling
from streamsink.engine.base import Base, Meter
from streamsink.engine.context import Sampler
from streamsink.engine.text import TextStream, open_bytes
from streamsink.errors import UsageError
from streamsink.system import checked

MOST_TOKENS = 2**62
LONGEST_CHARACTER = 4
"""Bytes, and so tokens, that a character of UTF-8 can have."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a generation was asked for; see `Generating.generate`."""

    max_tokens: int | None
    sampling: Sampling
    ignore_eos: bool
    ends: frozenset[int]
    shows: frozenset[int]
    record: list[Step] | None


class Generating(Base):
    """What a stream says."""

    def generate(
        self,
        max_tokens: int | None = 256,
        stop: Sequence[str] = (),
        sampling: Sampling | None = None,
        *,
        ignore_eos: bool = False,
        ends: Collection[int] = (),
        shows: Collection[int] = (),
        record: list[Step] | None = None,
    ) -> Iterator[Step]:
        """Let the model go on, one `Step` a token.

        Every token yielded is part of the stream, the one that ended it included. Stop iterating
        whenever you like; feed, change the policy, go on.

        Parameters
        ----------
        max_tokens : int, optional
            Most tokens; ``None`` goes on until something else ends it. A stream never fills up, so
            this may be for ever.
        stop : sequence of str
            Strings that end the text.
        sampling : Sampling, optional
            How tokens are chosen.
        ignore_eos : bool
            Go on when the model ends its text.
        ends : collection of int
            Tokens that end the text beside those that the vocabulary marks so.
        shows : collection of int
            Control tokens that are part of the text, as the marks of a thought may be.
        record : list of Step, optional
            Receives every step together with its entry into the stream: whatever interrupts the
            caller, the list has what the stream has.

        Raises
        ------
        UsageError
            Nothing has been fed and the model has no BOS, or a grammar that cannot be read.
        DecodeError, CacheError
            llama.cpp failed; the stream holds all tokens yielded and goes on.
        """
        sampling = sampling or Sampling()
        if max_tokens is not None:
            max_tokens = checked.whole("max-tokens", max_tokens, 0, MOST_TOKENS)
        checked.truth("ignore-eos", ignore_eos)
        if ignore_eos and sampling.grammar:
            raise UsageError("a grammar ends where the text ends: drop ignore_eos or the grammar")
        asked = _Asked(max_tokens, sampling, ignore_eos, frozenset(ends), frozenset(shows), record)
        return self._generate(asked, TextStream(stop))

    async def agenerate(
        self,
        max_tokens: int | None = 256,
        stop: Sequence[str] = (),
        sampling: Sampling | None = None,
        *,
        ignore_eos: bool = False,
    ) -> AsyncIterator[Step]:
        """`generate` for an event loop, which is free while llama.cpp works.

        Cancelled, the stream holds what was yielded: the step under way is waited for and taken
        back.
        """
        steps = self.generate(max_tokens, stop, sampling, ignore_eos=ignore_eos)
        while True:
            under_way = asyncio.ensure_future(asyncio.to_thread(next, steps, None))
            try:
                step = await asyncio.shield(under_way)
            except asyncio.CancelledError:
                # However often it is cancelled meanwhile: the step must not stay.
                while not under_way.done():
                    with suppress(asyncio.CancelledError):
                        await asyncio.wait([under_way])
                late = None if under_way.exception() else under_way.result()
                if late:
                    self._unsay(late)
                raise
            if step is None:
                return
            yield step

    def _generate(self, asked: _Asked, text: TextStream) -> Iterator[Step]:
        sampling, max_tokens, record = asked.sampling, asked.max_tokens, asked.record
        controller = self._controller
        self._context.check_sampling(sampling)  # it may take seconds, and Ctrl-C acts there
        with self._alone:
            if controller.is_empty:
                self._open()
            recent = controller.live()[-sampling.repeat_last_n :] if sampling.penalizes else []
            sampler = self._context.sampler(sampling, recent)
            self._drop_sampler()
            self._sampler = sampler
            self._generating = Meter()
            text.push(self._open_character())
        n = 0
        while max_tokens is None or n < max_tokens:
            step: Step | None = None
            try:
                with self._alone:
                    start = time.perf_counter()
                    if self._sampler is not sampler:
                        raise UsageError(
                            "another generation has begun on this stream: use that one"
                        )
                    n += 1
                    step = self._step(sampler, text, asked, last=n == max_tokens)
                    controller.take((step.token,))
                    if record is not None:
                        record.append(step)
                    self._generating.add(1, start)
            except BaseException:
                # Ctrl-C or a callback, on the way out.
                if step:
                    self._unsay(step, record)
                raise
            yield step
            if step.finish:
                return

    def _open(self) -> None:
        """Begin with the token that opens a stream."""
        if self._tokenizer.bos is None:
            raise UsageError("nothing to go on from: feed a prompt first")
        tokens = [self._tokenizer.bos]
        self._begin(tokens)
        self._controller.take(tokens)
        self._driver.advance()

    def _step(self, sampler: Sampler, text: TextStream, asked: _Asked, *, last: bool) -> Step:
        """Choose the next token; it is not yet part of the stream."""
        self._driver.ready_logits()
        index = self._controller.next_index
        token = self._context.sample(sampler, index)
        finish: Finish | None = None
        ends = token in asked.ends or self._tokenizer.is_eog(token)
        if ends and not asked.ignore_eos:
            finish = "eos"
        piece = (
            b"" if finish else self._tokenizer.token_to_piece(token, special=token in asked.shows)
        )
        if finish is None and sampler.stuck:
            finish = "grammar"
        if finish is None and last:
            finish = "length"
        # A character that has only begun is left to what may come next.
        fresh = text.push(piece, final=finish is not None, goes_on=finish == "length")
        if text.stopped:
            finish = "stop"
        return Step(token, index, fresh, finish)

    def _open_character(self) -> bytes:
        """Bytes at the end of the stream with which a character has only begun."""
        newest = self._controller.live()[-LONGEST_CHARACTER:]
        pieces = (self._tokenizer.token_to_piece(token, special=True) for token in newest)
        return open_bytes(b"".join(pieces))

    def _unsay(self, step: Step, record: list[Step] | None = None) -> None:
        """Take back a token that nobody will see: a stream holds what was yielded."""
        with self._still:
            controller = self._controller
            is_newest = controller.next_index == step.index
            if is_newest and controller.pending() == [step.token]:
                controller.drop(step.index)
                if record and record[-1] is step:
                    record.pop()
