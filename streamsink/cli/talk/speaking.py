"""An answer shown while it comes, and what has to be said of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from streamsink.chat.thought_stream import Thoughts
from streamsink.cli import terminal
from streamsink.cli.life import reading, speed

if TYPE_CHECKING:
    from streamsink.chat.chat import Chat
    from streamsink.core.events import Finish, Step

Begin = Callable[[], "Iterator[Step]"]
"""Takes in what is asked, and begins the answer."""


class Show(Protocol):
    """Where an answer is shown, piece by piece."""

    def __call__(self, text: str, *, thought: bool) -> None:
        """Show a piece."""

    def close(self) -> None:
        """End it: nothing follows."""


@dataclass(slots=True)
class Spoken:
    """What an answer came to.

    Attributes
    ----------
    text, thought : str
        What was said, and what was thought.
    finish : Finish or None
        Why it ended; None where it was broken off.
    n_read, n_said : int
        Tokens taken in before it, and generated.
    seconds_reading, seconds_saying : float
        How long that took.
    """

    text: str = ""
    thought: str = ""
    finish: Finish | None = None
    n_read: int = 0
    n_said: int = 0
    seconds_reading: float = 0.0
    seconds_saying: float = 0.0

    @property
    def speed(self) -> str:
        """In numbers, for people."""
        return speed(self.n_read, self.seconds_reading, self.n_said, self.seconds_saying)


def speak(
    chat: Chat, begin: Begin, show: Show, *, began: str = "", taken: Callable[[], object]
) -> Spoken:
    """Have an answer given, and show it.

    Parameters
    ----------
    chat : Chat
        Who answers.
    begin : callable
        Takes in what is asked.
    show : Show
        Where it is shown.
    began : str
        What there was of the answer before, where it goes on.
    taken : callable
        Called once the question is taken in, before the answer begins.
    """
    spoken = Spoken()
    start, index = time.perf_counter(), chat.stream.stats.index
    with closing(show):
        with reading(chat.stream):
            steps = begin()
            spoken.n_read = max(0, chat.stream.stats.index - index)
        spoken.seconds_reading = time.perf_counter() - start
        taken()
        thoughts = Thoughts(chat.template.thought_marks, inside=chat.template.opens_thought)
        thoughts.push(began)
        start = time.perf_counter()
        try:
            for step in steps:
                spoken.finish = step.finish
                spoken.n_said += 1
                for part in thoughts.push(step.text, final=step.finish is not None):
                    if part.thought:
                        spoken.thought += part.text
                    else:
                        spoken.text += part.text
                    show(part.text, thought=part.thought)
        finally:
            spoken.seconds_saying = time.perf_counter() - start
    return spoken


class Plain:
    """Shows an answer in words: thoughts dim on a terminal, or on stderr beside a pipe.

    Parameters
    ----------
    thoughts : bool
        Whether thoughts are shown.
    """

    def __init__(self, *, thoughts: bool) -> None:
        self._thoughts = thoughts
        self._flow = terminal.Flow()
        self._thinks = False

    def __call__(self, text: str, *, thought: bool) -> None:
        """Show a piece."""
        if thought:
            self._think(text)
        else:
            if self._thinks and self._thoughts:
                self._aside("\n\n")
            self._say(text)
        self._thinks = thought

    def _think(self, text: str) -> None:
        if self._thoughts:
            self._aside(text)

    def _aside(self, text: str) -> None:
        if terminal.is_terminal():
            self._flow(text, dim=True)
        else:  # the answer goes on alone
            terminal.err(text, dim=True)

    def _say(self, text: str) -> None:
        self._flow(text)

    def close(self) -> None:
        """Nothing to end: the line is left to who knows what follows."""


class InMarkdown(Plain):
    """Shows an answer drawn as Markdown, on a terminal."""

    def __init__(self, *, thoughts: bool) -> None:
        from streamsink.cli.markdown import MarkdownFlow

        super().__init__(thoughts=thoughts)
        self._drawn = MarkdownFlow()

    def _say(self, text: str) -> None:
        self._drawn(text)

    def close(self) -> None:
        """Draw what is under way for good."""
        self._drawn.close()


class Silent:
    """Shows nothing: the whole is given out at the end."""

    def __call__(self, text: str, *, thought: bool) -> None:
        """Show nothing."""

    def close(self) -> None:
        """End nothing."""
