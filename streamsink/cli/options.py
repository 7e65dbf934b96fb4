"""Options that several commands share, and what they become."""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from streamsink import policy as policies
from streamsink.advice import warnings
from streamsink.errors import UsageError
from streamsink.policy import SinkPolicy
from streamsink.registry import entry_for, load_registry, resolve
from streamsink.sampling import Sampling
from streamsink.settings import CacheSettings

if TYPE_CHECKING:
    from streamsink.model import Model
    from streamsink.records import Event
    from streamsink.stream import Stream

N_CTX = 2048


def _names(incomplete: str) -> list[str]:
    """Names of the registry, for shell completion."""
    return [name for name in load_registry() if name.startswith(incomplete)]


ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A name of `streamsink models`, or a .gguf file.",
        autocompletion=_names,
    ),
]


@dataclass(frozen=True)
class PolicyOptions:
    """What a stream keeps and what it forgets."""

    ctx: Annotated[
        int | None,
        typer.Option(
            help="Tokens a token can attend to. Without, what the model's entry says; else 2048, "
            "or less where the model was trained on less."
        ),
    ] = None
    keep: Annotated[
        str | None,
        typer.Option(
            help="Tokens pinned for good: N, -1 (the whole prompt), or system. Without, what the "
            "model's entry says; else 'system' in a chat and 4 elsewhere."
        ),
    ] = None
    discard: Annotated[
        str | None,
        typer.Option(
            help="Tokens evicted at once: N, half (of the window), or whole: turn (in a chat), "
            "sentence. Without, what the model's entry says; else 1."
        ),
    ] = None
    placement: Annotated[str, typer.Option(help="auto, rotate or reanchor.")] = "auto"
    slack: Annotated[
        int | None, typer.Option(help="Positions the sink may trail; 0 is the paper's.")
    ] = None
    force: Annotated[
        bool,
        typer.Option("--force", help="Take a --placement that is only approximate on this model."),
    ] = False

    def policy(self, model: str, *, default_keep: policies.Keep) -> SinkPolicy:
        """The policy that the options ask for, or else the model's entry, or else the command."""
        entry = entry_for(model)
        keep, discard = self.keep, self.discard
        if keep is None:
            keep = str(default_keep if entry is None or entry.keep is None else entry.keep)
        if discard is None:
            discard = str(1 if entry is None or entry.discard is None else entry.discard)
        placement = cast(Any, self.placement)
        return SinkPolicy(keep_of(keep), discard_of(discard), placement, self.slack, self.force)


@dataclass(frozen=True)
class EngineOptions:
    """How llama.cpp computes."""

    threads: Annotated[
        int | None, typer.Option(help="CPU threads; the physical cores without.")
    ] = None
    threads_batch: Annotated[
        int | None, typer.Option(help="CPU threads for batches; as --threads.")
    ] = None
    batch: Annotated[int, typer.Option(help="Most tokens in one decode.")] = 512
    gpu_layers: Annotated[
        int | None, typer.Option(help="Layers on the GPU; all of them without.")
    ] = None
    flash_attn: Annotated[
        bool | None,
        typer.Option("--flash-attn/--no-flash-attn", help="Chosen by device without."),
    ] = None
    rope_scaling: Annotated[
        str | None, typer.Option(help="none, linear or yarn; the model's own way without.")
    ] = None
    rope_scale: Annotated[
        float, typer.Option(help="Stretches the trained context by this factor.")
    ] = 1.0

    def settings(self, cache_type_k: str = "f16", cache_type_v: str = "f16") -> CacheSettings:
        """The settings that the options ask for."""
        return CacheSettings(
            cache_type_k,
            cache_type_v,
            n_batch=self.batch,
            threads=self.threads,
            threads_batch=self.threads_batch,
            flash_attn=self.flash_attn,
            rope_scaling=self.rope_scaling,
            rope_scale=self.rope_scale,
        )


