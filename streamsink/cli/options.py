"""Options that several commands share, and what they become."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamsink.cli.values import discard_of, keep_of, stated, threads_of, usual_ctx
from streamsink.core.policy import SinkPolicy
from streamsink.errors import UsageError
from streamsink.gguf.settings import CacheSettings

if TYPE_CHECKING:
    from streamsink.registry.entries import Entry


def model_names(incomplete: str) -> list[str]:
    """Names of the registry, for shell completion; none where it cannot be read."""
    from streamsink.registry.catalog import load_registry

    try:
        return [name for name in load_registry() if name.startswith(incomplete)]
    except UsageError:
        return []


ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A name of `streamsink models`, or a .gguf file.",
        autocompletion=model_names,
    ),
]


@dataclass(frozen=True)
class PolicyOptions:
    """KV cache."""

    ctx: Annotated[
        int | None,
        typer.Option(
            "--ctx",
            "-c",
            help="Size of the context in tokens.",
            metavar="N",
            show_default="2048, or the model's own",
        ),
    ] = None
    keep: Annotated[
        str | None,
        typer.Option(
            help="Number of tokens pinned at the beginning (attention sinks): N, -1 (the first "
            "prompt) or system (the system prompt).",
            metavar="N",
            show_default="system",
        ),
    ] = None
    discard: Annotated[
        str | None,
        typer.Option(
            help="Number of tokens evicted at once when the context is full: N, half (of the "
            "window), or whole: turn, sentence.",
            metavar="N",
            show_default="1",
        ),
    ] = None
    placement: Annotated[
        str | None,
        typer.Option(
            help="How positions close ranks after an eviction: auto, rotate (K-shift) or reanchor "
            "(evaluate the sink again).",
            metavar="WAY",
            show_default="auto",
        ),
    ] = None
    slack: Annotated[
        int | None,
        typer.Option(
            help="Positions that the sink may trail the window before it is brought up; 0 is the "
            "paper's.",
            metavar="N",
            show_default="auto",
        ),
    ] = None
    force: Annotated[
        bool,
        typer.Option("--force", help="Take a --placement that is only approximate on this model."),
    ] = False

    def policy(self, model: str, *, chat: bool, before: SinkPolicy | None = None) -> SinkPolicy:
        """The policy that the options ask for, or else the session, the model's entry, the command.

        Parameters
        ----------
        model : str
            Its name.
        chat : bool
            Whether turns are taken.
        before : SinkPolicy, optional
            The session's.
        """
        asked = stated(
            {
                "n_keep": self.keep and keep_of(self.keep),
                "n_discard": self.discard and discard_of(self.discard),
                "placement": self.placement,
                "slack": self.slack,
                "force": self.force or None,
            }
        )
        if before:
            return replace(before, **asked)
        policy = SinkPolicy(**{"n_keep": "system" if chat else 4, **asked})
        from streamsink.registry.files import entry_for

        entry = entry_for(model)
        return policy if entry is None else self._with_defaults_of(entry, policy, chat=chat)

    def _with_defaults_of(self, entry: Entry, policy: SinkPolicy, *, chat: bool) -> SinkPolicy:
        """A policy with what a model's entry says of what was not asked for.

        What makes no sense for the command, or beside what was asked for, stays as the command has
        it: the entry was written for others too.
        """
        keep = entry.keep if self.keep is None and (chat or entry.keep != "system") else None
        discard = entry.discard if self.discard is None else None
        if discard == "turn" and not chat:
            discard = None
        for values in stated({"n_keep": keep}), stated({"n_discard": discard}):
            changed = replace(policy, **values)
            with contextlib.suppress(UsageError):
                changed.check(self.ctx if self.ctx is not None else usual_ctx(entry))
                policy = changed
        return policy


@dataclass(frozen=True)
class TextPolicyOptions(PolicyOptions):
    """KV cache."""

    keep: Annotated[
        str | None,
        typer.Option(
            help="Number of tokens pinned at the beginning (attention sinks): N, or -1 (the whole "
            "text).",
            metavar="N",
            show_default="4",
        ),
    ] = None
    discard: Annotated[
        str | None,
        typer.Option(
            help="Number of tokens evicted at once when the context is full: N, half (of the "
            "window), or a whole sentence.",
            metavar="N",
            show_default="1",
        ),
    ] = None


@dataclass(frozen=True)
class EngineOptions:
    """Performance."""

    threads: Annotated[
        str | None,
        typer.Option(
            "--threads",
            "-t",
            help="Number of CPU threads, or auto: the cores that nobody else uses.",
            metavar="N",
            show_default="auto",
        ),
    ] = None
    threads_batch: Annotated[
        str | None,
        typer.Option(
            help="Number of CPU threads while a prompt is read, or auto.",
            metavar="N",
            show_default="as --threads",
        ),
    ] = None
    batch: Annotated[
        int,
        typer.Option("--batch", "-b", help="Maximum number of tokens in one decode.", metavar="N"),
    ] = 512
    gpu_layers: Annotated[
        int | None,
        typer.Option(
            "--gpu-layers",
            "-ngl",
            help="Number of layers to put on the GPU.",
            metavar="N",
            show_default="all",
        ),
    ] = None
    flash_attn: Annotated[
        bool | None,
        typer.Option(
            "--flash-attn/--no-flash-attn", help="Use flash attention.", show_default="by device"
        ),
    ] = None
    rope_scaling: Annotated[
        str | None,
        typer.Option(
            help="RoPE scaling: none, linear or yarn.",
            metavar="WAY",
            show_default="the model's own",
        ),
    ] = None
    rope_scale: Annotated[
        float | None,
        typer.Option(
            help="Stretch the trained context by this factor.", metavar="N", show_default="1"
        ),
    ] = None

    def given(self, cache: CacheOptions | None = None) -> dict[str, Any]:
        """Settings of `CacheSettings` that the options state."""
        return stated(
            {
                "cache_type_k": cache and cache.cache_type_k,
                "cache_type_v": cache and cache.cache_type_v,
                "n_batch": self.batch,
                "threads": threads_of("threads", self.threads),
                "threads_batch": threads_of("threads-batch", self.threads_batch),
                "flash_attn": self.flash_attn,
                "rope_scaling": self.rope_scaling,
                "rope_scale": self.rope_scale,
            }
        )

    def settings(self, cache: CacheOptions | None = None) -> CacheSettings:
        """The settings that the options ask for."""
        return CacheSettings(**self.given(cache))

    def words(self) -> list[str]:
        """The options as a command line has them, without what is not stated."""
        words: list[str] = []
        for field in fields(self):
            name, value = field.name.replace("_", "-"), getattr(self, field.name)
            if isinstance(value, bool):
                words.append(f"--{name}" if value else f"--no-{name}")
            elif value != field.default:
                words += [f"--{name}", str(value)]
        return words


@dataclass(frozen=True)
class CacheOptions:
    """KV cache."""

    cache_type_k: Annotated[
        str | None,
        typer.Option(
            "--cache-type-k",
            "-ctk",
            help="Type of the cached keys: f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0, iq4_nl.",
            metavar="TYPE",
            show_default="f16",
        ),
    ] = None
    cache_type_v: Annotated[
        str | None,
        typer.Option(
            "--cache-type-v",
            "-ctv",
            help="Type of the cached values, likewise.",
            metavar="TYPE",
            show_default="f16",
        ),
    ] = None


@dataclass(frozen=True)
class LogOptions:
    """Logging."""

    json_events: Annotated[
        Path | None,
        typer.Option(
            help="Write a line of JSON for every eviction, K-shift and the like.", metavar="FILE"
        ),
    ] = None
    verbose: Annotated[
        int,
        typer.Option(
            "--verbose",
            "-v",
            count=True,
            metavar="",
            help="Show the speed at the end; twice: llama.cpp's own log too.",
            show_default=False,
        ),
    ] = 0
