"""A conversation elsewhere: in a file, on another stream, begun anew."""

from __future__ import annotations

import os
from collections.abc import Iterator

from msgspec.structs import replace

from streamsink.chat.remembering import Remembering
from streamsink.chat.saying import Saying
from streamsink.chat.template import ChatTemplate
from streamsink.core.events import Restored
from streamsink.engine.context import Logits
from streamsink.engine.saving import Capture
from streamsink.engine.stream import Stream
from streamsink.errors import UsageError
from streamsink.session import Session
from streamsink.session.conversation import ELSEWHERE, Conversation, Message


class Lasting(Remembering, Saying):
    """What outlives a stream."""

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

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write conversation and stream to a file; see `Stream.save`."""
        self.stream.save(path, conversation=self.conversation())

    def capture(self) -> Capture:
        """Conversation and stream at this moment, to be written while they go on."""
        return self.stream.capture(conversation=self.conversation())

    def reset(self) -> None:
        """Begin anew, under the same system prompt and settings."""
        with self.stream.transaction():
            self.stream.reset()
            self._resume(self._anew(), self._template)

    def move_to(self, stream: Stream, template: ChatTemplate) -> int:
        """Go on with another model, which reads what this one still sees of the conversation.

        Old thoughts are left out, as the present template leaves them out.

        Parameters
        ----------
        stream : Stream
            An empty stream on the other model; it is the chat's own from now on. The one before is
            left to whoever opened it.
        template : ChatTemplate
            The other model's template.

        Returns
        -------
        int
            Tokens evaluated.

        Raises
        ------
        UsageError, ModelError, DecodeError, CacheError
            The other model cannot take it in; the conversation stays where it is.
        """
        conversation = self.conversation()
        if conversation.quoted:
            raise UsageError("a quote waits for the question that it belongs to: ask it first")
        other = type(self)(stream, template, self.system)
        turns = list(_turns(conversation))
        is_seen = [
            self.memory(one) != "forgotten" or self.memory(two) != "forgotten" for one, two in turns
        ]
        for (question, answer), seen in zip(turns, is_seen, strict=True):
            if not seen:
                continue
            other.take_in(question.text, self._template.past(answer.text))
            if self.stream.pins and self.memory(question) == self.memory(answer) == "pinned":
                other.pin()
        taken = _turns(other.conversation())
        messages = [
            message
            for turn, seen in zip(turns, is_seen, strict=True)
            for message in (next(taken) if seen else map(_unseen, turn))
        ]
        self.stream, self._template, self._answer, self._conversation = (
            stream,
            template,
            None,
            replace(other.conversation(), messages=tuple(messages)),
        )
        return stream.stats.index


def _turns(conversation: Conversation) -> Iterator[tuple[Message, Message]]:
    """Questions with their answers."""
    messages = conversation.messages
    return zip(messages[::2], messages[1::2], strict=True)


def _unseen(message: Message) -> Message:
    """A message as one that the stream has never seen."""
    return replace(message, start=ELSEWHERE, stop=ELSEWHERE)
