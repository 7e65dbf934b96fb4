"""A conversation as plain data: what a session file holds of it beside the stream."""

from __future__ import annotations

import msgspec

from streamsink.core.events import Step
from streamsink.core.sampling import Sampling

ELSEWHERE = -(2**60)
"""An index below all that a stream has: of messages that it has never seen."""


class Message(msgspec.Struct, frozen=True):
    """What was said.

    Attributes
    ----------
    role : {"user", "assistant"}
    text : str
    start, stop : int
        Index range of its tokens in the stream, the template's around it included; half-open.
    """

    role: str
    text: str
    start: int = 0
    stop: int = 0


class Conversation(msgspec.Struct, frozen=True):
    """A conversation, its stream aside.

    Attributes
    ----------
    messages : tuple of Message
        The whole of it, what the model has forgotten included: questions and answers by turns.
    system : str
        The system prompt.
    template : str
        Source of the chat template.
    block : (int, int)
        Index range of the system block, half-open; below 0 once it was swapped.
    ended : int or None
        Index after the last answer, where the template's end of it stands already.
    begun : int or None
        Index at which the next question began, where quotes stand already.
    quoted : str
        These quotes.
    last : Step or None
        The last token of the last answer.
    sampling : Sampling or None
        How answers are chosen.
    thinking : bool or None
        Whether the model is to think before it answers, where that was said.
    """

    messages: tuple[Message, ...] = msgspec.field(default=(), name="turns")
    system: str = ""
    template: str = ""
    block: tuple[int, int] = (0, 0)
    ended: int | None = None
    begun: int | None = None
    quoted: str = ""
    last: Step | None = None
    sampling: Sampling | None = None
    thinking: bool | None = None

    @property
    def n_turns(self) -> int:
        """Turns: questions, with their answers."""
        return sum(message.role == "user" for message in self.messages)
