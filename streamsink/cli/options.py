"""Options that several commands share, and what they become."""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from streamsink.core import policy as policies
from streamsink.core.policy import SinkPolicy
from streamsink.core.sampling import Sampling
from streamsink.errors import UsageError
from streamsink.gguf.settings import CacheSettings, Threads
from streamsink.system.reading import given, read_whole

if TYPE_CHECKING:
    from streamsink.registry.entries import Entry

N_CTX = 2048
"""Tokens of context where nobody says how many."""


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
    """What a stream keeps and what it forgets."""

    ctx: Annotated[
        int | None,
        typer.Option(
            "--ctx",
            "-c",
            help="Tokens a token can attend to. Without, what the model's entry says; else 2048, "
            "or less where the model was trained on less.",
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
    placement: Annotated[
        str | None, typer.Option(help="auto, rotate or reanchor.", show_default="auto")
    ] = None
    slack: Annotated[
        int | None, typer.Option(help="Positions the sink may trail; 0 is the paper's.")
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
        asked = _given(
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
        for values in _given({"n_keep": keep}), _given({"n_discard": discard}):
            changed = replace(policy, **values)
            with contextlib.suppress(UsageError):
                changed.check(self.ctx if self.ctx is not None else usual_ctx(entry))
                policy = changed
        return policy


@dataclass(frozen=True)
class EngineOptions:
    """How llama.cpp computes."""

    threads: Annotated[
        str | None,
        typer.Option(
            "--threads",
            "-t",
            help="CPU threads: N, or auto, the cores that nobody else uses.",
            show_default="auto",
        ),
    ] = None
    threads_batch: Annotated[
        str | None, typer.Option(help="CPU threads for batches: N or auto; as --threads without.")
    ] = None
    batch: Annotated[int, typer.Option(help="Most tokens in one decode.")] = 512
    gpu_layers: Annotated[
        int | None,
        typer.Option("--gpu-layers", "-ngl", help="Layers on the GPU; all of them without."),
    ] = None
    flash_attn: Annotated[
        bool | None,
        typer.Option("--flash-attn/--no-flash-attn", help="Chosen by device without."),
    ] = None
    rope_scaling: Annotated[
        str | None, typer.Option(help="none, linear or yarn; the model's own way without.")
    ] = None
    rope_scale: Annotated[
        float | None,
        typer.Option(help="Stretches the trained context by this factor.", show_default="1"),
    ] = None

    def given(self, cache: CacheOptions | None = None) -> dict[str, Any]:
        """Settings of `CacheSettings` that the options state."""
        return _given(
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
    """Types of the cache."""

    cache_type_k: Annotated[
        str | None, typer.Option(help="Keys: f16, q8_0, q4_0 …", show_default="f16")
    ] = None
    cache_type_v: Annotated[
        str | None, typer.Option(help="Values: f16, q8_0, q4_0 …", show_default="f16")
    ] = None


@dataclass(frozen=True)
class SamplingOptions:
    """How tokens are chosen."""

    temp: Annotated[
        float | None,
        typer.Option(help="Temperature; 0 takes the likeliest token.", show_default="0.8"),
    ] = None
    top_k: Annotated[
        int | None,
        typer.Option(help="Keep the k likeliest tokens; 0 keeps all.", show_default="40"),
    ] = None
    top_p: Annotated[
        float | None,
        typer.Option(help="Keep the likeliest tokens of this share.", show_default="0.95"),
    ] = None
    min_p: Annotated[
        float | None,
        typer.Option(help="Drop tokens below this share of the best.", show_default="0.05"),
    ] = None
    repeat_penalty: Annotated[
        float | None,
        typer.Option(help="Divides logits of recent tokens; 1 is off.", show_default="1"),
    ] = None
    repeat_last_n: Annotated[
        int | None, typer.Option(help="How many are recent.", show_default="64")
    ] = None
    frequency_penalty: Annotated[
        float | None,
        typer.Option(help="Taken off for each recent use; 0 is off.", show_default="0"),
    ] = None
    presence_penalty: Annotated[
        float | None,
        typer.Option(help="Taken off for any recent use; 0 is off.", show_default="0"),
    ] = None
    seed: Annotated[int | None, typer.Option(help="Seed of the draw; random without.")] = None
    grammar: Annotated[Path | None, typer.Option(help="File with a GBNF grammar to follow.")] = None
    json_schema: Annotated[
        str | None,
        typer.Option(
            "--json-schema",
            "-j",
            metavar="JSON|FILE",
            help="JSON schema to follow, or a file with one; {} lets any JSON follow.",
        ),
    ] = None

    def sampling(self, before: Sampling | None = None) -> Sampling:
        """The sampler settings that the options ask for, or else those of before."""
        asked = asdict(self)
        asked["temperature"] = asked.pop("temp")
        asked["grammar"] = read_whole(self.grammar, "grammar") if self.grammar else None
        asked["json_schema"] = self.json_schema and schema_of(self.json_schema)
        if before and (asked["grammar"] or asked["json_schema"]):
            before = replace(before, grammar=None, json_schema=None)
        return replace(before or Sampling(), **_given(asked))


@dataclass(frozen=True)
class LogOptions:
    """What is told beside the text."""

    json_events: Annotated[
        Path | None, typer.Option(help="Write a JSON line per eviction and the like.")
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


def usual_ctx(entry: Entry | None) -> int:
    """Tokens of context where none are asked for."""
    return entry.n_ctx if entry and entry.n_ctx else N_CTX


def keep_of(text: str) -> policies.Keep:
    """What ``--keep`` means."""
    return "system" if text == "system" else number("keep", text, "a number, -1 or 'system'")


def schema_of(text: str) -> str:
    """What ``--json-schema`` means: a schema, or a file with one."""
    text = given(text, "--json-schema")
    return text if text.lstrip().startswith("{") else read_whole(Path(text), "json-schema")


def discard_of(text: str) -> policies.Discard:
    """What ``--discard`` means."""
    if text in ("half", "turn", "sentence"):
        return cast(policies.Discard, text)
    return number("discard", text, "a number, 'half', 'turn' or 'sentence'")


def threads_of(option: str, text: str | None) -> Threads:
    """What ``--threads`` and ``--threads-batch`` mean."""
    if text is None or text == "auto":
        return cast(Threads, text)
    return number(option, text, "a number or 'auto'")


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


def _given(values: dict[str, Any]) -> dict[str, Any]:
    """Those that are stated."""
    return {name: value for name, value in values.items() if value is not None}
