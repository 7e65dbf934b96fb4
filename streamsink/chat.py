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
        self._n_system = 0
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
            self.stream.feed(self._tokens(self._after_answer(self._template.next_turn(text))))
        self.turns.append(Turn("user", text))
        return self._answer(steps)

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

    def change_system(self, system: str) -> int:
        """Swap the system prompt and evaluate what the model still sees anew behind it.

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
        if len(block) >= self.stream.n_ctx:
            raise UsageError(
                f"a system prompt of {len(block)} tokens leaves no window in n_ctx "
                f"{self.stream.n_ctx}: shorten it, or start with a larger --ctx"
            )
        rest = [
            token
            for part in self.stream.visible()
            for index, token in zip(range(part.start, part.stop), part.tokens, strict=True)
            if index >= self._n_system
        ]
        self.stream.reset()
        self._system = system
        self._open(block, rest)
        return len(block) + len(rest)

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
        self._n_system = len(block)
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
