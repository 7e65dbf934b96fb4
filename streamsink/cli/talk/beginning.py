"""What a chat begins with: a session, a model, a template."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from streamsink.errors import UsageError
from streamsink.system.reading import read_whole

if TYPE_CHECKING:
    from streamsink.chat.template import ChatTemplate
    from streamsink.model import Model
    from streamsink.session import Session
    from streamsink.session.conversation import Conversation
    from streamsink.session.shelf import Kept


def session_of(name: str, held: ExitStack) -> tuple[Kept, Session | None]:
    """Hold the session file, and read it if it is there."""
    from streamsink import session
    from streamsink.session import shelf

    kept = shelf.take(shelf.locate(name))
    held.callback(kept.release)
    return kept, session.read(kept.path) if os.path.exists(kept.path) else None


def model_of(saved: Session) -> str:
    """The file of a session's model."""
    if not os.path.isfile(saved.kind.path):
        raise UsageError(
            f"the session's model {saved.kind.path} is not there any more: name the model, "
            "streamsink chat MODEL --session …"
        )
    return saved.kind.path


def template_of(
    asked: str | None, model: Model, conversation: Conversation | None, thinking: bool | None
) -> ChatTemplate:
    """The template by name or out of a file, or else as it was, or the model's own."""
    from streamsink.chat.renderer import is_name
    from streamsink.chat.template import ChatTemplate
    from streamsink.llama import builtin_templates as templates

    source = asked or (conversation.template if conversation else model.chat_template)
    if asked and not is_name(asked):
        if not os.path.exists(asked):
            raise UsageError(
                f"--chat-template {asked} is neither a file nor a template of llama.cpp: "
                f"{', '.join(templates.names())}"
            )
        source = read_whole(Path(asked), "chat-template")
    before = conversation.thinking if conversation else None
    template = ChatTemplate(
        source, model.special_texts, thinking=before if thinking is None else thinking
    )
    if thinking is not None and not template.has_thinking_switch:
        raise UsageError(
            "this chat template has no switch for thinking: leave out "
            f"--{'' if thinking else 'no-'}thinking"
        )
    return template
