"""Lets a chat template write a conversation: in a process of its own, or in llama.cpp by name."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, TypeAlias

from streamsink.chat.words import Message, Refusal, Role, stand_ins
from streamsink.errors import ModelError
from streamsink.system.child import Child, Died

SECONDS = 5.0
"""How long a template may take."""
MOST_BYTES = 2**29
"""How much memory it may take."""

Form: TypeAlias = Literal["text", "typed"]
"""How a template reads the content of a message: as a text, or as a list of parts with types."""

_NAME = re.compile(r"[\w.-]+")


class Renderer:
    """A template that writes conversations.

    Parameters
    ----------
    source : str
        The template, or the name of one that llama.cpp has built in.
    special : mapping of str
        Texts of tokens that a template may ask for, by the names that it uses.

    Raises
    ------
    ModelError
        The template cannot be read.
    """

    def __init__(self, source: str, special: Mapping[str, str]) -> None:
        self._source = source
        self._special = dict(special)
        self._child = None if is_name(source) else _start()
        if self._child:
            self._ask(None, opens=False, now=None, thinking=None)

    def text(
        self,
        messages: Sequence[Message],
        *,
        opens: bool,
        now: float | None = None,
        thinking: bool | None = None,
    ) -> str:
        """The text of a conversation.

        Parameters
        ----------
        messages : sequence of Message
            The conversation.
        opens : bool
            Whether the text goes on to where an answer begins.
        now : float, optional
            What the clock says, in seconds since 1970; the time that it is.
        thinking : bool, optional
            What the template is told of thinking; nothing.

        Raises
        ------
        ModelError
            The template fails, loops, or takes too much memory.
        """
        forms = self._forms if messages else {}
        return self._write(messages, forms, opens=opens, now=now, thinking=thinking)

    @cached_property
    def _forms(self) -> dict[Role, Form]:
        """How contents are given so that the template writes them."""
        forms: dict[Role, Form] = {"system": "text", "user": "text", "assistant": "text"}
        if self._child is None:
            return forms
        words, other = (word for word, _ in zip(stand_ins(), range(2), strict=False))
        user, system = Message("user", other), Message("system", other)
        tried: tuple[tuple[Role, list[list[Message]]], ...] = (
            ("user", [[Message("user", words)], [system, Message("user", words)]]),
            ("assistant", [[user, Message("assistant", words), user]]),
            ("system", [[Message("system", words), user]]),
        )
        for role, conversations in tried:
            for form in _FORMS:
                trial = {**forms, role: form}
                if any(self._writes_once(words, said, trial) for said in conversations):
                    forms = trial
                    break
        return forms

    def _writes_once(
        self, words: str, messages: Sequence[Message], forms: Mapping[Role, Form]
    ) -> bool:
        try:
            return self._write(messages, forms, opens=True).count(words) == 1
        except Refusal:
            return False

    def _write(
        self,
        messages: Sequence[Message],
        forms: Mapping[Role, Form],
        *,
        opens: bool,
        now: float | None = None,
        thinking: bool | None = None,
    ) -> str:
        if self._child:
            said = [_as_dict(message, forms.get(message.role, "text")) for message in messages]
            return self._ask(said, opens=opens, now=now, thinking=thinking)

        from streamsink.llama import builtin_templates

        plain = [{"role": said.role, "content": said.content} for said in messages]
        try:
            return builtin_templates.apply(self._source, plain, opens_answer=opens)
        except ModelError as error:
            raise Refusal(str(error)) from None

    def _ask(
        self,
        messages: list[dict[str, Any]] | None,
        *,
        opens: bool,
        now: float | None,
        thinking: bool | None,
    ) -> str:
        request = {
            "source": self._source,
            "messages": messages,
            "add_generation_prompt": opens,
            "now": time.time() if now is None else now,
            "variables": {**self._special, **_switches(thinking)},
        }
        assert self._child
        try:
            return str(self._child.ask(request, seconds=SECONDS)["text"])
        except ModelError as error:
            raise Refusal(str(error)) from None
        except Died as death:
            raise ModelError(f"the model's chat template failed: {death}") from None


_FORMS: tuple[Form, ...] = ("text", "typed")


def _as_dict(message: Message, form: Form) -> dict[str, Any]:
    content: Any = message.content
    if form == "typed":
        content = [{"type": "text", "text": message.content}]
    said = {"role": message.role, "content": content}
    if message.thought:  # by the names that templates read it under
        said |= dict.fromkeys(("reasoning_content", "reasoning", "thinking"), message.thought)
    return said


def _switches(thinking: bool | None) -> dict[str, Any]:
    """The names under which templates ask whether to think."""
    if thinking is None:
        return {}
    mode = "enabled" if thinking else "disabled"
    return {"enable_thinking": thinking, "thinking": thinking, "thinking_mode": mode}


def is_name(source: str) -> bool:
    """Whether this is the name of a template that llama.cpp has built in."""
    if not _NAME.fullmatch(source):
        return False
    from streamsink.llama import builtin_templates

    return source in builtin_templates.names()


def _start() -> Child:
    try:
        return Child("streamsink.chat.rendering_child", n_bytes=MOST_BYTES)
    except Died as death:
        raise ModelError(f"the model's chat template cannot be run: {death}") from None
