"""What every call on a chat goes through: the conversation, its stream, its template."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Final, Literal, TypeAlias

from msgspec.structs import replace

from streamsink.chat.answer import Answer
from streamsink.chat.template import ChatTemplate
from streamsink.chat.writer import Writer
from streamsink.core.sampling import MAX_TOKENS, Sampling
from streamsink.engine.stream import Stream
from streamsink.errors import UsageError
from streamsink.session.conversation import Conversation, Message
from streamsink.session.remains import Memory, what_is_left


class _Unset(Enum):
    AS_SET = "as set"


AS_SET: Final = _Unset.AS_SET
"""An argument that was not given: the chat's own setting is meant."""
AsSet: TypeAlias = Literal[_Unset.AS_SET]


class Base:
    """A chat without its calls; see `streamsink.chat.chat.Chat`."""

    def __init__(
        self,
        stream: Stream,
        template: ChatTemplate,
        system: str = "",
        *,
        conversation: Conversation | None = None,
        sampling: Sampling | None = None,
        max_tokens: int | None = MAX_TOKENS,
        stop: Sequence[str] = (),
    ) -> None:
        self.stream = stream
        self.sampling = sampling or Sampling()
        self.max_tokens = max_tokens
        self.stop: tuple[str, ...] = (stop,) if isinstance(stop, str) else tuple(stop)
        self._template = template
        # All that is known of the conversation, but for the answer to its last question.
        self._conversation = Conversation(system=system, template=template.source)
        self._answer: Answer | None = None
        if conversation:
            self.resume(conversation)
            self.sampling = sampling or self.sampling

    @property
    def system(self) -> str:
        """The system prompt in force."""
        return self._conversation.system

    @property
    def template(self) -> ChatTemplate:
        """The template in force."""
        return self._template

    @property
    def messages(self) -> list[Message]:
        """All that was said, what the model has forgotten included."""
        return list(self.conversation().messages)

    @property
    def turns(self) -> list[Message]:
        """`messages`, by their first name."""
        return self.messages

    def conversation(self) -> Conversation:
        """The conversation as plain data, with how its answers are chosen."""
        conversation = replace(
            self._conversation, sampling=self.sampling, thinking=self._template.thinking
        )
        if self._answer is None:
            return conversation
        messages = (*conversation.messages, self._answer.message)
        return replace(conversation, messages=messages, last=self._answer.last)

    def memory(self, message: Message) -> Memory:
        """What the model can still see of a message."""
        return what_is_left(message, self.stream.stats.sees, self.stream.pinned_ranges)

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
        self.sampling = conversation.sampling or self.sampling

    def _anew(self) -> Conversation:
        """A conversation that has not begun, under the same system prompt."""
        template = self._template
        return Conversation(
            system=self.system, template=template.source, thinking=template.thinking
        )

    @property
    def _writer(self) -> Writer:
        return Writer(self.stream, self._template)

    def _last_turn(self) -> tuple[Message, Message]:
        """The last question and its answer.

        Raises
        ------
        UsageError
            Nothing was asked.
        """
        messages = self.conversation().messages
        if len(messages) < 2:
            raise UsageError("nothing was asked yet: say something first")
        return messages[-2], messages[-1]
