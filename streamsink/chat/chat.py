"""A conversation on a stream: questions in, answers out, the system block known by its tokens."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from streamsink.chat.lasting import Lasting
from streamsink.chat.revising import Revising
from streamsink.core.policy import SinkPolicy
from streamsink.core.sampling import Sampling
from streamsink.errors import UsageError
from streamsink.system import checked

POLICY = frozenset(field.name for field in fields(SinkPolicy))
SAMPLING = frozenset(field.name for field in fields(Sampling))
ANSWERS = frozenset(("max_tokens", "stop"))


class Chat(Revising, Lasting):
    """A conversation that need not end.

    Every call is carried out or leaves conversation and stream as they were, whatever ends it: what
    the stream holds are the turns that the conversation has. A turn is a question with its answer,
    two messages.

    Parameters
    ----------
    stream : Stream
        An empty stream.
    template : ChatTemplate
        The model's template.
    system : str, default ""
        System prompt; empty leaves it to the template.
    conversation : Conversation, optional
        The conversation that the stream came with, if it was restored.
    sampling : Sampling, optional
        How answers are chosen; by default as the conversation says, or ``Sampling()``.
    max_tokens : int or None, default 1024
        Most tokens of an answer; ``None``: no limit.
    stop : sequence of str, default ()
        Texts that end an answer.
    """

    def __repr__(self) -> str:
        """How long it is, and how its stream stands, in one line."""
        n = self._conversation.n_turns
        return f"<Chat: {n:,} turn{'s' * (n != 1)} on {self.stream!r}>"

    def change(self, /, **settings: Any) -> None:
        """Change how the conversation goes on: ``chat.change(temperature=0.2, n_discard="turn")``.

        Parameters
        ----------
        **settings
            Fields of `Sampling` and of `SinkPolicy`, ``max_tokens`` and ``stop``.

        Raises
        ------
        UsageError
            There is no such setting, or not this value of it; nothing has changed.
        """
        unknown = settings.keys() - POLICY - SAMPLING - ANSWERS
        if unknown:
            possible = ", ".join(sorted(POLICY | SAMPLING | ANSWERS))
            raise UsageError(f"there is no setting {min(unknown)}: {possible}")
        # All is checked before the first of it changes.
        sampling = Sampling(**{**_values(self.sampling), **_of(settings, SAMPLING)})
        max_tokens = settings.get("max_tokens", self.max_tokens)
        if max_tokens is not None:
            max_tokens = checked.whole("max_tokens", max_tokens, 1, 2**62)
        stop = settings.get("stop", self.stop)
        stop = (stop,) if isinstance(stop, str) else tuple(stop)
        if policy := _of(settings, POLICY):
            self.stream.change(**policy)
        self.sampling, self.max_tokens, self.stop = sampling, max_tokens, stop

    def think(self, thinking: bool | None) -> None:
        """Have the model think before it answers, or not; ``None`` leaves it to the template.

        Raises
        ------
        UsageError
            The template has no switch for it; nothing has changed.
        """
        template = self._template.told(thinking)
        if thinking is not None and not template.has_thinking_switch:
            raise UsageError("this model's chat template has no switch for thinking")
        self._template = template


def _values(sampling: Sampling) -> dict[str, Any]:
    return {field.name: getattr(sampling, field.name) for field in fields(sampling)}


def _of(settings: dict[str, Any], names: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name in names}
