"""What is left of a conversation, and what of it is to stay: quotes, pins, the system prompt."""

from __future__ import annotations

from msgspec.structs import replace

from streamsink.chat.base import Base
from streamsink.chat.words import Part
from streamsink.chat.writer import LEAST_SINK, Words
from streamsink.errors import UsageError


class Remembering(Base):
    """What the model is to know of what was said."""

    def recall(self, words: str) -> list[int]:
        """Places in `messages` of those that hold all of some words, in whatever case."""
        wanted = words.casefold().split()
        texts = [turn.text.casefold() for turn in self.messages]
        return [at for at, text in enumerate(texts) if all(word in text for word in wanted)]

    def quote(self, at: int) -> str:
        """Put a message back into the window, as a quote with which the next question begins.

        Parameters
        ----------
        at : int
            Its place in `messages`.

        Returns
        -------
        str
            The quote.

        Raises
        ------
        UsageError
            There is no such message.
        """
        conversation = self.conversation()
        if not 0 <= at < len(conversation.messages):
            raise UsageError(
                f"there is no message {at + 1}: there are {len(conversation.messages)}"
            )
        turn = conversation.messages[at]
        who = "I said" if turn.role == "user" else "you said"
        quoted = "".join(f"> {line}\n" for line in turn.text.strip().splitlines())
        quote = f"Earlier {who}:\n{quoted}\n"
        before: list[Part] = []
        if conversation.begun is None:
            before = self._template.before_turn(
                system=conversation.system, n_turns=conversation.n_turns
            )
        words = Words(before, [(quote, False)], self._writer.past(conversation))
        with self.stream.transaction():
            conversation = self._writer.take(conversation, words)
            conversation = replace(conversation, quoted=conversation.quoted + quote)
            self._conversation, self._answer = conversation, None
        return quote

    def pin(self) -> int:
        """Pin the last turn for good: the question, what was answered, and the end of it.

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
        if len(conversation.messages) < 2:
            raise UsageError("nothing was said that could be pinned")
        if all(self.memory(turn) == "pinned" for turn in conversation.messages[-2:]):
            raise UsageError("the last turn is pinned already")
        past = self._writer.past(conversation)
        with self.stream.transaction():
            conversation = self._writer.end(conversation, past)
            question, answer = conversation.messages[-2:]
            done = self.stream.pin(question.start, answer.stop, in_place=True)
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
        exact : bool, default False
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
        if not conversation.messages:
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
