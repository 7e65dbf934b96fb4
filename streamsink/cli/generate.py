"""``streamsink generate``: raw continuation, as long as you like."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from streamsink.cli import options
from streamsink.errors import UsageError
from streamsink.reading import read_text


def generate(
    model: options.ModelName = "",
    prompt: Annotated[
        str | None, typer.Option("-p", "--prompt", help="Text to go on from.")
    ] = None,
    file: Annotated[
        str | None, typer.Option("--file", help="File to go on from; - is standard input.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Most tokens; -1 goes on for ever.")] = 256,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends it; repeatable.")] = None,
    ignore_eos: Annotated[bool, typer.Option(help="Go on when the model ends.")] = False,
    ctx: options.Ctx = None,
    keep: options.Keep = None,
    discard: options.Discard = None,
    placement: options.Placement = "auto",
    slack: options.Slack = None,
    temp: options.Temp = 0.8,
    top_k: options.TopK = 40,
    top_p: options.TopP = 0.95,
    min_p: options.MinP = 0.05,
    repeat_penalty: options.RepeatPenalty = 1.0,
    repeat_last_n: options.RepeatLastN = 64,
    frequency_penalty: options.FrequencyPenalty = 0.0,
    presence_penalty: options.PresencePenalty = 0.0,
    seed: options.Seed = None,
    grammar: options.GrammarFile = None,
    threads: options.Threads = None,
    threads_batch: options.ThreadsBatch = None,
    batch: options.Batch = 512,
    gpu_layers: options.GpuLayers = None,
    cache_type_k: options.CacheK = "f16",
    cache_type_v: options.CacheV = "f16",
    flash_attn: options.FlashAttn = None,
    json_events: options.JsonEvents = None,
    verbose: options.Verbose = False,
) -> None:
    """Go on from a text of any length. Model text alone goes to stdout."""
    if (prompt is None) == (file is None):
        raise UsageError("give the text to go on from: either -p TEXT or --file FILE (- is stdin)")
    policy = options.policy_of(model, keep, discard, placement, slack, default_keep=4)
    if policy.n_keep == "system":
        raise UsageError("--keep system needs a chat: give a number, or -1 for the whole prompt")
    if policy.n_keep == -1 and file is not None:
        raise UsageError("--keep -1 pins a prompt given with -p; for --file give a number")
    if max_tokens < -1:
        raise UsageError(f"--max-tokens {max_tokens} is not possible: 0 or more, or -1 for ever")
    sampling = options.sampling_of(
        grammar,
        temperature=temp,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repeat_penalty=repeat_penalty,
        repeat_last_n=repeat_last_n,
        frequency_penalty=frequency_penalty,
        presence_penalty=presence_penalty,
        seed=seed,
    )
    pieces = iter([prompt]) if prompt is not None else read_text([file or "-"], "file")
    with options.opened(
        model,
        policy,
        ctx=ctx,
        gpu_layers=gpu_layers,
        json_events=json_events,
        verbose=verbose,
        cache_type_k=cache_type_k,
        cache_type_v=cache_type_v,
        threads=threads,
        threads_batch=threads_batch,
        n_batch=batch,
        flash_attn=flash_attn,
    ) as (_, stream):
        for piece in pieces:
            stream.feed(piece)
        limit = None if max_tokens == -1 else max_tokens
        for step in stream.generate(limit, stop or (), sampling, ignore_eos=ignore_eos):
            sys.stdout.write(step.text)
            sys.stdout.flush()
        sys.stdout.write("\n")
