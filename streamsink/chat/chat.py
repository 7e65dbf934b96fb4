"""A conversation on a stream: turns in, answers out, the system block known by its tokens."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from streamsink.chat.answer import Answer, Past, past, without
from streamsink.chat.template import ChatTemplate, Part
from streamsink.core.events import Restored, Step
from streamsink.core.sampling import Sampling
from streamsink.core.snapshot import Conversation, Turn
from streamsink.engine.context import Logits
from streamsink.engine.stream import Stream
from streamsink.errors import CacheError, UsageError
from streamsink.session import Session
from streamsink.session.remains import Memory, what_is_left

LEAST_SINK = 4
"""Tokens that ``n_keep="system"`` pins at least: without a system block there still has to be a
sink, and four tokens are one (StreamingLLM, table 2)."""


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
    talk : Conversation, optional
        The conversation that the stream came with, if it was restored.
    """

    def __init__(
        self,
        stream: Stream,
        template: ChatTemplate,
        system: str = "",
        *,
        talk: Conversation | None = None,
    ) -> None:
        self.stream = stream
        self._template = template
        # All that is known of the conversation, but for the answer to its last question.
        self._talk = Conversation(system=system, template=template.source)
        self._answer: Answer | None = None
        if talk:
            self.go_on(talk)

    @property
    def system(self) -> str:
        """The system prompt in force."""
        return self._talk.system

    @property
    def template(self) -> ChatTemplate:
        """The template in force."""
        return self._template

    @property
    def turns(self) -> list[Turn]:
        """The whole conversation, what the model has forgotten included."""
        return list(self.talk().turns)

    def talk(self, sampling: Sampling | None = None) -> Conversation:
        """The conversation as plain data, with how its answers are chosen."""
        talk = replace(self._talk, sampling=sampling, thinking=self._template.thinking)
        if self._answer is None:
            return talk
        return replace(talk, turns=(*talk.turns, self._answer.turn()), last=self._answer.last)

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
        talk = self.talk()
        words = self._words(talk, text)
        with self.stream.transaction():
            talk = self._take(talk, words)
            turn = Turn("user", talk.quoted + text, talk.begun or 0, self.stream.stats.index)
            talk = replace(talk, turns=(*talk.turns, turn), begun=None, quoted="")
            self._talk, self._answer = talk, Answer(turn.stop, steps)
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

    # -- words to tokens ------------------------------------------------------------------------

    def _words(self, talk: Conversation, text: str) -> Words:
        """What the template writes around a question; the stream is not touched."""
        if not talk.turns:
            return Words(*self._template.opening(talk.system, text))
        n_turns = _n_questions(talk)
        before, after = self._template.next_turn(text, system=talk.system, n_turns=n_turns)
        return Words(before, after, self._past(talk))

    def _past(self, talk: Conversation) -> Past | None:
        if talk.ended is not None or talk.begun is not None:
            return None
        return past(talk, self._template, self.stream)

    def _take(self, talk: Conversation, words: Words) -> Conversation:
        """Feed a question, or the beginning of one; the conversation with ``begun``."""
        if not talk.turns:
            talk = self._open(talk, words)
        elif talk.begun is None:
            talk = self._begin(talk, words)
        else:
            self.stream.feed(self._tokens(words.after, goes_on=True))
        return replace(talk, ended=None)

    def _open(self, talk: Conversation, words: Words) -> Conversation:
        """Feed the first turn, which begins with the system block and the model's BOS."""
        tokens = self._tokens([*words.before, *words.after])
        n_block = _n_alike(self._tokens(words.before), tokens)
        bos = self.stream.bos
        if bos is not None and tokens[:1] != [bos]:
            tokens.insert(0, bos)
            n_block += 1
        n_block = max(n_block, bos is not None)
        self.stream.pin_system(max(n_block, LEAST_SINK))
        self.stream.feed(tokens)
        return replace(talk, block=(0, n_block), begun=n_block)

    def _begin(self, talk: Conversation, words: Words) -> Conversation:
        """End the last answer, and feed the beginning of a question behind it."""
        stream, closing = self.stream, self._template.closing_text
        before = words.before
        written = ""
        if words.past is not None:
            talk, written = self._settle(talk, words.past)
            before, closing = without(before, written), closing.removeprefix(written)
        else:
            before, closing = without(before, closing), ""
        goes_on = not written
        tokens = self._tokens([*before, *words.after], goes_on=goes_on)
        n = _n_alike(self._tokens([(closing, True)], goes_on=goes_on), tokens)
        stream.feed(tokens[:n])
        start = stream.stats.index
        stream.begin_turn()
        stream.feed(tokens[n:])
        return replace(_ended_at(talk, start), begun=start)

    def _end(self, talk: Conversation, past: Past | None) -> Conversation:
        """End the last answer, and feed nothing behind it."""
        if past is None:
            return talk
        talk, written = self._settle(talk, past)
        rest = self._template.closing_text.removeprefix(written)
        self.stream.feed(self._tokens([(rest, True)], goes_on=not written))
        index = self.stream.stats.index
        self.stream.begin_turn()
        return replace(_ended_at(talk, index), ended=index)

    def _settle(self, talk: Conversation, past: Past) -> tuple[Conversation, str]:
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
                return talk, past.written
        tokens = self._tokens(past.parts, goes_on=True)
        stream.feed(tokens)
        if not past.exchange:
            return talk, past.written
        start = past.start + _n_alike(self._tokens(past.parts[:-1], goes_on=True), tokens)
        *earlier, question, answer = talk.turns
        turns = (*earlier, replace(question, stop=start), replace(answer, start=start))
        return replace(talk, turns=turns), ""

    def _tokens(self, parts: Sequence[Part], *, goes_on: bool = False) -> list[int]:
        return self.stream.tokenize_parts(parts, after_text=goes_on)

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
        talk = self.talk()
        if not 0 <= at < len(talk.turns):
            raise UsageError(f"there is no turn {at + 1}: there are {len(talk.turns)}")
        turn = talk.turns[at]
        who = "I said" if turn.role == "user" else "you said"
        quoted = "".join(f"> {line}\n" for line in turn.text.strip().splitlines())
        quote = f"Earlier {who}:\n{quoted}\n"
        before: list[Part] = []
        if talk.begun is None:
            before = self._template.before_turn(system=talk.system, n_turns=_n_questions(talk))
        words = Words(before, [(quote, False)], self._past(talk))
        with self.stream.transaction():
            talk = self._take(talk, words)
            talk = replace(talk, quoted=talk.quoted + quote)
            self._talk, self._answer = talk, None
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
        talk = self.talk()
        if len(talk.turns) < 2:
            raise UsageError("nothing was said that could be pinned")
        if all(self.memory(turn) == "pinned" for turn in talk.turns[-2:]):
            raise UsageError("the last exchange is pinned already")
        past = self._past(talk)
        with self.stream.transaction():
            talk = self._end(talk, past)
            done = self.stream.pin(talk.turns[-2].start, talk.turns[-1].stop)
            self._talk, self._answer = talk, None
        return done.n_tokens

    def unpin(self) -> int:
        """Release what was pinned last; see `Stream.unpin`."""
        with self.stream.transaction():
            return self.stream.unpin().n_tokens

    def change_system(self, system: str, *, exact: bool = False) -> int:
        """Swap the system prompt in the midst of the conversation; what is visible stays.

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
        talk = self.talk()
        block = self._template.system_block(system)
        if not talk.turns:
            self._talk = replace(talk, system=system)
            return 0
        tokens = self._tokens(block)
        bos = self.stream.bos
        if bos is not None and tokens[:1] != [bos]:
            tokens.insert(0, bos)
        with self.stream.transaction():
            done = self.stream.swap_system(tokens, talk.block, exact=exact)
            if self.stream.policy.n_keep == "system" and not self.stream.pins:
                self.stream.pin_system(max(len(tokens), LEAST_SINK))
            self._talk = replace(
                self._talk, system=system, block=(done.start, done.start + len(tokens))
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
        talk = saved.talk or self._anew()
        template = self._template.other(talk.template).told(talk.thinking)
        with self.stream.transaction():
            restored = self.stream.restore(saved.stream, saved.kind, cells, logits=logits)
            self._go_on(talk, template)
        return restored

    def save(self, path: str | os.PathLike[str], sampling: Sampling | None = None) -> None:
        """Write conversation and stream to a file; see `Stream.save`."""
        self.stream.save(path, talk=self.talk(sampling))

    def reset(self) -> None:
        """Begin anew, under the same system prompt and policy."""
        with self.stream.transaction():
            self.stream.reset()
            self._go_on(self._anew(), self._template)

    def _anew(self) -> Conversation:
        template = self._template
        return Conversation(
            system=self.system, template=template.source, thinking=template.thinking
        )

    def go_on(self, talk: Conversation) -> None:
        """Go on with another conversation, which came with the stream as it is now.

        Raises
        ------
        ModelError
            Its template cannot be read; nothing has changed.
        """
        self._go_on(talk, self._template.other(talk.template).told(talk.thinking))

    def _go_on(self, talk: Conversation, template: ChatTemplate) -> None:
        self._talk, self._answer, self._template = talk, None, template


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


def _n_questions(talk: Conversation) -> int:
    return sum(turn.role == "user" for turn in talk.turns)


def _ended_at(talk: Conversation, index: int) -> Conversation:
    """The conversation whose last turn ends at an index, the template's end of it included."""
    *earlier, last = talk.turns
    return replace(talk, turns=(*earlier, replace(last, stop=max(last.start, index))), last=None)


def _n_alike(some: Sequence[int], others: Sequence[int]) -> int:
    """How many tokens two lists have in common at their beginnings."""
    pairs = zip(some, others, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(some), len(others)))
