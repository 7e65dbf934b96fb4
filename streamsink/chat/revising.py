"""Turns taken back, and answered or asked anew."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec.structs import replace

from streamsink.chat.answer import Answer
from streamsink.chat.base import AS_SET, AsSet
from streamsink.chat.saying import Saying
from streamsink.core.events import Step
from streamsink.core.sampling import Sampling
from streamsink.errors import UsageError
from streamsink.session.conversation import Conversation, Message


class Revising(Saying):
    """What was said, said otherwise.

    What was evicted since does not come back: the window is the shorter until it has filled again.
    """

    def undo(self) -> str:
        """Take back the last question and its answer.

        Of a turn that was longer than the window nothing older is left: then the model sees what is
        pinned, and nothing else.

        Returns
        -------
        str
            The question.

        Raises
        ------
        UsageError
            Nothing was asked, or the turn is pinned; nothing has changed.
        DecodeError, CacheError
            What a recurrent state held could not be evaluated again; likewise.
        """
        question, _ = self._last_turn()
        with self.stream.transaction():
            self._conversation, self._answer = self._go_back(), None
        return question.text

    def retry(
        self,
        max_tokens: int | AsSet | None = AS_SET,
        stop: Sequence[str] | AsSet = AS_SET,
        sampling: Sampling | None = None,
    ) -> Iterator[Step]:
        """Answer the last question anew, in place of the answer that was given.

        Parameters
        ----------
        max_tokens, stop, sampling : optional
            As for `say`. With the same seed, or temperature 0, the answer is the same too.

        Raises
        ------
        UsageError, ModelError, DecodeError, CacheError
            As for `undo` and `say`; nothing has changed.
        """
        steps: list[Step] = []
        question, answer = self._last_turn()
        answering = self._answering(steps, max_tokens, stop, sampling)
        sees = self.stream.stats.sees
        if sees and sees[-1][0] <= question.start:
            conversation = self.conversation()
            self._check_not_pinned(answer)
            with self.stream.transaction():
                self.stream.rewind(answer.start, anew=True)
                self._conversation, self._answer = (
                    replace(
                        conversation,
                        messages=conversation.messages[:-1],
                        **{"ended": None, "begun": None, "quoted": "", "last": None},
                    ),
                    Answer.at(answer.start, steps),
                )
        else:  # the question has left the window, or a part of it
            self._ask_instead(question.text, steps)
        return self._steps(answering, steps)

    def edit(
        self,
        text: str,
        max_tokens: int | AsSet | None = AS_SET,
        stop: Sequence[str] | AsSet = AS_SET,
        sampling: Sampling | None = None,
    ) -> Iterator[Step]:
        """Ask something else in place of the last question.

        Parameters
        ----------
        text : str
            The question.
        max_tokens, stop, sampling : optional
            As for `say`.

        Raises
        ------
        UsageError, ModelError, DecodeError, CacheError
            As for `undo` and `say`; nothing has changed.
        """
        steps: list[Step] = []
        self._last_turn()
        answering = self._answering(steps, max_tokens, stop, sampling)
        self._ask_instead(text, steps)
        return self._steps(answering, steps)

    def _ask_instead(self, text: str, steps: list[Step]) -> None:
        words = self._writer.words(self._before_last(), text)
        with self.stream.transaction():
            self._ask(self._go_back(), text, words, steps)

    def _go_back(self) -> Conversation:
        """Take the last turn out of the stream; the conversation before it."""
        stream, before = self.stream, self._before_last()
        question, answer = self._last_turn()
        if not before.messages:
            if stream.pins:
                raise UsageError(_PINNED)
            stream.reset()
            return before
        self._check_not_pinned(question, answer)
        shown, _ = stream.stats.sees[-1]
        stream.rewind(max(shown, question.start), anew=True)
        stream.begin_turn()
        return replace(before, ended=stream.stats.index)

    def _before_last(self) -> Conversation:
        """The conversation without its last turn, wherever the stream will stand then."""
        conversation = self.conversation()
        if len(conversation.messages) <= 2:
            return self._anew()
        question = conversation.messages[-2]
        return replace(
            conversation,
            messages=conversation.messages[:-2],
            ended=question.start,
            **{"begun": None, "quoted": "", "last": None},
        )

    def _check_not_pinned(self, *messages: Message) -> None:
        for start, stop in self.stream.pinned_ranges:
            if any(one.start < stop and start < one.stop for one in messages):
                raise UsageError(_PINNED)


_PINNED = "the last turn is pinned: release it first (unpin, or a smaller n_keep)"
