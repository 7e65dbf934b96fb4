"""Tokens that the model chooses, one `Step` each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from streamsink.core.events import Finish, Step
from streamsink.core.sampling import Sampling
from streamsink.engine.base import Base, Meter
from streamsink.engine.context import Sampler
from streamsink.engine.task import Task
from streamsink.engine.text import TextStream, open_bytes
from streamsink.errors import StreamsinkError, UsageError
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
    ends: frozenset[int] = frozenset()
    shows: frozenset[int] = frozenset()
    record: list[Step] | None = None

    @classmethod
    def checked(
        cls,
        max_tokens: int | None,
        sampling: Sampling | None,
        *,
        ignore_eos: bool,
        **others: Any,
    ) -> _Asked:
        """What is asked for, if it can be."""
        sampling = sampling or Sampling()
        if max_tokens is not None:
            max_tokens = checked.whole("max_tokens", max_tokens, 0, MOST_TOKENS)
        checked.truth("ignore_eos", ignore_eos)
        if ignore_eos and sampling.is_constrained:
            raise UsageError("a grammar ends where the text ends: drop ignore_eos or the grammar")
        return cls(max_tokens, sampling, ignore_eos, **others)


@dataclass(slots=True)
class _Said:
    """A generation under way.

    Attributes
    ----------
    sampler : Sampler or None
        Its chain.
    step : Step or None
        What was said last and has not been yielded.
    n : int
        Tokens said.
    is_over : bool
        Whether no other one follows.
    """

    asked: _Asked
    text: TextStream
    sampler: Sampler | None = None
    step: Step | None = None
    n: int = 0
    is_over: bool = False

    def __post_init__(self) -> None:
        self.is_over = self.asked.max_tokens == 0

    def has_said(self, step: Step) -> None:
        """Note a step that nobody has seen yet."""
        self.step = step
        self.n += 1
        self.is_over = step.finish is not None

    def is_yielded(self) -> None:
        """Note that somebody has seen the last step."""
        self.step = None


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
        stop : sequence of str, default ()
            Strings that end the text.
        sampling : Sampling, optional
            How tokens are chosen.
        ignore_eos : bool, default False
            Go on when the model ends its text.
        ends : collection of int, default ()
            Tokens that end the text beside those that the vocabulary marks so.
        shows : collection of int, default ()
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
        asked = _Asked.checked(
            max_tokens,
            sampling,
            ignore_eos=ignore_eos,
            ends=frozenset(ends),
            shows=frozenset(shows),
            record=record,
        )
        return self._generate(_Said(asked, TextStream(stop)))

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
        asked = _Asked.checked(max_tokens, sampling, ignore_eos=ignore_eos)
        await asyncio.to_thread(self._context.check_sampling, asked.sampling)
        said = _Said(asked, TextStream(stop))
        await self._ado(self._beginning(said))
        while not said.is_over:
            try:
                step = await self._ado(self._saying_next(said))
            except BaseException:
                if said.step:
                    self._unsay(said.step)
                raise
            yield step
            said.is_yielded()

    def _generate(self, said: _Said) -> Iterator[Step]:
        asked = said.asked
        self._context.check_sampling(asked.sampling)  # it may take seconds, and Ctrl-C acts there
        self._do(self._beginning(said))
        while not said.is_over:
            try:
                step = self._do(self._saying_next(said))
            except BaseException:
                # Ctrl-C or a callback, on the way out.
                if said.step:
                    self._unsay(said.step, asked.record)
                raise
            yield step
            said.is_yielded()

    def _beginning(self, said: _Said) -> Task[None]:
        controller, sampling = self._controller, said.asked.sampling
        if controller.is_empty:
            yield from self._open()
        recent = controller.live()[-sampling.repeat_last_n :] if sampling.penalizes else []
        said.sampler = self._context.sampler(sampling, recent)
        self._drop_sampler()
        self._sampler = said.sampler
        self._generating = Meter()
        said.text.push(self._open_character())

    def _open(self) -> Task[None]:
        """Begin with the token that opens a stream."""
        if self._tokenizer.bos is None:
            raise UsageError("nothing to go on from: feed a prompt first")
        tokens = [self._tokenizer.bos]
        self._begin(tokens)
        self._controller.take(tokens)
        yield from self._driver.advance()

    def _saying_next(self, said: _Said) -> Task[Step]:
        """Choose the next token and take it in: it is pending."""
        start = time.perf_counter()
        if self._sampler is not said.sampler:
            raise UsageError("another generation has begun on this stream: use that one")
        yield from self._driver.ready_logits()
        step = self._choose(said)
        said.has_said(step)
        self._controller.take((step.token,))
        if said.asked.record is not None:
            said.asked.record.append(step)
        self._generating.add(1, start)
        if not step.finish:
            self._runner.go_ahead()
        return step

    def _choose(self, said: _Said) -> Step:
        """Choose the next token; it is not yet part of the stream."""
        asked, text, sampler = said.asked, said.text, said.sampler
        assert sampler
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
        if finish is None and said.n + 1 == asked.max_tokens:
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
            self._runner.run(self._taken_back(step))
            if record and record[-1] is step:
                record.pop()

    def _taken_back(self, step: Step) -> Task[None]:
        controller = self._controller
        if controller.next_index == step.index + 1 == controller.n_given:
            # In an engine it may have been decoded meanwhile.
            with suppress(StreamsinkError):
                yield from self._driver.truncate(1)
        if controller.next_index == step.index and controller.pending() == [step.token]:
            controller.drop(step.index)
