"""Chat templates that llama.cpp has built in, by name."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence

import llama_cpp.llama_cpp as llama

from streamsink.errors import ModelError


def names() -> list[str]:
    """Names of the templates (llama-chat.cpp: LLM_CHAT_TEMPLATES)."""
    n = llama.llama_chat_builtin_templates(None, 0)
    found = (ctypes.c_char_p * n)()
    llama.llama_chat_builtin_templates(found, n)
    return sorted(name.decode() for name in found if name)


def apply(name: str, messages: Sequence[Mapping[str, str]], *, opens_answer: bool) -> str:
    """The text of a conversation.

    Parameters
    ----------
    name : str
        One of `names`.
    messages : sequence of mapping
        Each with a ``role`` and a ``content``.
    opens_answer : bool
        Whether the text goes on to where an answer begins.

    Raises
    ------
    ModelError
        llama.cpp refuses.
    """
    chat = (llama.llama_chat_message * len(messages))(
        *((_utf8(message["role"]), _utf8(message["content"])) for message in messages)
    )
    room = 256 + 4 * sum(len(message["content"]) + 64 for message in messages)
    while True:
        text = ctypes.create_string_buffer(room)
        n = llama.llama_chat_apply_template(
            name.encode(), chat, len(messages), opens_answer, text, room
        )
        if n < 0:
            raise ModelError(f"llama.cpp cannot apply the chat template {name}")
        if n <= room:
            return text.raw[:n].decode("utf-8")
        room = n


def _utf8(text: str) -> bytes:
    """A text for C: its strings end at a NUL, and a lone surrogate has no UTF-8."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace")
