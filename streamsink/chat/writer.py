"""Turns written into a stream as the template has them: from words to tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from msgspec.structs import replace

from streamsink.chat.answer import Past, without
from streamsink.chat.answer import past as past_of
from streamsink.chat.template import ChatTemplate
from streamsink.chat.words import Part
from streamsink.engine.stream import Stream
from streamsink.errors import CacheError, UsageError
from streamsink.session.conversation import Conversation

LEAST_SINK = 4
"""Tokens that ``n_keep="system"`` pins at least: without a system block there still has to be a
sink, and four tokens are one (StreamingLLM, table 2)."""


class Words(NamedTuple):
    """What a template writes around a question.

    Attributes
    ----------
    before : list of Part
        From the end of the last answer to the user's words; of a first turn the system block.
    after : list of Part
        The user's words, and on to where the answer begins.
    past : Past or None
        What becomes of the last answer; `None` where there is none, or it was ended already.
    """

    before: list[Part]
    after: list[Part]
    past: Past | None = None


class Writer:
    """Writes the turns of a conversation.

    Parameters
    ----------
    stream : Stream
        Where to.
    template : ChatTemplate
        How.
    """

    def __init__(self, stream: Stream, template: ChatTemplate) -> None:
        self.stream = stream
        self._template = template

    def words(self, conversation: Conversation, text: str) -> Words:
        """What the template writes around a question; the stream is not touched."""
        if not conversation.messages:
            return Words(*self._template.opening(conversation.system, text))
        before, after = self._template.next_turn(
            text, system=conversation.system, n_turns=conversation.n_turns
        )
        return Words(before, after, self.past(conversation))

    def past(self, conversation: Conversation) -> Past | None:
        """What becomes of the last answer; None where it is ended, or a quote follows it."""
        if conversation.ended is not None or conversation.begun is not None:
            return None
        return past_of(conversation, self._template, self.stream)

    def take(self, conversation: Conversation, words: Words) -> Conversation:
        """Feed a question, or the beginning of one; the conversation with ``begun``."""
        if not conversation.messages:
            conversation = self._open(conversation, words)
        elif conversation.begun is None:
            conversation = self._begin(conversation, words)
        else:
            self.stream.feed(self.tokens(words.after, goes_on=True))
        return replace(conversation, ended=None)

    def _open(self, conversation: Conversation, words: Words) -> Conversation:
        """Feed the first turn, which begins with the system block and the model's BOS."""
        tokens = self.tokens([*words.before, *words.after])
        n_block = _n_alike(self.tokens(words.before), tokens)
        bos = self.stream.bos
        if bos is not None and tokens[:1] != [bos]:
            tokens.insert(0, bos)
            n_block += 1
        n_block = max(n_block, bos is not None)
        self.stream.pin_system(max(n_block, LEAST_SINK))
        self.stream.feed(tokens)
        return replace(conversation, block=(0, n_block), begun=n_block)

    def _begin(self, conversation: Conversation, words: Words) -> Conversation:
        """End the last answer, and feed the beginning of a question behind it."""
        stream, closing = self.stream, self._template.closing_text
        before = words.before
        written = ""
        if words.past is not None:
            conversation, written = self._settle(conversation, words.past)
            before, closing = without(before, written), closing.removeprefix(written)
        else:
            before, closing = without(before, closing), ""
        goes_on = not written
        tokens = self.tokens([*before, *words.after], goes_on=goes_on)
        n = _n_alike(self.tokens([(closing, True)], goes_on=goes_on), tokens)
        stream.feed(tokens[:n])
        start = stream.stats.index
        stream.begin_turn()
        stream.feed(tokens[n:])
        return replace(_ended_at(conversation, start), begun=start)

    def end(self, conversation: Conversation, past: Past | None) -> Conversation:
        """End the last answer, and feed nothing behind it."""
        if past is None:
            return conversation
        conversation, written = self._settle(conversation, past)
        rest = self._template.closing_text.removeprefix(written)
        self.stream.feed(self.tokens([(rest, True)], goes_on=not written))
        index = self.stream.stats.index
        self.stream.begin_turn()
        return replace(_ended_at(conversation, index), ended=index)

    def _settle(self, conversation: Conversation, past: Past) -> tuple[Conversation, str]:
        """Have the stream hold of an answer what is to stay.

        Returns
        -------
        Conversation
            The conversation, with where the last turns stand now.
        str
            What the model wrote itself of the template's end of an answer.
        """
        stream = self.stream
        if past.start < stream.stats.index:
            try:
                stream.rewind(past.start)
            except (UsageError, CacheError):  # evicted since, or held by a recurrent state
                return conversation, past.written
        tokens = self.tokens(past.parts, goes_on=True)
        stream.feed(tokens)
        if not past.exchange:
            return conversation, past.written
        start = past.start + _n_alike(self.tokens(past.parts[:-1], goes_on=True), tokens)
        *earlier, question, answer = conversation.messages
        messages = (*earlier, replace(question, stop=start), replace(answer, start=start))
        return replace(conversation, messages=messages), ""

    def tokens(self, parts: Sequence[Part], *, goes_on: bool = False) -> list[int]:
        """Tokens of parts of a text, which may go on from ordinary text."""
        return self.stream.tokenize_parts(parts, after_text=goes_on)


def _ended_at(conversation: Conversation, index: int) -> Conversation:
    """The conversation whose last turn ends at an index, the template's end of it included."""
    *earlier, last = conversation.messages
    return replace(
        conversation, messages=(*earlier, replace(last, stop=max(last.start, index))), last=None
    )


def _n_alike(some: Sequence[int], others: Sequence[int]) -> int:
    """How many tokens two lists have in common at their beginnings."""
    pairs = zip(some, others, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(some), len(others)))
