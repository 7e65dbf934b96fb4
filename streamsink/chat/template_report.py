"""What a chat template can do, and what it lacks, before anybody talks by it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from streamsink.chat.template import ChatTemplate
from streamsink.errors import ModelError, StreamsinkError, UsageError, setting

SYSTEM, QUESTION = "Be brief.", "Hello."


class Report(NamedTuple):
    """What is found out about a template.

    Attributes
    ----------
    usable : bool
        Whether a conversation can be had by it.
    has : tuple of str
        What it does, in a few words each.
    lacks : tuple of str
        What it does not, as sentences.
    """

    usable: bool
    has: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()


def report(source: str, special: Mapping[str, str]) -> Report:
    """Try a template.

    Parameters
    ----------
    source : str
        Its source; empty where the model brings none.
    special : mapping of str
        As for `ChatTemplate`.
    """
    another = f"for a chat choose one by {setting('chat_template')}"
    if not source:
        return Report(False, (), (f"the model brings no chat template: {another}",))
    try:
        template = ChatTemplate(source, special)
        template.opening("", QUESTION)
        template.next_turn(QUESTION)
    except StreamsinkError as error:
        return Report(False, (), (f"{error.message}: {another}",))
    has, lacks = [], []
    try:
        template.opening(SYSTEM, QUESTION)
        has.append("system prompt")
    except (UsageError, ModelError):
        lacks.append(f"the chat template takes no system prompt: {setting('system')} is refused")
    if template.has_thinking_switch:
        has.append("thinking can be switched")
    elif template.thought_marks:
        has.append("thoughts")
    if not template.stops:
        limit = setting("max_tokens")
        lacks.append(
            f"the chat template writes no end of an answer: where the model gives none, {limit} is"
        )
    return Report(True, tuple(has), tuple(lacks))
