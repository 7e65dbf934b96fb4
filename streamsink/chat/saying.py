"""Questions taken in, and their answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from msgspec.structs import replace

from streamsink.chat.answer import Answer
from streamsink.chat.base import AS_SET, AsSet, Base
from streamsink.chat.writer import Words
from streamsink.core.events import Step
from streamsink.core.sampling import Sampling
from streamsink.errors import UsageError
from streamsink.session.conversation import Conversation, Message

OVER = {
    "eos": "the answer is complete: the model has ended it",
    "stop": "the answer is complete: a stop string has ended it",
    "grammar": "the grammar lets nothing follow",
}
"""Why an answer does not go on, by how it ended."""


class Saying(Base):
    """What is said."""

    def say(
        self,
        text: str,
        max_tokens: int | AsSet | None = AS_SET,
        stop: Sequence[str] | AsSet = AS_SET,
        sampling: Sampling | None = None,
    ) -> Iterator[Step]:
        """Take a question, and let the model answer; see `Stream.generate`.

        The question is taken in now, and the answer with the steps of the iterator. Stop iterating
        to stop the answer: the conversation goes on from there.

        Parameters
        ----------
        text : str
            The question.
        max_tokens, stop, sampling : optional
            As for `Stream.generate`; by default the chat's own.

        Raises
        ------
        UsageError, ModelError, DecodeError, CacheError
            The question cannot be taken in; nothing has changed.
        """
        steps: list[Step] = []
        answering = self._answering(steps, max_tokens, stop, sampling)
        words = self._writer.words(self.conversation(), text)
        with self.stream.transaction():
            self._ask(self.conversation(), text, words, steps)
        return self._steps(answering, steps)

    def go_on(
        self,
        max_tokens: int | AsSet | None = AS_SET,
        stop: Sequence[str] | AsSet = AS_SET,
        sampling: Sampling | None = None,
    ) -> Iterator[Step]:
        """Go on with the last answer, where it was cut off.

        Parameters
        ----------
        max_tokens, stop, sampling : optional
            As for `say`.

        Raises
        ------
        UsageError
            The answer is complete, or something was done with it since.
        """
        conversation = self.conversation()
        self._last_turn()
        if conversation.ended is not None or conversation.begun is not None:
            raise UsageError("the last answer is past: ask for more of it")
        if conversation.last and conversation.last.finish in OVER:
            raise UsageError(OVER[conversation.last.finish])
        if (sampling or self.sampling).is_constrained:
            raise UsageError("an answer under a grammar does not go on: the grammar begins anew")
        steps: list[Step] = []
        answering = self._answering(steps, max_tokens, stop, sampling)
        *messages, begun = conversation.messages
        conversation = replace(conversation, messages=tuple(messages), last=None)
        self._conversation, self._answer = conversation, Answer(begun, steps)
        return self._steps(answering, steps)

    def take_in(self, question: str, answer: str) -> None:
        """Take in a turn that was said elsewhere: nothing is generated.

        Parameters
        ----------
        question, answer : str
            What was said.

        Raises
        ------
        UsageError, ModelError, DecodeError, CacheError
            As for `say`; nothing has changed.
        """
        words = self._writer.words(self.conversation(), question)
        with self.stream.transaction():
            asked = self._taken(self.conversation(), question, words)
            start = self.stream.stats.index
            self.stream.feed(self._writer.tokens([(answer, False)]))
            said = Message("assistant", answer, start, self.stream.stats.index)
            self._conversation, self._answer = asked, Answer(said, [])

    def _ask(self, conversation: Conversation, text: str, words: Words, steps: list[Step]) -> None:
        """Feed a question that follows a conversation; within a transaction."""
        asked = self._taken(conversation, text, words)
        self._conversation, self._answer = asked, Answer.at(asked.messages[-1].stop, steps)

    def _taken(self, conversation: Conversation, text: str, words: Words) -> Conversation:
        """Feed a question up to where its answer begins; the conversation with it."""
        conversation = self._writer.take(conversation, words)
        message = Message(
            "user", conversation.quoted + text, conversation.begun or 0, self.stream.stats.index
        )
        return replace(
            conversation, messages=(*conversation.messages, message), begun=None, quoted=""
        )

    def _answering(
        self,
        steps: list[Step],
        max_tokens: int | AsSet | None,
        stop: Sequence[str] | AsSet,
        sampling: Sampling | None,
    ) -> Iterator[Step]:
        """A generation by the chat's settings, or others; it has not begun."""
        stops = self.stop if stop is AS_SET else [stop] if isinstance(stop, str) else [*stop]
        texts, tokens = self._ends()
        return self.stream.generate(
            self.max_tokens if max_tokens is AS_SET else max_tokens,
            [*stops, *texts],
            sampling or self.sampling,
            ends=tokens,
            shows=self._singles(self._template.thought_marks or ()),
            record=steps,
        )

    def _steps(self, answering: Iterator[Step], steps: list[Step]) -> Iterator[Step]:
        while self._answer and self._answer.steps is steps:
            step = next(answering, None)
            if step is None:
                return
            yield step
        raise UsageError("the conversation has gone on: this answer is over")

    def _ends(self) -> tuple[list[str], list[int]]:
        """What ends an answer by the template: texts, and control tokens, unless the model knows.

        llama.cpp knows the end of a turn by the usual names of its token (llama-vocab.cpp); where a
        vocabulary has none for it, it is written out, letter by letter.
        """
        stops = self._template.stops
        return [text for text in stops if not self._singles([text])], self._singles(stops)

    def _singles(self, texts: Iterable[str]) -> list[int]:
        """Tokens of those texts that are single ones."""
        found = (self.stream.tokenize(text, special=True) for text in texts)
        return [tokens[0] for tokens in found if len(tokens) == 1]
