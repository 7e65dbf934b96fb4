"""``streamsink generate``: raw continuation, as long as you like."""

from __future__ import annotations

from collections.abc import Iterator
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
from streamsink.system.reading import given, read_text

if TYPE_CHECKING:
    from streamsink.engine.stream import Stream


@grouped
def generate(
    model: ModelName = "",
    prompt: Annotated[
        str | None, typer.Option("-p", "--prompt", help="Text to go on from.")
    ] = None,
    file: Annotated[
        str | None, typer.Option("--file", help="File to go on from; - is standard input.")
    ] = None,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", "-n", help="Most tokens; -1 goes on for ever.")
    ] = 256,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends it; repeatable.")] = None,
    ignore_eos: Annotated[bool, typer.Option(help="Go on when the model ends.")] = False,
    *,
    memory: PolicyOptions,
    cache: CacheOptions,
    sample: SamplingOptions,
    engine: EngineOptions,
    log: LogOptions,
) -> None:
    """Go on from a text of any length. Model text alone goes to stdout."""
    if (prompt is None) == (file is None):
        raise UsageError("give the text to go on from: either -p TEXT or --file FILE (- is stdin)")
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
        pieces = read_text([file or "-"], "file")
    with opened(model, policy, memory.ctx, engine, cache, log) as (_, stream):
        if policy.n_keep == -1:
            pieces = iter([_first_prompt(pieces, stream)])
        for piece in pieces:
            stream.feed(piece)
        limit = None if max_tokens == -1 else max_tokens
        finish = None
        for step in stream.generate(limit, stops, sampling, ignore_eos=ignore_eos):
            finish = step.finish
            terminal.out(step.text)
        terminal.out("\n")
        if finish == "grammar":
            terminal.note("the grammar lets nothing follow")


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