@dataclass(frozen=True)
class CacheOptions:
    """Types of the cache."""

    cache_type_k: Annotated[str, typer.Option(help="Keys: f16, q8_0, q4_0 …")] = "f16"
    cache_type_v: Annotated[str, typer.Option(help="Values: f16, q8_0, q4_0 …")] = "f16"


@dataclass(frozen=True)
class SamplingOptions:
    """How tokens are chosen."""

    temp: Annotated[float, typer.Option(help="Temperature; 0 takes the likeliest token.")] = 0.8
    top_k: Annotated[int, typer.Option(help="Keep the k likeliest tokens; 0 keeps all.")] = 40
    top_p: Annotated[float, typer.Option(help="Keep the likeliest tokens of this share.")] = 0.95
    min_p: Annotated[float, typer.Option(help="Drop tokens below this share of the best.")] = 0.05
    repeat_penalty: Annotated[
        float, typer.Option(help="Divides logits of recent tokens; 1 is off.")
    ] = 1.0
    repeat_last_n: Annotated[int, typer.Option(help="How many are recent.")] = 64
    frequency_penalty: Annotated[
        float, typer.Option(help="Taken off for each recent use; 0 is off.")
    ] = 0.0
    presence_penalty: Annotated[
        float, typer.Option(help="Taken off for any recent use; 0 is off.")
    ] = 0.0
    seed: Annotated[int | None, typer.Option(help="Seed of the draw; random without.")] = None
    grammar: Annotated[Path | None, typer.Option(help="File with a GBNF grammar to follow.")] = None

    def sampling(self) -> Sampling:
        """The sampler settings that the options ask for."""
        return Sampling(
            temperature=self.temp,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repeat_penalty=self.repeat_penalty,
            repeat_last_n=self.repeat_last_n,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            seed=self.seed,
            grammar=read_text("grammar", self.grammar) if self.grammar else None,
        )


@dataclass(frozen=True)
class LogOptions:
    """What is told beside the text."""

    json_events: Annotated[
        Path | None, typer.Option(help="Write a JSON line per eviction and the like.")
    ] = None
    verbose: Annotated[bool, typer.Option("--verbose", help="Show llama.cpp's own log.")] = False


def keep_of(text: str) -> policies.Keep:
    """What ``--keep`` means."""
    return "system" if text == "system" else number("keep", text, "a number, -1 or 'system'")


def discard_of(text: str) -> policies.Discard:
    """What ``--discard`` means."""
    if text in ("half", "turn", "sentence"):
        return cast(policies.Discard, text)
    return number("discard", text, "a number, 'half', 'turn' or 'sentence'")


def number(option: str, text: str, possible: str = "a number") -> int:
    """A number that an option takes as text.

    Raises
    ------
    UsageError
        It is none.
    """
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"--{option} {text} is not possible: {possible}") from None


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
    ctx: int | None,
    engine: EngineOptions,
    cache: CacheOptions,
    log: LogOptions,
    *,
    chat: bool = False,
) -> Iterator[tuple[Model, Stream]]:
    """Check everything that can be checked without a model, then load it and open a stream.

    What is odd about the model is told once.
    """
    entry = entry_for(model)
    n_ctx = ctx if ctx is not None else (entry.n_ctx if entry and entry.n_ctx else N_CTX)
    policy.check(n_ctx)
    settings = engine.settings(cache.cache_type_k, cache.cache_type_v)
    path = resolve(model)
    if log.verbose:
        _show_log()
    with _event_writer(log.json_events) as on_event:
        from streamsink.model import Model

        with Model.open(path, engine.gpu_layers) as loaded:
            if ctx is None:
                n_ctx = min(n_ctx, loaded.n_ctx_train)
                policy.check(n_ctx)
            with loaded.stream(
                policy, n_ctx, on_event=on_event, **dataclasses.asdict(settings)
            ) as stream:
                warn(warnings(loaded.traits, settings, n_ctx=n_ctx, chat=chat))
                yield loaded, stream


def warn(lines: Sequence[str]) -> None:
    """Tell what is odd, on stderr."""
    for line in lines:
        typer.echo(f"streamsink: warning: {line}", err=True)


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
