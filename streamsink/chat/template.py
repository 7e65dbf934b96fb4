"""Chat templates: from turns to text, and which part of it is the system block."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import cast

from streamsink.chat import template_thoughts
from streamsink.chat.frame import ANSWER, NEXT, USER, Frame, frame
from streamsink.chat.renderer import Renderer
from streamsink.chat.words import (
    Lost,
    Message,
    Part,
    Refusal,
    Render,
    Role,
    Span,
    find,
    no_system,
    parts,
    placed,
    stand_ins,
    unwritten,
)
from streamsink.errors import ModelError

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""For models that bring no template."""


class ChatTemplate:
    """A chat template: Jinja, run in a sandbox in a process of its own, or one of llama.cpp's.

    What it gives out is what the template makes of the words themselves, never of a stand-in, and
    the words of people are parts of their own; see `streamsink.chat.words`.

    Parameters
    ----------
    source : str
        The template, or the name of one that llama.cpp has built in; empty means ChatML.
    special : mapping of str
        Texts of ``bos_token``, ``eos_token`` and the like, as the template may ask for them.
    thinking : bool, optional
        Whether the model is to think before it answers; else the template decides.

    Attributes
    ----------
    source : str
        The template.
    thinking : bool or None
        As given.

    Raises
    ------
    ModelError
        The template cannot be read.
    """

    def __init__(
        self, source: str, special: Mapping[str, str], *, thinking: bool | None = None
    ) -> None:
        self.source = source or CHATML
        self.thinking = thinking
        self._special = special
        self._renderer = Renderer(self.source, special)

    def __repr__(self) -> str:
        """How long it is, in one line."""
        return f"<ChatTemplate: {len(self.source):,} characters>"

    def other(self, source: str) -> ChatTemplate:
        """Another template for the same model."""
        if source == self.source:
            return self
        return ChatTemplate(source, self._special, thinking=self.thinking)

    def told(self, thinking: bool | None) -> ChatTemplate:
        """The same template, told to think or not."""
        if thinking == self.thinking:
            return self
        return ChatTemplate(self.source, self._special, thinking=thinking)

    # -- turns ----------------------------------------------------------------------------------

    def opening(self, system: str, user: str) -> tuple[list[Part], list[Part]]:
        """The text of the first turn up to where the answer begins: system block, and the rest.

        The block is what the template puts before the first user turn: the system prompt given, or
        the template's own, or nothing. A template that folds the system prompt into the first user
        turn has a block that ends where the user's words begin.

        Raises
        ------
        UsageError
            The template takes no system prompt, or would not write all the words.
        ModelError
            The template fails.
        """
        render = self._render()
        messages = [*_head(system), Message("user", user)]
        try:
            text = render(messages)
        except Refusal as error:
            if system and _goes_without(render, user):
                raise no_system(str(error).partition(": ")[2]) from None
            raise
        spans = [placed(render, messages, at, text) for at in range(len(messages))]
        end = self._block_end(text, spans)
        inside = [span for span in spans if span.stop <= end]
        return (
            parts(text[:end], inside),
            parts(text[end:], [span.moved(-end) for span in spans[len(inside) :]]),
        )

    def system_block(self, system: str) -> list[Part]:
        """The first half of `opening`, whatever the user says."""
        return self.opening(system, next(stand_ins([system])))[0]

    def _block_end(self, text: str, spans: Sequence[Span]) -> int:
        """Where the header of the first user turn begins, or else the user's words."""
        start, header = spans[-1].start, self._frame.header
        if header is None and len(spans) == 1:
            return 0
        begun = start - len(header or "")
        own = begun >= (spans[-2].stop if len(spans) > 1 else 0)
        return begun if own and text[begun:start] == (header or "") else start

    def next_turn(
        self, user: str, *, system: str = "", n_turns: int = 1
    ) -> tuple[list[Part], list[Part]]:
        """The text between the last word of an answer and what the user says, and the rest.

        Parameters
        ----------
        user : str
            What the user says.
        system : str, default ""
            The system prompt in force.
        n_turns : int, default 1
            How many turns the user had before; at least 1.

        Raises
        ------
        UsageError
            The template would not write all the words.
        ModelError
            The template fails.
        """
        render = self._render()
        marks = stand_ins([system, user])
        answer = next(marks)
        earlier = [Message("user", next(marks)), Message("assistant", next(marks))]
        n_earlier = n_turns - 1 if self._counts_turns else 0
        past = [*earlier * n_earlier, earlier[0], Message("assistant", answer)]
        text, messages = self._going_on(render, system, [*past, Message("user", user)], answer)
        _, found, rest = text.partition(answer)
        if not found or answer in rest:
            raise ModelError("the model's chat template does not write an answer once")
        end = len(text) - len(rest)
        span = placed(render, messages, len(messages) - 1, text)
        return (
            parts(text[end : span.start], []),
            parts(text[span.start :], [span.moved(-span.start)]),
        )

    def before_turn(self, *, system: str = "", n_turns: int = 1) -> list[Part]:
        """The first half of `next_turn`, whatever the user says."""
        return self.next_turn(next(stand_ins([system])), system=system, n_turns=n_turns)[0]

    def _going_on(
        self, render: Render, system: str, messages: list[Message], answer: str
    ) -> tuple[str, list[Message]]:
        """A conversation that has the system prompt at its beginning, as the stream has it.

        Some templates move the system prompt to the newest turn. In a stream it is in the system
        block, and there once.
        """
        if system:
            whole = [*_head(system), *messages]
            try:
                text = render(whole)
                if find(render, whole, 0, text).stop <= text.index(answer):
                    return text, whole
            except (Refusal, Lost, ValueError):
                pass
        return render(messages), messages

    @cached_property
    def _counts_turns(self) -> bool:
        """Whether a later turn is written in another way than the second, as with a number."""
        render = self._render()
        turn = [Message("user", USER), Message("assistant", ANSWER)]
        try:
            texts = [render([*turn * n, Message("user", NEXT)]) for n in (1, 2, 3)]
        except Refusal:
            return False
        return len({text.rpartition(ANSWER)[2] for text in texts}) > 1

    # -- what ends an answer --------------------------------------------------------------------

    @property
    def closing(self) -> list[Part]:
        """The text that ends an answer; nothing, if the next turn does not begin with it."""
        return parts(self.closing_text, [])

    @property
    def closing_text(self) -> str:
        """The text of `closing`."""
        return self._frame.closing

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end an answer, for models in whose vocabulary they are no single token."""
        closing, last = self._frame.closing.strip(), self._frame.last.strip()
        ends = [closing.partition("\n")[0].rstrip(), last]
        if last.startswith(closing) or closing.startswith(last):  # else, as gpt-oss, there are two
            ends = [min(ends, key=len) or max(ends, key=len)]
        if not any(ends):  # then an answer ends where the user has the next word
            ends = [(self._frame.header or "").strip()]
        return tuple(dict.fromkeys(end for end in ends if end))

    @cached_property
    def answer_opening(self) -> str:
        """What stands before an answer and no longer once it is past, as the mark of a thought."""
        turns = [Message("user", USER), Message("assistant", ANSWER), Message("user", NEXT)]
        try:
            prompt = self._render()(turns[:1]).partition(USER)[2]
            past = self._render()(turns).partition(USER)[2].partition(ANSWER)[0]
        except Refusal:
            return ""
        return prompt[len(past) :] if prompt.startswith(past) else ""

    @cached_property
    def _frame(self) -> Frame:
        return frame(self._render(), self._render(opens=False))

    # -- thoughts -------------------------------------------------------------------------------

    @cached_property
    def has_thinking_switch(self) -> bool:
        """Whether the template writes something else if ``thinking`` is given."""
        return template_thoughts.has_switch(self._renderer)

    @cached_property
    def thought_marks(self) -> tuple[str, str] | None:
        """The texts around a thought, as far as the template or its source shows them."""
        return template_thoughts.marks(self._renderer, self.source)

    @cached_property
    def opens_thought(self) -> bool:
        """Whether an answer begins within a thought: the template has written the mark before."""
        marks = self.thought_marks
        return marks is not None and template_thoughts.is_open(self._render(), marks)

    def past(self, answer: str) -> str:
        """The words of an answer as the template writes them once another turn follows.

        A thought is not among them where the template leaves old ones out; where it keeps them, the
        answer is as it was.
        """
        if self._keeps(answer):
            return answer
        try:
            text, _, span = self._past(USER, answer)
        except (Refusal, Lost):
            return answer
        return text[span.start : span.stop]

    def settled(self, user: str, answer: str) -> list[Part]:
        """An exchange as the template writes it once another turn follows.

        It begins with the user's words and ends with the last of the answer: with `next_turn`
        before it, it stands for what was fed and generated.

        Raises
        ------
        UsageError
            The template would not write all the words.
        ModelError
            The template fails.
        """
        try:
            text, said, answered = self._past(user, answer)
        except Lost as lost:
            raise unwritten(str(lost)) from None
        start = said.start
        return parts(text[start : answered.stop], [said.moved(-start), answered.moved(-start)])

    def _past(self, user: str, answer: str) -> tuple[str, Span, Span]:
        return template_thoughts.past(
            self._render(), self.thought_marks, self._dropping, user, answer
        )

    def _keeps(self, answer: str) -> bool:
        marks = self.thought_marks
        return marks is not None and marks[1] in answer and not self._dropping

    @cached_property
    def _dropping(self) -> template_thoughts.Dropping:
        marks = self.thought_marks
        return (
            template_thoughts.dropping(self._render(), self._render(opens=False), marks)
            if marks
            else ""
        )

    # -- rendering ------------------------------------------------------------------------------

    def render(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool) -> str:
        """The text of a conversation.

        Parameters
        ----------
        messages : sequence of mapping
            Each with a ``role`` and a ``content``.
        add_generation_prompt : bool
            Whether the text goes on to where an answer begins.

        Raises
        ------
        ModelError
            The template fails, loops, or takes too much memory.
        """
        said = [Message(cast(Role, one["role"]), one["content"]) for one in messages]
        return self._render(opens=add_generation_prompt)(said)

    def _render(self, *, opens: bool = True) -> Render:
        """The template at one moment: renderings that are compared have one time of day."""
        now = time.time()
        return lambda messages: self._renderer.text(
            messages, opens=opens, now=now, thinking=self.thinking
        )


def _head(system: str) -> list[Message]:
    return [Message("system", system)] if system else []


def _goes_without(render: Render, user: str) -> bool:
    """Whether a conversation without a system prompt can be rendered."""
    try:
        render([Message("user", user)])
    except Refusal:
        return False
    return True
