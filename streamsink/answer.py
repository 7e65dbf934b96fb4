"""The last answer of a conversation: while it is given, and once it is past."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from streamsink.records import Step
from streamsink.snapshot import Talk, Turn
from streamsink.template import ChatTemplate


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that is being given.

    Attributes
    ----------
    start : int
        Index of its first token.
    steps : list of Step
        Its tokens so far; the stream enters each when it takes it in.
    """

    start: int
    steps: list[Step]

    @property
    def last(self) -> Step | None:
        """The newest token."""
        return self.steps[-1] if self.steps else None

    def turn(self) -> Turn:
        """The answer as far as it was given."""
        text = "".join(step.text for step in self.steps)
        return Turn("assistant", text, self.start, self.start + len(self.steps))


class Past(NamedTuple):
    """What the stream is to hold of an answer once another turn follows.

    Attributes
    ----------
    start : int
        Where the stream has to go back to; its next index where all that it holds stays.
    tokens : sequence of int
        Of the answer's own tokens, those to be taken in again from there.
    text : str
        Text to be taken in after them.
    written : str
        How much of the template's end of an answer the model has written itself.
    """

    start: int
    tokens: Sequence[int] = ()
    text: str = ""
    written: str = ""


class Tokens(Protocol):
    """What has to be asked of a stream."""

    def tokens_between(self, start: int, stop: int) -> list[int]:
        """Ids of the tokens of an index range that the model can still see."""

    def text(self, tokens: Sequence[int]) -> str:
        """Text of tokens, control tokens included."""


def past(talk: Talk, template: ChatTemplate, stream: Tokens) -> Past:
    """What becomes of the last answer, as the template writes it once it is past.

    The tokens that were drawn stay, though their text might be tokenized otherwise. What goes: an
    end-of-text token where the template ends an answer with another; what belongs to a stop
    string; thoughts, where the template drops them, and what it wrote before them.
    """
    turn, last = talk.turns[-1], talk.last
    if turn.role != "assistant":  # no answer was asked for
        return Past(turn.stop)
    tokens = stream.tokens_between(turn.start, turn.stop)
    finish = last.finish if last else None
    written = ""
    if finish == "eos" and last:
        ending = stream.text([last.token])
        if ending and template.closing_text.startswith(ending):
            written = ending
    if len(tokens) < turn.stop - turn.start:  # its beginning is forgotten
        gone = finish == "eos" and not written
        return Past(turn.stop - gone, written=written)
    said: Sequence[int] = tokens[:-1] if finish == "eos" and not written else tokens
    rest = ""
    if finish == "stop":
        said, rest = _up_to(turn.text, tokens, stream)
    start = turn.start if talk.opened is None else talk.opened
    words = template.past(turn.text)
    if words.strip() != turn.text.strip():
        return Past(start, text=words)
    if start < turn.start:
        return Past(start, said, rest, written)
    return Past(start + len(said), text=rest, written=written)


def _up_to(text: str, tokens: Sequence[int], stream: Tokens) -> tuple[Sequence[int], str]:
    """The tokens that are wholly within a text, and the rest of the text."""
    for n in range(len(tokens), 0, -1):
        here = stream.text(tokens[:n])
        if text.startswith(here):
            return tokens[:n], text[len(here) :]
    return (), text
