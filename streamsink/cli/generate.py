"""``streamsink generate``: raw continuation, as long as you like."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

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
from streamsink.reading import read_text


@grouped
def generate(
    model: ModelName = "",
    prompt: Annotated[
        str | None, typer.Option("-p", "--prompt", help="Text to go on from.")
    ] = None,
    file: Annotated[
        str | None, typer.Option("--file", help="File to go on from; - is standard input.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Most tokens; -1 goes on for ever.")] = 256,
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
    policy = memory.policy(model, default_keep=4)
    if policy.n_keep == "system":
        raise UsageError("--keep system needs a chat: give a number, or -1 for the whole prompt")
    if policy.n_discard == "turn":
        raise UsageError("--discard turn needs a chat: give a number, half or sentence")
    if policy.n_keep == -1 and file is not None:
        raise UsageError("--keep -1 pins a prompt given with -p; for --file give a number")
    if max_tokens < -1:
        raise UsageError(f"--max-tokens {max_tokens} is not possible: 0 or more, or -1 for ever")
    sampling = sample.sampling()
    pieces = iter([prompt]) if prompt is not None else read_text([file or "-"], "file")
    with opened(model, policy, memory.ctx, engine, cache, log) as (_, stream):
        for piece in pieces:
            stream.feed(piece)
        limit = None if max_tokens == -1 else max_tokens
        for step in stream.generate(limit, stop or (), sampling, ignore_eos=ignore_eos):
            sys.stdout.write(step.text)
            sys.stdout.flush()
        sys.stdout.write("\n")
