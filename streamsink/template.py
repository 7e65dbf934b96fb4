"""Chat templates: from turns to text, and which part of it is the system block."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import TypeAlias

from streamsink.child import Child, Died
from streamsink.errors import ModelError

SECONDS = 5.0
"""How long a template may take."""
MOST_BYTES = 2**29
"""How much memory it may take."""

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""For models that bring no template."""

Part: TypeAlias = tuple[str, bool]
"""Text, and whether ``<|...|>`` in it are control tokens: what a person typed never holds any."""

_NAME = re.compile(r"[\w.-]+")

# Stand-ins for contents, so that the template's own text can be told from what goes into it.
_SYSTEM, _USER, _ANSWER, _NEXT = ("\ue000system", "\ue000user", "\ue000answer", "\ue000next")


class ChatTemplate:
    """A chat template: Jinja, run in a sandbox in a process of its own, or one of llama.cpp's.

    Parameters
    ----------
    source : str
        The template, or the name of one that llama.cpp has built in; empty means ChatML.
    special : dict of str
        ``bos_token`` and ``eos_token``, as the template may ask for them.

    Attributes
    ----------
    source : str
        The template.

    Raises
    ------
    ModelError
        The template cannot be read.
    """

    def __init__(self, source: str, special: dict[str, str]) -> None:
        self.source = source or CHATML
        self._special = special
        self._child = None if is_name(self.source) else _renderer()
        if self._child:
            self._ask(None, False)

    def other(self, source: str) -> ChatTemplate:
        """Another template for the same model."""
        return self if source == self.source else ChatTemplate(source, self._special)

    def opening(self, system: str, user: str) -> tuple[list[Part], list[Part]]:
        """The text of the first turn up to where the answer begins: system block, and the rest.

        The block is what the template puts before the first user turn: the system prompt given, or
        the template's own, or nothing. A template that folds the system prompt into the first user
        turn has a block that ends where the user's words begin.
        """
        head = [_message("system", _SYSTEM)] if system else []
        whole = self.render([*head, _message("user", _USER)], True)
        block = self._system_block(whole, given=bool(system))
        values = {_SYSTEM: system, _USER: user}
        return _parts(block, values), _parts(whole[len(block) :], values)

    def _system_block(self, whole: str, *, given: bool) -> str:
        before_user = whole.partition(_USER)[0]
        system = [_message("system", _SYSTEM)]
        try:
            alone = self.render(system, False)
            followed = self.render([*system, _message("user", _USER)], True)
        except ModelError:
            alone = followed = ""
        if _SYSTEM not in alone or not followed.startswith(alone):
            return before_user if given else ""
        if given:
            return alone
        user_header = followed[len(alone) :].partition(_USER)[0]
        return before_user.removesuffix(user_header)

    def next_turn(self, user: str) -> tuple[list[Part], list[Part]]:
        """The text between the last word of an answer and what the user says, and the rest."""
        turns = [_message("user", _USER), _message("assistant", _ANSWER), _message("user", _NEXT)]
        between = self.render(turns, True).partition(_ANSWER)[2]
        before, found, after = between.partition(_NEXT)
        return _parts(before, {}), _parts(found + after, {_NEXT: user})

    @cached_property
    def closing(self) -> list[Part]:
        """The text that ends an answer; nothing, if the next turn does not begin with it."""
        turns = [_message("user", _USER), _message("assistant", _ANSWER)]
        closing = self.render(turns, False).partition(_ANSWER)[2]
        after = self.render([*turns, _message("user", _NEXT)], True).partition(_ANSWER)[2]
        return [(closing, True)] if closing and after.startswith(closing) else []

    def render(self, messages: Sequence[dict[str, str]], add_generation_prompt: bool) -> str:
        """The text of a conversation.

        Parameters
        ----------
        messages : sequence of dict
            Each with a ``role`` and a ``content``.
        add_generation_prompt : bool
            Whether the text goes on to where an answer begins.

        Raises
        ------
        ModelError
            The template fails, loops, or takes too much memory.
        """
        if self._child:
            return self._ask(messages, add_generation_prompt)
        from streamsink.native import templates

        return templates.apply(self.source, messages, opens_answer=add_generation_prompt)

    def _ask(self, messages: Sequence[dict[str, str]] | None, add_generation_prompt: bool) -> str:
        request = {
            "source": self.source,
            "special": self._special,
            "messages": messages,
            "add_generation_prompt": add_generation_prompt,
        }
        assert self._child
        try:
            return str(self._child.ask(request, seconds=SECONDS)["text"])
        except Died as death:
            self._child = _renderer()
            raise ModelError(f"the model's chat template failed: {death}") from None


def is_name(source: str) -> bool:
    """Whether this is the name of a template that llama.cpp has built in."""
    if not _NAME.fullmatch(source):
        return False
    from streamsink.native import templates

    return source in templates.names()


def _renderer() -> Child:
    try:
        return Child("streamsink.rendering", n_bytes=MOST_BYTES)
    except Died as death:
        raise ModelError(f"the model's chat template cannot be run: {death}") from None


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _parts(text: str, values: dict[str, str]) -> list[Part]:
    """Cut a rendered text at the stand-ins and put the contents in their places."""
    parts: list[Part] = [(text, True)]
    for name, value in values.items():
        cut: list[Part] = []
        for piece, special in parts:
            before, found, after = piece.partition(name) if special else (piece, "", "")
            cut += [(before, special)] + ([(value, False), (after, True)] if found else [])
        parts = cut
    return [part for part in parts if part[0]]
