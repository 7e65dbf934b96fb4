"""The last answer of a conversation: while it is given, and once it is past."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import NamedTuple, Protocol

from streamsink.chat.template import ChatTemplate
from streamsink.chat.words import Part
from streamsink.core.events import Step
from streamsink.session.conversation import Conversation, Message


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that is being given.

    Attributes
    ----------
    begun : Message
        What there was of it before.
    steps : list of Step
        Its tokens since; the stream enters each when it takes it in.
    """

    begun: Message
    steps: list[Step]

    @classmethod
    def at(cls, index: int, steps: list[Step]) -> Answer:
        """An answer that begins at an index."""
        return cls(Message("assistant", "", index, index), steps)

    @property
    def last(self) -> Step | None:
        """The newest token."""
        return self.steps[-1] if self.steps else None

    @property
    def message(self) -> Message:
        """The answer as far as it was given."""
        begun = self.begun
        text = begun.text + "".join(step.text for step in self.steps)
        return Message("assistant", text, begun.start, begun.stop + len(self.steps))


class Past(NamedTuple):
    """What the stream is to hold of an answer once another turn follows.

    Attributes
    ----------
    start : int
        Where the stream has to go back to; its next index where all that it holds stays.
    parts : sequence of Part
        Text to be taken in again from there.
    written : str
        How much of the template's end of an answer the model has written itself; not taken in again
        with a whole exchange.
    exchange : bool
        Whether the parts are the whole exchange, with the words of the answer last.
    """

    start: int
    parts: Sequence[Part] = ()
    written: str = ""
    exchange: bool = False


class Tokens(Protocol):
    """What has to be asked of a stream."""

    def tokens_between(self, start: int, stop: int) -> list[int]:
        """Ids of the tokens of an index range that the model can still see."""

    def text(self, tokens: Sequence[int]) -> str:
        """Text of tokens, control tokens included."""


def past(conversation: Conversation, template: ChatTemplate, stream: Tokens) -> Past:
    """What becomes of the last answer, as the template writes it once it is past.

    The tokens that were drawn stay, though their text might be tokenized otherwise. What goes: an
    end-of-text token where the template ends an answer with another, and what belongs to a stop
    string. Where the template drops thoughts, or what it wrote before an answer, the exchange is
    taken in again as it writes it.
    """
    turn, last = conversation.messages[-1], conversation.last
    if turn.role != "assistant":  # no answer was asked for
        return Past(turn.stop)
    tokens = stream.tokens_between(turn.start, turn.stop)
    finish = last.finish if last else None
    written = ""
    if finish == "eos" and last:
        ending = stream.text([last.token])
        if ending and template.closing_text.startswith(ending):
            written = ending
    drops = finish == "eos" and not written
    if len(tokens) < turn.stop - turn.start:  # its beginning is forgotten
        return Past(turn.stop - drops, written=written)
    question = conversation.messages[-2]
    whole = len(stream.tokens_between(question.start, turn.start)) == turn.start - question.start
    words = template.past(turn.text)
    if whole and (template.answer_opening or words.strip() != turn.text.strip()):
        return Past(question.start, _exchange(conversation, template), written, exchange=True)
    said: Sequence[int] = tokens[:-1] if drops else tokens
    rest = ""
    if finish == "stop":
        said, rest = _up_to(turn.text, tokens, stream)
    parts = [(rest, False)] if rest else []
    return Past(turn.start + len(said), parts, written)


def _exchange(conversation: Conversation, template: ChatTemplate) -> list[Part]:
    """The last question and its answer as the template writes them once they are past."""
    question, answer = conversation.messages[-2:]
    n_turns = conversation.n_turns - 1
    if n_turns:
        before = template.before_turn(system=conversation.system, n_turns=n_turns)
        header = without(before, template.closing_text)
    else:
        _, rest = template.opening(conversation.system, question.text)
        header = list(takewhile(lambda part: part[1], rest))
    return [*header, *template.settled(question.text, answer.text)]


def without(parts: Sequence[Part], text: str) -> list[Part]:
    """Parts without a text with which they begin."""
    left: list[Part] = []
    for here, special in parts:
        n = len(here) if text.startswith(here) else len(text) if here.startswith(text) else 0
        left += [(here[n:], special)] if here[n:] else []
        text = text[n:]
    return left


def _up_to(text: str, tokens: Sequence[int], stream: Tokens) -> tuple[Sequence[int], str]:
    """The tokens that are wholly within a text, and the rest of the text."""
    for n in range(len(tokens), 0, -1):
        here = stream.text(tokens[:n])
        if text.startswith(here):
            return tokens[:n], text[len(here) :]
    return (), text
