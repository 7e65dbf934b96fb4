"""``streamsink chat``: a conversation in the terminal, or line by line through a pipe."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from streamsink.cli import terminal
from streamsink.cli.choosing import STDIN, ModelOptions, Words
from streamsink.cli.grouped import grouped
from streamsink.cli.options import CacheOptions, EngineOptions, LogOptions, PolicyOptions
from streamsink.cli.sampling_options import SamplingOptions
from streamsink.cli.talk.beginning import model_of, session_of, template_of
from streamsink.core.sampling import MAX_TOKENS
from streamsink.errors import StreamsinkError, UsageError
from streamsink.system.reading import given, read_text, read_whole
from streamsink.system.turns import separator_of

if TYPE_CHECKING:
    from streamsink.cli.talk.talk import Talk
    from streamsink.core.events import Event
    from streamsink.core.policy import SinkPolicy
    from streamsink.engine.stream import Stream
    from streamsink.model import Model


def _session_names(incomplete: str) -> list[str]:
    """Names of sessions, for shell completion."""
    from streamsink.session import shelf

    names = (path.name.removesuffix(shelf.SUFFIX) for path in shelf.files())
    return [name for name in names if name.startswith(incomplete)]


@grouped
def chat(
    words: Words = None,
    question: Annotated[
        str | None,
        typer.Option(
            "-p",
            "--prompt",
            metavar="TEXT",
            help="Answer one question and exit. What comes through a pipe stands before it: "
            "cat notes | streamsink chat -p 'Sum up.'",
        ),
    ] = None,
    system: Annotated[
        str | None, typer.Option("--system", "-s", metavar="TEXT", help="System prompt.")
    ] = None,
    system_file: Annotated[
        Path | None,
        typer.Option("--system-file", metavar="FILE", help="File with the system prompt."),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(
            "--chat-template",
            metavar="NAME|FILE",
            help="Chat template: a file with a Jinja one, or the name of one that llama.cpp has; "
            "by default the model's own.",
        ),
    ] = None,
    thinking: Annotated[
        bool | None,
        typer.Option(
            "--thinking/--no-thinking",
            help="Whether the model thinks before it answers, if its template has a switch for it.",
            show_default=False,
        ),
    ] = None,
    hide_thoughts: Annotated[
        bool,
        typer.Option(
            "--hide-thoughts",
            help="Do not show thoughts; else they are dimmed, or go to stderr beside a pipe.",
        ),
    ] = False,
    max_tokens: Annotated[
        int,
        typer.Option(
            "--max-tokens", "-n", metavar="N", help="Maximum tokens per answer; -1: no limit."
        ),
    ] = MAX_TOKENS,
    stop: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Text that ends an answer; may be given several times."),
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Draw answers as Markdown, on a terminal.")
    ] = False,
    json_lines: Annotated[
        bool,
        typer.Option(
            "--jsonl",
            help="JSON lines in and out: a message a line, an object with its answer a line; with "
            "--prompt, one object.",
        ),
    ] = False,
    turns_separated_by: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="What stands between two messages from a pipe, which may then have several "
            "lines; \\n, \\t and \\0 are escapes. By default the end of a line.",
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
            autocompletion=_session_names,
        ),
    ] = None,
    *,
    which: ModelOptions,
    memory: PolicyOptions,
    cache: CacheOptions,
    sample: SamplingOptions,
    engine: EngineOptions,
    log: LogOptions,
) -> None:
    """Chat with a model, without end.

    What no longer fits the context is forgotten, the oldest words first; what is pinned stays.

    When stdin is no terminal, each line is a message and the answers go to stdout as plain text;
    a prompt (or -) makes it one question instead. A message that begins with a slash is a command,
    and one that begins with two is said with one.
    """
    if system is not None and system_file is not None:
        raise UsageError("--system and --system-file exclude one another: give one")
    if max_tokens < 1 and max_tokens != -1:
        raise UsageError(f"--max-tokens {max_tokens} is not possible: 1 or more, or -1: no limit")
    prompt = system and given(system, "--system")
    if system_file:
        prompt = read_whole(system_file, "system-file")
    model, question = which.choose(words, question)
    separator = ""
    if question is not None:
        question = _question(question)
    if question is None and not json_lines:
        separator = _separator(turns_separated_by, null)
    elif turns_separated_by is not None or null:
        raise UsageError(
            f"{'--jsonl is a message a line' if json_lines else 'a prompt is one question'}, which "
            "--turns-separated-by cannot divide: drop one"
        )
    from streamsink.cli.opening import opened

    with ExitStack() as held:
        kept, saved = session_of(session, held) if session is not None else (None, None)
        if saved:
            model = model or model_of(saved)
        sampling = sample.sampling(
            saved.conversation.sampling if saved and saved.conversation else None
        )
        policy = memory.policy(model, chat=True, before=saved.stream.policy if saved else None)
        cuts: list[Event] = []

        def opening(
            name: str, policy: SinkPolicy, ctx: int | None, path: Path | None = None
        ) -> AbstractContextManager[tuple[Model, Stream]]:
            return opened(
                name,
                policy,
                ctx,
                *(which, engine, cache, log),
                chat=template is None,
                session=path,
                hears=lambda event: cuts.append(event) if event.cut else None,
            )

        loaded, stream = held.enter_context(
            opening(model, policy, memory.ctx, kept.path if kept and saved else None)
        )
        from msgspec.structs import replace

        from streamsink.chat.chat import Chat
        from streamsink.cli.talk import conversation as talking
        from streamsink.cli.talk import jsonl
        from streamsink.cli.talk.talk import Talk

        conversation = saved.conversation if saved else None
        turns_by = template_of(template, loaded, conversation, thinking)
        if conversation:
            conversation = replace(
                conversation, template=turns_by.source, thinking=turns_by.thinking
            )
        talk = Talk(
            Chat(
                stream,
                turns_by,
                prompt or "",
                conversation=conversation,
                sampling=sampling,
                max_tokens=None if max_tokens == -1 else max_tokens,
                stop=stop or (),
            ),
            loaded,
            cuts,
            kept,
            opening,
            markdown=markdown,
            thoughts=not hide_thoughts,
            silent=json_lines,
            verbose=log.verbose > 0,
            once=question is not None,
        )
        held.callback(_closed, talk)
        if conversation and prompt is not None and prompt != conversation.system:
            n_evaluated = talk.chat.change_system(prompt)
            talk.keeping.save()
            terminal.note(f"system prompt changed, {n_evaluated} tokens evaluated")
        if question is not None:
            spoken = talking.once(talk, question)
            if json_lines:
                jsonl.write(jsonl.answered(talk, spoken))
        elif json_lines:
            jsonl.jsonl(talk)
        elif terminal.is_asked():
            talking.interactive(talk, f"{loaded.path.name} · {loaded.description}", _advice(model))
        else:
            talking.piped(talk, separator)


def _closed(talk: Talk) -> None:
    """Let others have the session file; what goes wrong at the end is told, and changes no code."""
    try:
        talk.close()
    except StreamsinkError as error:
        terminal.tell(error)


def _question(prompt: str) -> str:
    """One question, and before it what comes through a pipe; ``-`` alone is what comes."""
    is_all = prompt == STDIN
    prompt = "" if is_all else given(prompt, "--prompt")
    text = ""
    if is_all or not (terminal.is_asked() or sys.stdin is None or sys.stdin.closed):
        text = "".join(read_text(["-"], "prompt", "replace"))
    question = "\n\n".join(part for part in (text.strip("\r\n"), prompt) if part.strip())
    if not question:
        raise UsageError("nothing was asked: the prompt is empty")
    return question


def _advice(model: str) -> str:
    """What somebody should know who talks to the default model."""
    from streamsink.registry.catalog import DEFAULT_MODEL

    if model not in ("", DEFAULT_MODEL):
        return ""
    return (
        "A toy of 135M parameters, to try the machinery with. For a real conversation: "
        "streamsink chat qwen2.5-1.5b"
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
