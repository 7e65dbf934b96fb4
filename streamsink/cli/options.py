"""Options that several commands share, and what they become."""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from streamsink import policy as policies
from streamsink.errors import UsageError
from streamsink.policy import SinkPolicy
from streamsink.registry import entry_for, load_registry, resolve
from streamsink.settings import CacheSettings

if TYPE_CHECKING:
    from streamsink.model import Model
    from streamsink.records import Event
    from streamsink.sampling import Sampling
    from streamsink.stream import Stream

N_CTX = 2048


def _names(incomplete: str) -> list[str]:
    """Names of the registry, for shell completion."""
    return [name for name in load_registry() if name.startswith(incomplete)]


ModelName = Annotated[
    str,
    typer.Argument(
        metavar="[MODEL]",
        help="A name of `streamsink models`, or a .gguf file.",
        autocompletion=_names,
    ),
]
Ctx = Annotated[
    int | None,
    typer.Option(
        help="Tokens a token can attend to. Without, what the model's entry says; else 2048, or "
        "less where the model was trained on less."
    ),
]
Keep = Annotated[
    str | None,
    typer.Option(
        help="Tokens pinned for good: N, -1 (the whole prompt), or system. Without, what the "
        "model's entry says; else 'system' in a chat and 4 elsewhere."
    ),
]
Discard = Annotated[
    str | None,
    typer.Option(
        help="Tokens evicted at once: N, or half (of the window). Without, what the model's entry "
        "says; else 1."
    ),
]
Placement = Annotated[str, typer.Option("--placement", help="auto, rotate or reanchor.")]
Slack = Annotated[
    int | None, typer.Option("--slack", help="Positions the sink may trail; 0 is the paper's.")
]
Temp = Annotated[float, typer.Option("--temp", help="Temperature; 0 takes the likeliest token.")]
TopK = Annotated[int, typer.Option("--top-k", help="Keep the k likeliest tokens; 0 keeps all.")]
TopP = Annotated[float, typer.Option("--top-p", help="Keep the likeliest tokens of this share.")]
MinP = Annotated[float, typer.Option("--min-p", help="Drop tokens below this share of the best.")]
RepeatPenalty = Annotated[
    float, typer.Option("--repeat-penalty", help="Divides logits of recent tokens; 1 is off.")
]
RepeatLastN = Annotated[int, typer.Option("--repeat-last-n", help="How many are recent.")]
FrequencyPenalty = Annotated[
    float, typer.Option("--frequency-penalty", help="Taken off for each recent use; 0 is off.")
]
PresencePenalty = Annotated[
    float, typer.Option("--presence-penalty", help="Taken off for any recent use; 0 is off.")
]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of the draw; random without.")]
GrammarFile = Annotated[
    Path | None, typer.Option("--grammar", help="File with a GBNF grammar to follow.")
]
Threads = Annotated[
    int | None, typer.Option("--threads", help="CPU threads; the physical cores without.")
]
ThreadsBatch = Annotated[
    int | None, typer.Option("--threads-batch", help="CPU threads for batches; as --threads.")
]
Batch = Annotated[int, typer.Option("--batch", help="Most tokens in one decode.")]
GpuLayers = Annotated[int | None, typer.Option("--gpu-layers", help="Layers on the GPU.")]
CacheK = Annotated[str, typer.Option("--cache-type-k", help="f16, q8_0, q4_0 …")]
CacheV = Annotated[str, typer.Option("--cache-type-v", help="f16, q8_0, q4_0 …")]
FlashAttn = Annotated[
    bool | None, typer.Option("--flash-attn/--no-flash-attn", help="Chosen by device without.")
]
JsonEvents = Annotated[
    Path | None, typer.Option("--json-events", help="Write a JSON line per eviction and the like.")
]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show llama.cpp's own log.")]


def keep_of(text: str) -> policies.Keep:
    """What ``--keep`` means."""
    return "system" if text == "system" else _number("keep", text, "a number, -1 or 'system'")


def discard_of(text: str) -> policies.Discard:
    """What ``--discard`` means."""
    return "half" if text == "half" else _number("discard", text, "a number or 'half'")


def _number(option: str, text: str, possible: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"--{option} {text} is not possible: {possible}") from None


def policy_of(
    model: str,
    keep: str | None,
    discard: str | None,
    placement: str,
    slack: int | None,
    *,
    default_keep: policies.Keep,
) -> SinkPolicy:
    """The policy that the options ask for, or else the model's entry, or else the command."""
    entry = entry_for(model)
    if keep is None:
        keep = str(default_keep if entry is None or entry.keep is None else entry.keep)
    if discard is None:
        discard = str(1 if entry is None or entry.discard is None else entry.discard)
    return SinkPolicy(keep_of(keep), discard_of(discard), cast(Any, placement), slack)


def sampling_of(grammar: Path | None, **settings: Any) -> Sampling:
    """The sampler settings that the options ask for."""
    from streamsink.sampling import Sampling

    return Sampling(grammar=read_text("grammar", grammar) if grammar else None, **settings)


def read_text(option: str, path: Path) -> str:
    """The text of a file that an option names.

    Raises
    ------
    UsageError
        It cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"--{option} {path} is not UTF-8 text") from None
    except OSError as error:
        raise UsageError(f"--{option} {path} cannot be read: {error.strerror}") from None


@contextmanager
def opened(
    model: str,
    policy: SinkPolicy,
    *,
    ctx: int | None,
    gpu_layers: int | None,
    json_events: Path | None,
    verbose: bool,
    **settings: Any,
) -> Iterator[tuple[Model, Stream]]:
    """Check everything that can be checked without a model, then load it and open a stream."""
    entry = entry_for(model)
    n_ctx = ctx if ctx is not None else (entry.n_ctx if entry and entry.n_ctx else N_CTX)
    policy.check(n_ctx)
    CacheSettings(**settings)
    path = resolve(model)
    if verbose:
        _show_log()
    with _event_writer(json_events) as on_event:
        from streamsink.model import Model

        with Model.open(path, gpu_layers) as loaded:
            if ctx is None:
                n_ctx = min(n_ctx, loaded.n_ctx_train)
                policy.check(n_ctx)
            with loaded.stream(policy, n_ctx, on_event=on_event, **settings) as stream:
                yield loaded, stream


@contextmanager
def _event_writer(path: Path | None) -> Iterator[Any]:
    if path is None:
        yield None
        return
    try:
        file = path.open("w", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--json-events {path} cannot be written: {error.strerror}") from None

    def write(event: Event) -> None:
        record = {"time": time.time(), **dataclasses.asdict(event)}
        file.write(json.dumps(record) + "\n")
        file.flush()

    with file:
        yield write


def _show_log() -> None:
    log = logging.getLogger("streamsink.llama")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
