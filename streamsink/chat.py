"""A conversation on a stream: turns in, answers out, the system block known by its tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from streamsink.errors import UsageError
from streamsink.records import Step
from streamsink.sampling import Sampling
from streamsink.stream import Stream
from streamsink.template import ChatTemplate, Part

LEAST_SINK = 4
"""Tokens that ``n_keep="system"`` pins at least: without a system block there still has to be a
sink, and four tokens are one (StreamingLLM, table 2)."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What was said.

    Attributes
    ----------
    role : {"user", "assistant"}
    text : str
    """

    role: str
    text: str


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

    Attributes
    ----------
    turns : list of Turn
        The whole conversation, what the model has forgotten included.
    """

    def __init__(self, stream: Stream, template: ChatTemplate, system: str = "") -> None:
        self.stream = stream
        self.turns: list[Turn] = []
        self._template = template
        self._system = system
        self._block_end = 0
        self._turn_start = 0
        self._last: Step | None = None

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
            self._open(block, rest)
        else:
            self._feed_turn(text)
        self.turns.append(Turn("user", text))
        return self._answer(steps)

    def _feed_turn(self, text: str) -> None:
        """End the last answer and take the next turn, which begins behind that end."""
        tokens = self._tokens(self._after_answer(self._template.next_turn(text)))
        closing = self._tokens(self._after_answer(self._template.closing))
        n = len(closing) if tokens[: len(closing)] == closing else 0
        self.stream.feed(tokens[:n])
        self.stream.begin_turn()
        self._turn_start = self.stream.stats.index
        self.stream.feed(tokens[n:])

    def _answer(self, steps: Iterator[Step]) -> Iterator[Step]:
        said: list[str] = []
        self._last = None
        try:
            for step in steps:
                self._last = step
                said.append(step.text)
                yield step
        finally:
            self.turns.append(Turn("assistant", "".join(said)))

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
        if not self.turns:
            raise UsageError("nothing was said that could be pinned")
        done = self.stream.pin(self._turn_start, self.stream.stats.index)
        self._block_end = 0
        return done.n_tokens

    def unpin(self) -> int:
        """Release what was pinned last; see `Stream.unpin`."""
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
            The prompt leaves no window; nothing has changed.
        """
        if self.stream.stats.index == 0:
            self._system = system
            return 0
        block, _ = self._opening(system, "")
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
        self.turns.clear()
        self._last = None

    def _opening(self, system: str, text: str) -> tuple[list[int], list[int]]:
        """Tokens of the system block, which begins with the model's BOS, and of the rest."""
        block, rest = map(self._tokens, self._template.opening(system, text))
        bos = self.stream.bos
        if bos is not None and [*block, *rest][:1] != [bos]:
            block.insert(0, bos)
        elif bos is not None and not block:
            block, rest = rest[:1], rest[1:]
        return block, rest

    def _open(self, block: list[int], rest: list[int]) -> None:
        self._block_end = self._turn_start = len(block)
        self.stream.pin_system(max(len(block), LEAST_SINK))
        self.stream.feed([*block, *rest])

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
