"""``streamsink generate``: raw continuation, as long as you like."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Annotated

import typer

from streamsink.cli import terminal
from streamsink.cli.choosing import STDIN, ModelOptions, Words
from streamsink.cli.grouped import grouped
from streamsink.cli.life import reading, speed
from streamsink.cli.options import CacheOptions, EngineOptions, LogOptions, TextPolicyOptions
from streamsink.cli.sampling_options import SamplingOptions
from streamsink.errors import UsageError
from streamsink.system.reading import given, read_text

if TYPE_CHECKING:
    from streamsink.engine.stream import Stream

NO_TEXT = "give the text to go on from: -p TEXT, --file FILE, or through a pipe"


@grouped
def generate(
    words: Words = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            "-p",
            "--prompt",
            metavar="TEXT",
            help="Text to go on from; or pipe it in.",
        ),
    ] = None,
    file: Annotated[
        str | None,
        typer.Option("--file", "-f", metavar="FILE", help="File to go on from; - is stdin."),
    ] = None,
    special: Annotated[
        bool, typer.Option("--special", help="Read <|...|> in the text as control tokens.")
    ] = False,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", "-n", metavar="N", help="Maximum tokens; -1: no limit.")
    ] = 256,
    stop: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Text that ends it; may be given several times."),
    ] = None,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Go on when the model ends its text.")
    ] = False,
    *,
    which: ModelOptions,
    memory: TextPolicyOptions,
    cache: CacheOptions,
    sample: SamplingOptions,
    engine: EngineOptions,
    log: LogOptions,
) -> None:
    """Continue a text of any length. What the model writes alone goes to stdout."""
    model, prompt = which.choose(words, prompt)
    if prompt == STDIN:
        prompt, file = None, STDIN
    if prompt is not None and file is not None:
        raise UsageError("give the text to go on from once: --prompt TEXT or --file FILE")
    if prompt is None and file is None and terminal.is_asked():
        raise UsageError(NO_TEXT)
    policy = memory.policy(model, chat=False)
    if policy.n_keep == "system":
        raise UsageError("--keep system needs a chat: give a number, or -1 for the whole prompt")
    if policy.n_discard == "turn":
        raise UsageError("--discard turn needs a chat: give a number, half or sentence")
    if max_tokens < -1:
        raise UsageError(f"--max-tokens {max_tokens} is not possible: 0 or more, or -1 for ever")
    sampling = sample.sampling()
    stops = [given(text, "--stop") for text in stop or ()]
    if prompt is not None:
        pieces = iter([given(prompt, "--prompt")])
    else:
        pieces = _some(read_text([file or STDIN], "file"), is_asked_for=file is not None)
    from streamsink.cli.opening import opened

    with opened(model, policy, memory.ctx, which, engine, cache, log) as (_, stream):
        n_read, seconds = _read(stream, pieces, special=special, whole=policy.n_keep == -1)
        limit = None if max_tokens == -1 else max_tokens
        finish, n_said, start = None, 0, time.perf_counter()
        try:
            for step in stream.generate(limit, stops, sampling, ignore_eos=ignore_eos):
                finish = step.finish
                n_said += 1
                terminal.out(step.text)
        except BaseException:  # Ctrl-C too leaves a line that is ended
            if n_said:
                terminal.out("\n")
            raise
        terminal.out("\n")
        if finish == "grammar":
            terminal.note("the grammar lets nothing follow")
        if log.verbose:
            terminal.note(speed(n_read, seconds, n_said, time.perf_counter() - start))


def _some(pieces: Iterator[str], *, is_asked_for: bool) -> Iterator[str]:
    """The pieces of a text; one that was not asked for has some."""
    first = next(pieces, None)
    if first is None and not is_asked_for:
        raise UsageError(NO_TEXT)
    return pieces if first is None else chain([first], pieces)


def _read(
    stream: Stream, pieces: Iterator[str], *, special: bool, whole: bool
) -> tuple[int, float]:
    """Feed a text in pieces, or in one; how many tokens it has, and the seconds it took."""
    start = time.perf_counter()
    with reading(stream):
        if whole:
            pieces = iter([_first_prompt(pieces, stream)])
        n = sum(stream.feed(piece, special=special) for piece in pieces)
    return n, time.perf_counter() - start


def _first_prompt(pieces: Iterator[str], stream: Stream) -> str:
    """All pieces as one, which is what ``--keep -1`` pins; a text that cannot fit is not read on.

    Raises
    ------
    UsageError
        It leaves no window.
    """
    gathered, n_tokens = [], 0
    for piece in pieces:
        gathered.append(piece)
        n_tokens += len(stream.tokenize(piece))
        # The whole may have a few tokens less than its pieces where they meet.
        if n_tokens - 4 * len(gathered) >= stream.n_ctx:
            raise UsageError(
                f"--keep -1 pins the whole prompt, which has more than the {stream.n_ctx} tokens "
                "of --ctx: raise --ctx, or give --keep a number"
            )
    return "".join(gathered)
