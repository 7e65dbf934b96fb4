"""A conversation on a stream: turns in, answers out, the system block known by its tokens."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from streamsink.chat.answer import Answer
from streamsink.chat.template import ChatTemplate
from streamsink.chat.words import Part
from streamsink.chat.writer import LEAST_SINK, Words, Writer, n_questions
from streamsink.core.events import Restored, Step
from streamsink.core.sampling import Sampling
from streamsink.engine.context import Logits
from streamsink.engine.saving import Capture
from streamsink.engine.stream import Stream
from streamsink.errors import UsageError
from streamsink.session import Session
from streamsink.session.conversation import Conversation, Turn
from streamsink.session.remains import Memory, what_is_left


class Chat:
    """A conversation that need not end.

    Every call is carried out or leaves conversation and stream as they were, whatever ends it: what
    the stream holds are the turns that the conversation has.

    Parameters
    ----------
    stream : Stream
        An empty stream.
    template : ChatTemplate
        The model's template.
    system : str
        System prompt; empty leaves it to the template.
    conversation : Conversation, optional
        The conversation that the stream came with, if it was restored.
    """

    def __init__(
        self,
        stream: Stream,
        template: ChatTemplate,
        system: str = "",
        *,
        conversation: Conversation | None = None,
    ) -> None:
        self.stream = stream
        self._template = template
        # All that is known of the conversation, but for the answer to its last question.
        self._conversation = Conversation(system=system, template=template.source)
        self._answer: Answer | None = None
        if conversation:
            self.resume(conversation)

    @property
    def system(self) -> str:
        """The system prompt in force."""
        return self._conversation.system

    @property
    def template(self) -> ChatTemplate:
        """The template in force."""
        return self._template

    @property
    def _writer(self) -> Writer:
        return Writer(self.stream, self._template)

    @property
    def turns(self) -> list[Turn]:
        """The whole conversation, what the model has forgotten included."""
        return list(self.conversation().turns)

    def conversation(self, sampling: Sampling | None = None) -> Conversation:
        """The conversation as plain data, with how its answers are chosen."""
        conversation = replace(
            self._conversation, sampling=sampling, thinking=self._template.thinking
        )
        if self._answer is None:
            return conversation
        return replace(
            conversation, turns=(*conversation.turns, self._answer.turn()), last=self._answer.last
        )

    # -- what is said ---------------------------------------------------------------------------

    def say(
        self,
        text: str,
        max_tokens: int | None = 1024,
        stop: Sequence[str] = (),
        sampling: Sampling | None = None,
    ) -> Iterator[Step]:
        """Take a turn, and let the model answer; see `Stream.generate`.

        The question is taken in now, and the answer with the steps of the iterator. Stop iterating
        to stop the answer: the conversation goes on from there.

        Raises
        ------
        UsageError, ModelError, DecodeError, CacheError
            The question cannot be taken in; nothing has changed.
        """
        stops = [stop] if isinstance(stop, str) else [*stop]
        texts, tokens = self._ends()
        steps: list[Step] = []
        answering = self.stream.generate(
            max_tokens,
            [*stops, *texts],
            sampling,
            ends=tokens,
            shows=self._singles(self._template.thought_marks or ()),
            record=steps,
        )
        conversation = self.conversation()
        words = self._writer.words(conversation, text)
        with self.stream.transaction():
            conversation = self._writer.take(conversation, words)
            turn = Turn(
                "user", conversation.quoted + text, conversation.begun or 0, self.stream.stats.index
            )
            conversation = replace(
                conversation, turns=(*conversation.turns, turn), begun=None, quoted=""
            )
            self._conversation, self._answer = conversation, Answer(turn.stop, steps)
        return self._steps(answering, self._answer)

    def _steps(self, answering: Iterator[Step], answer: Answer) -> Iterator[Step]:
        while self._answer is answer:
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

    # -- what is left of it ---------------------------------------------------------------------

    def memory(self, turn: Turn) -> Memory:
        """What the model can still see of a turn."""
        return what_is_left(turn, self.stream.stats.sees, self.stream.pinned_ranges)

    def recall(self, words: str) -> list[int]:
        """Places in `turns` of those that hold all of some words, in whatever case."""
        wanted = words.casefold().split()
        texts = [turn.text.casefold() for turn in self.turns]
        return [at for at, text in enumerate(texts) if all(word in text for word in wanted)]

    def quote(self, at: int) -> str:
        """Put a turn back into the window, as a quote with which the next question begins.

        Parameters
        ----------
        at : int
            Its place in `turns`.

        Returns
        -------
        str
            The quote.

        Raises
        ------
        UsageError
            There is no such turn.
        """
        conversation = self.conversation()
        if not 0 <= at < len(conversation.turns):
            raise UsageError(f"there is no turn {at + 1}: there are {len(conversation.turns)}")
        turn = conversation.turns[at]
        who = "I said" if turn.role == "user" else "you said"
        quoted = "".join(f"> {line}\n" for line in turn.text.strip().splitlines())
        quote = f"Earlier {who}:\n{quoted}\n"
        before: list[Part] = []
        if conversation.begun is None:
            before = self._template.before_turn(
                system=conversation.system, n_turns=n_questions(conversation)
            )
        words = Words(before, [(quote, False)], self._writer.past(conversation))
        with self.stream.transaction():
            conversation = self._writer.take(conversation, words)
            conversation = replace(conversation, quoted=conversation.quoted + quote)
            self._conversation, self._answer = conversation, None
        return quote

    def pin(self) -> int:
        """Pin the last exchange for good: the question, what was answered, and the end of it.

        Returns
        -------
        int
            Tokens that are pinned now.

        Raises
        ------
        UsageError
            Nothing was said, or it leaves no window; nothing has changed.
        """
        conversation = self.conversation()
        if len(conversation.turns) < 2:
            raise UsageError("nothing was said that could be pinned")
        if all(self.memory(turn) == "pinned" for turn in conversation.turns[-2:]):
            raise UsageError("the last exchange is pinned already")
        past = self._writer.past(conversation)
        with self.stream.transaction():
            conversation = self._writer.end(conversation, past)
            done = self.stream.pin(conversation.turns[-2].start, conversation.turns[-1].stop)
            self._conversation, self._answer = conversation, None
        return done.n_tokens

    def unpin(self) -> int:
        """Release what was pinned last; see `Stream.unpin`."""
        with self.stream.transaction():
            return self.stream.unpin().n_tokens

    def change_system(self, system: str, *, exact: bool = False) -> int:
        """Swap the system prompt while the conversation goes on; what is visible stays.

        Parameters
        ----------
        system : str
            The new prompt; empty leaves it to the template.
        exact : bool
            Evaluate what is visible anew behind it, so that nothing of the old prompt is left.

        Returns
        -------
        int
            Tokens evaluated.

        Raises
        ------
        UsageError
            The prompt leaves no window, or the template takes none; nothing has changed.
        """
        conversation = self.conversation()
        block = self._template.system_block(system)
        if not conversation.turns:
            self._conversation = replace(conversation, system=system)
            return 0
        tokens = self._writer.tokens(block)
        bos = self.stream.bos
        if bos is not None and tokens[:1] != [bos]:
            tokens.insert(0, bos)
        with self.stream.transaction():
            done = self.stream.swap_system(tokens, conversation.block, exact=exact)
            if self.stream.policy.n_keep == "system" and not self.stream.pins:
                self.stream.pin_system(max(len(tokens), LEAST_SINK))
            self._conversation = replace(
                self._conversation, system=system, block=(done.start, done.start + len(tokens))
            )
        return done.n_evaluated

    # -- another day ----------------------------------------------------------------------------

    def restore(
        self, saved: Session, cells: memoryview | None, logits: Logits | None = None
    ) -> Restored:
        """Go on with a session on the same stream; see `Stream.restore`.

        Raises
        ------
        ModelError
            The session's template cannot be read.
        SessionError, UsageError, CapabilityError, DecodeError, CacheError
            As for `Stream.restore`. Whatever is raised, nothing has changed.
        """
        conversation = saved.conversation or self._anew()
        template = self._template.other(conversation.template).told(conversation.thinking)
        with self.stream.transaction():
            restored = self.stream.restore(saved.stream, saved.kind, cells, logits=logits)
            self._resume(conversation, template)
        return restored

    def save(self, path: str | os.PathLike[str], sampling: Sampling | None = None) -> None:
        """Write conversation and stream to a file; see `Stream.save`."""
        self.stream.save(path, conversation=self.conversation(sampling))

    def capture(self, sampling: Sampling | None = None) -> Capture:
        """Conversation and stream at this moment, to be written while they go on."""
        return self.stream.capture(conversation=self.conversation(sampling))

    def reset(self) -> None:
        """Begin anew, under the same system prompt and policy."""
        with self.stream.transaction():
            self.stream.reset()
            self._resume(self._anew(), self._template)

    def _anew(self) -> Conversation:
        template = self._template
        return Conversation(
            system=self.system, template=template.source, thinking=template.thinking
        )

    def resume(self, conversation: Conversation) -> None:
        """Go on with another conversation, which came with the stream as it is now.

        Raises
        ------
        ModelError
            Its template cannot be read; nothing has changed.
        """
        self._resume(
            conversation, self._template.other(conversation.template).told(conversation.thinking)
        )

    def _resume(self, conversation: Conversation, template: ChatTemplate) -> None:
        self._conversation, self._answer, self._template = conversation, None, template
