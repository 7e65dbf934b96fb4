"""``streamsink chat``: a conversation in the terminal, or line by line through a pipe."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from streamsink.cli import terminal
from streamsink.cli.grouped import grouped
from streamsink.cli.opening import opened
from streamsink.cli.options import (
    CacheOptions,
    EngineOptions,
    LogOptions,
    ModelName,
    PolicyOptions,
    SamplingOptions,
)
from streamsink.errors import UsageError
from streamsink.registry.catalog import DEFAULT_MODEL
from streamsink.system.reading import given, read_text, read_whole
from streamsink.system.turns import separator_of

if TYPE_CHECKING:
    from streamsink.chat.template import ChatTemplate
    from streamsink.core.events import Event
    from streamsink.model import Model
    from streamsink.session import Session
    from streamsink.session.conversation import Conversation
    from streamsink.session.shelf import Kept


@grouped
def chat(
    model: ModelName = "",
    system: Annotated[str | None, typer.Option("--system", help="System prompt.")] = None,
    system_file: Annotated[
        Path | None, typer.Option("--system-file", help="File with the system prompt.")
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(
            "--chat-template",
            metavar="NAME|FILE",
            help="A template of llama.cpp by name, or a file with a Jinja one; the model's own "
            "without.",
        ),
    ] = None,
    thinking: Annotated[
        bool | None,
        typer.Option(
            "--thinking/--no-thinking",
            help="Whether the model is to think before it answers, where its template has a switch "
            "for that. Thoughts are shown greyed, or from a pipe on stderr.",
        ),
    ] = None,
    question: Annotated[
        str | None,
        typer.Option(
            "-p",
            "--prompt",
            metavar="TEXT",
            help="One question: its answer goes to stdout, and that is all. What comes through a "
            "pipe stands before it: cat notes | streamsink chat -p 'Sum up.'",
        ),
    ] = None,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", "-n", help="Most tokens of an answer; -1: no limit.")
    ] = 1024,
    stop: Annotated[
        list[str] | None, typer.Option(help="Text that ends an answer; repeatable.")
    ] = None,
    turns_separated_by: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="What stands between two turns from a pipe, which may then have several lines; "
            "\\n, \\t and \\0 are escapes. A line end without.",
        ),
    ] = None,
    null: Annotated[
        bool, typer.Option("-0", "--null", help="As --turns-separated-by '\\0'.")
    ] = False,
    session: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Save after every turn; if it is there, go on where it was left, under its own "
            "settings but for those given here. A word is a name (`streamsink sessions`); a file "
            "has a folder (./talk) or ends in .session.",
        ),
    ] = None,
    *,
    memory: PolicyOptions,
    cache: CacheOptions,
    sample: SamplingOptions,
    engine: EngineOptions,
    log: LogOptions,
) -> None:
    """Conversation with a model without end; it forgets the oldest words, never the pinned ones.

    When stdin is no terminal, each line is a turn and the answers go to stdout as plain text.
    A turn that begins with a slash is a command, and one that begins with two is said with one.
    """
    if system is not None and system_file is not None:
        raise UsageError("--system and --system-file exclude one another: give one")
    if max_tokens < 1 and max_tokens != -1:
        raise UsageError(f"--max-tokens {max_tokens} is not possible: 1 or more, or -1: no limit")
    prompt = system and given(system, "--system")
    if system_file:
        prompt = read_whole(system_file, "system-file")
    if question is None:
        separator = _separator(turns_separated_by, null)
    elif turns_separated_by is not None or null:
        raise UsageError("-p is one question, which --turns-separated-by cannot divide: drop one")
    else:
        question = _with_stdin(given(question, "--prompt"))
    with ExitStack() as held:
        kept, saved = _session(session, held) if session is not None else (None, None)
        if saved:
            model = model or _its_model(saved)
        sampling = sample.sampling(
            saved.conversation.sampling if saved and saved.conversation else None
        )
        policy = memory.policy(model, chat=True, before=saved.stream.policy if saved else None)
        cuts: list[Event] = []
        with opened(
            model,
            policy,
            memory.ctx,
            engine,
            cache,
            log,
            chat=template is None,
            session=kept.path if kept and saved else None,
            hears=lambda event: cuts.append(event) if event.cut else None,
        ) as (loaded, stream):
            from streamsink.chat.chat import Chat
            from streamsink.cli.conversation import Conversation

            conversation = saved.conversation if saved else None
            turns_by = _template(template, loaded, conversation, thinking)
            if conversation:
                conversation = replace(
                    conversation, template=turns_by.source, thinking=turns_by.thinking
                )
            dialogue = Conversation(
                Chat(stream, turns_by, prompt or "", conversation=conversation),
                sampling,
                None if max_tokens == -1 else max_tokens,
                cuts,
                kept,
                stop or (),
            )
            held.callback(dialogue.let_go)
            if conversation and prompt is not None and prompt != conversation.system:
                n_evaluated = dialogue.change_system(prompt)
                terminal.note(f"system prompt changed, {n_evaluated} tokens evaluated")
            if question is not None:
                dialogue.once(question)
            elif terminal.is_asked():
                dialogue.interactive(f"{loaded.path.name} · {loaded.description}", _advice(model))
            else:
                dialogue.piped(separator)


def _with_stdin(question: str) -> str:
    """A question, and before it what comes through a pipe."""
    if terminal.is_asked() or sys.stdin is None or sys.stdin.closed:
        return question
    text = "".join(read_text(["-"], "prompt"))
    return f"{text.rstrip()}\n\n{question}" if text.strip() else question


def _advice(model: str) -> str:
    """What somebody should know who talks to the default model."""
    if model not in ("", DEFAULT_MODEL):
        return ""
    return (
        "A toy of 135M parameters, to try the machinery with. For a real conversation:\n"
        "  streamsink models pull qwen2.5-1.5b\n"
        "  streamsink chat qwen2.5-1.5b"
    )


def _separator(text: str | None, null: bool) -> str:
    """What stands between two turns from a pipe."""
    if text is None and not null:
        return "\n"
    if text is not None and null:
        raise UsageError("--turns-separated-by and --null exclude one another: give one")
    if terminal.is_asked():
        raise UsageError("--turns-separated-by is for turns from a pipe: Alt-Enter makes new lines")
    return "\0" if text is None else separator_of(text)


def _session(name: str, held: ExitStack) -> tuple[Kept, Session | None]:
    """Hold the session file, and read it if it is there."""
    from streamsink import session
    from streamsink.session import shelf

    kept = shelf.take(shelf.locate(name))
    held.callback(kept.release)
    return kept, session.read(kept.path) if os.path.exists(kept.path) else None


def _its_model(saved: Session) -> str:
    if not os.path.isfile(saved.kind.path):
        raise UsageError(
            f"the session's model {saved.kind.path} is not there any more: name the model, "
            "streamsink chat MODEL --session …"
        )
    return saved.kind.path


def _template(
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
