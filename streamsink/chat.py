"""A conversation on a stream: turns in, answers out, the system block known by its tokens."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal, TypeAlias

from streamsink.errors import UsageError
from streamsink.records import Restored, Step
from streamsink.sampling import Sampling
from streamsink.session import Session
from streamsink.snapshot import Talk, Turn
from streamsink.stream import Stream
from streamsink.template import ChatTemplate, Part

LEAST_SINK = 4
"""Tokens that ``n_keep="system"`` pins at least: without a system block there still has to be a
sink, and four tokens are one (StreamingLLM, table 2)."""


Memory: TypeAlias = Literal["pinned", "visible", "cut", "forgotten"]
"""What is left of a turn; of one that is cut, its end."""


class Chat:
    """A conversation that need not end.

    Parameters
    ----------
    stream : Stream
        An empty stream.
    template : ChatTemplate
        The model's template.
    system : str
        System prompt; empty leaves it to the template.
    talk : Talk, optional
        The conversation that the stream came with, if it was restored.

    Attributes
    ----------
    turns : list of Turn
        The whole conversation, what the model has forgotten included.
    """

    def __init__(
        self, stream: Stream, template: ChatTemplate, system: str = "", *, talk: Talk | None = None
    ) -> None:
        self.stream = stream
        self.turns: list[Turn] = []
        self._template = template
        self._system = system
        self._block_end = 0
        self._begun: int | None = None
        self._quoted = ""
        self._last: Step | None = None
        if talk:
            self.go_on(talk)

    @property
    def system(self) -> str:
        """The system prompt in force."""
        return self._system

    def say(
        self,
        text: str,
        max_tokens: int | None = 1024,
        stop: Sequence[str] = (),
        sampling: Sampling | None = None,
    ) -> Iterator[Step]:
        """Take a turn, and let the model answer; see `Stream.generate`.

        Stop iterating to stop the answer: the conversation goes on from there.
        """
        steps = self.stream.generate(max_tokens, stop, sampling)
        if self.stream.stats.index == 0:
            block, rest = self._opening(self._system, text)
            start = self._open(block, rest)
        else:
            start = self._begin_turn()
            _, after = self._turn_parts(text)
            self.stream.feed(self._tokens(after))
        self.turns.append(Turn("user", self._quoted + text, start, self.stream.stats.index))
        self._begun, self._quoted = None, ""
        return self._answer(steps)

    def _begin_turn(self) -> int:
        """End the last answer, and take the template's words before the user's, once."""
        if self._begun is None:
            tokens = self._tokens(self._after_answer(self._template.before_turn()))
            closing = self._tokens(self._after_answer(self._template.closing))
            n = len(closing) if tokens[: len(closing)] == closing else 0
            self.stream.feed(tokens[:n])
            self.stream.begin_turn()
            self._begun = self.stream.stats.index
            if self.turns:
                self.turns[-1] = replace(self.turns[-1], stop=self._begun)
            self.stream.feed(tokens[n:])
        return self._begun

    def _turn_parts(self, text: str) -> tuple[list[Part], list[Part]]:
        """The next turn up to where the user speaks, and from there on."""
        before, after = self._template.next_turn(text)
        return self._after_answer(before), after

    def _answer(self, steps: Iterator[Step]) -> Iterator[Step]:
        said: list[str] = []
        self._last = None
        start = self.stream.stats.index
        try:
            for step in steps:
                self._last = step
                said.append(step.text)
                yield step
        finally:
            self.turns.append(Turn("assistant", "".join(said), start, self.stream.stats.index))

    def memory(self, turn: Turn) -> Memory:
        """What the model can still see of a turn."""
        if turn.pinned and self.stream.pins:
            return "pinned"
        sees = self.stream.stats.sees
        if not sees:
            return "forgotten"
        end = min(turn.stop, sees[-1][1])  # a token that is not yet evaluated is no less visible
        if any(start <= turn.start and end <= stop for start, stop in sees):
            return "visible"
        # Of one that begins the stream a few tokens may be the sink: nobody could read them.
        return "cut" if any(start < end <= stop for start, stop in sees) else "forgotten"

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
        if not 0 <= at < len(self.turns):
            raise UsageError(f"there is no turn {at + 1}: there are {len(self.turns)}")
        turn = self.turns[at]
        who = "I said" if turn.role == "user" else "you said"
        quoted = "".join(f"> {line}\n" for line in turn.text.strip().splitlines())
        quote = f"Earlier {who}:\n{quoted}\n"
        self._begin_turn()
        self.stream.feed(self._tokens([(quote, False)]))
        self._quoted += quote
        return quote

    def talk(self, sampling: Sampling | None = None) -> Talk:
        """The conversation as plain data, with how its answers are chosen."""
        return Talk(
            tuple(self.turns),
            self._system,
            self._template.source,
            self._block_end,
            self._begun,
            self._quoted,
            self._last,
            sampling,
        )

    def go_on(self, talk: Talk) -> None:
        """Go on with another conversation, which came with the stream as it is now.

        Raises
        ------
        ModelError
            Its template cannot be read; nothing has changed.
        """
        self._template = self._template.other(talk.template)
        self.turns[:] = talk.turns
        self._system, self._block_end = talk.system, talk.block_end
        self._begun, self._quoted, self._last = talk.begun, talk.quoted, talk.last

    def restore(self, saved: Session, cells: memoryview | None) -> Restored:
        """Go on with a session on the same stream; see `Stream.restore`.

        Raises
        ------
        ModelError
            The session's template cannot be read; nothing has changed.
        SessionError, UsageError, CapabilityError, DecodeError, CacheError
            As for `Stream.restore`.
        """
        talk = saved.talk or Talk(system=self._system, template=self._template.source)
        self._template.other(talk.template)
        restored = self.stream.restore(saved.stream, saved.kind, cells)
        self.go_on(talk)
        return restored

    def save(self, path: str | os.PathLike[str], sampling: Sampling | None = None) -> None:
        """Write conversation and stream to a file; see `Stream.save`."""
        self.stream.save(path, talk=self.talk(sampling))

    def pin(self) -> int:
        """Pin the last exchange for good: the question and what was answered.

        Returns
        -------
        int
            Tokens that are pinned now.

        Raises
        ------
        UsageError
            Nothing was said, or it leaves no window; nothing has changed.
        """
        if len(self.turns) < 2:
            raise UsageError("nothing was said that could be pinned")
        exchange = self.turns[-2:]
        if exchange[0].pinned and self.stream.pins:
            raise UsageError("the last exchange is pinned already")
        done = self.stream.pin(exchange[0].start, exchange[1].stop)
        self._block_end = 0
        self.turns[-2:] = [replace(turn, pinned=True) for turn in exchange]
        return done.n_tokens

    def unpin(self) -> int:
        """Release what was pinned last; see `Stream.unpin`."""
        done = self.stream.unpin()
        latest = max((at for at, turn in enumerate(self.turns) if turn.pinned), default=None)
        if latest is not None:
            exchange = self.turns[latest - 1 : latest + 1]
            self.turns[latest - 1 : latest + 1] = [replace(turn, pinned=False) for turn in exchange]
        return done.n_tokens

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
            The prompt leaves no window; nothing has changed.
        """
        if self.stream.stats.index == 0:
            self._system = system
            return 0
        block, _ = self._opening(system, "Hi")
        before = self.stream.policy, self.stream.stats.pinned
        self._pin(self._n_visible_of_block())
        try:
            done = self.stream.repin(block, exact=exact)
        except UsageError:
            self._pin(before[1])
            self.stream.policy = before[0]
            raise
        self._system, self._block_end = system, 0
        keep = before[0].n_keep
        if keep == "system":
            self.stream.pin_system(max(self.stream.stats.pinned, LEAST_SINK))
        elif keep != -1 and not self.stream.pins:
            self.stream.change(n_keep=keep)
        return done.n_evaluated

    def _n_visible_of_block(self) -> int:
        """Tokens of the system block that were not evicted: all of them, if they were pinned."""
        return sum(
            max(0, min(stop, self._block_end) - start) for start, stop in self.stream.stats.sees
        )

    def _pin(self, n_tokens: int) -> None:
        if self.stream.policy.n_keep == "system":
            self.stream.pin_system(n_tokens)
        else:
            self.stream.change(n_keep=n_tokens)

    def reset(self) -> None:
        """Begin anew, under the same system prompt and policy."""
        self.stream.reset()
        self.go_on(Talk(system=self._system, template=self._template.source))

    def _opening(self, system: str, text: str) -> tuple[list[int], list[int]]:
        """Tokens of the system block, which begins with the model's BOS, and of the rest."""
        block, rest = map(self._tokens, self._template.opening(system, text))
        bos = self.stream.bos
        if bos is not None and [*block, *rest][:1] != [bos]:
            block.insert(0, bos)
        elif bos is not None and not block:
            block, rest = rest[:1], rest[1:]
        return block, rest

    def _open(self, block: list[int], rest: list[int]) -> int:
        """Take the first turn; return the index at which it begins."""
        self._block_end = len(block)
        self.stream.pin_system(max(len(block), LEAST_SINK))
        self.stream.feed([*block, *rest])
        return len(block)

    def _tokens(self, parts: Sequence[Part]) -> list[int]:
        tokenize = self.stream.tokenize
        return [token for text, special in parts for token in tokenize(text, special=special)]

    def _after_answer(self, parts: list[Part]) -> list[Part]:
        """Drop the end-of-turn token from the template's text where the model wrote it itself."""
        if self._last and self._last.finish == "eos" and parts:
            ending = self.stream.text([self._last.token])
            text, special = parts[0]
            return [(text.removeprefix(ending), special), *parts[1:]]
        return parts
