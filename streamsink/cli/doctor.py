"""``streamsink doctor``: what a model allows and needs, and what this installation can do."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamsink.cli import terminal
from streamsink.cli.grouped import grouped
from streamsink.cli.options import EngineOptions, ModelName
from streamsink.cli.table import show
from streamsink.cli.terms import in_options
from streamsink.core.placement import choose
from streamsink.errors import UsageError
from streamsink.gguf.advice import warnings
from streamsink.system.memory import available_bytes
from streamsink.system.sizes import gib

if TYPE_CHECKING:
    from streamsink.chat.template_report import Report
    from streamsink.core.capabilities import Capabilities
    from streamsink.gguf.inspection import Inspection, Need
    from streamsink.gguf.recommendation import Recommendation

PROMPT = "Once upon a time"
"""Of a recommended command that goes on from a text."""


@grouped
def doctor(
    model: ModelName = "",
    ctx: Annotated[
        str,
        typer.Option(
            "--ctx",
            "-c",
            metavar="N[,N]…",
            help="Context sizes to find the memory of.",
            show_default="the usual",
        ),
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    *,
    engine: EngineOptions,
) -> None:
    """Check what a model allows and needs; alone, what is installed here.

    The weights are not loaded.

    A model that cannot stream is told so, and the exit code is 1.
    """
    if not model:
        from streamsink.cli.installation import show_installation

        show_installation(as_json)
        return
    contexts = _contexts(ctx) if ctx else []
    settings = engine.settings()
    from streamsink.registry.files import resolve
    from streamsink.system.child import INSPECTOR, Child

    path = Path(resolve(model))
    # Begun before NumPy and the rest are imported here: both take a quarter of a second.
    with Child(INSPECTOR, gpu=True) as process:
        from streamsink.gguf.inspection import inspect

        found = inspect(path, settings, contexts, engine.gpu_layers, process)
    from streamsink.chat.template_report import report

    free = available_bytes() if found.gpu_bytes is None else found.gpu_bytes
    talks = report(found.traits.chat_template, found.special_texts)
    command, advice = recommended(model, engine, found, free, talks, contexts)
    if as_json:
        terminal.say_json(_record(found, free, talks, advice, command))
    else:
        _show_model(found, free, talks)
        terminal.say()
        terminal.warn(advice, terminal.say)
        if command:
            terminal.say(f"recommended: {command}")
    if command is None:
        raise typer.Exit(1)


def _contexts(text: str) -> list[int]:
    numbers = (part.strip() for part in text.split(","))
    contexts = [int(part) if part.isdecimal() and len(part) < 10 else 0 for part in numbers]
    if not all(16 <= n_ctx <= 2**24 for n_ctx in contexts):
        raise UsageError(f"--ctx {text} is not possible: numbers from 16 on, comma-separated")
    return sorted({*contexts})


# -- a model --------------------------------------------------------------------------------------


def _show_model(found: Inspection, free: int, talks: Report) -> None:
    from streamsink.gguf.recommendation import fits

    show(("model", found.path.name), [[name, text] for name, text in _traits(found, talks)])
    terminal.say()
    able = _able(found)
    if able.no_stream:
        rows = [["no stream", able.no_stream]]
    else:
        verdicts = (("rotate", able.rotate), ("reanchor", able.reanchor))
        rows = [
            [name, verdict.level + (f": {verdict.why}" if verdict.why else "")]
            for name, verdict in verdicts
        ]
    show(("placement", "verdict"), rows)
    if found.needs and not able.no_stream:
        terminal.say()
        show(
            ("n_ctx", "KV type", "cache", "scratch", "with weights", f"of {gib(free)} free"),
            [
                [
                    f"{need.n_ctx:,}",
                    need.cache_type,
                    gib(need.cache_bytes),
                    gib(need.scratch_bytes),
                    gib(_total(found, need)),
                    "fits" if fits(found, need, free) else "too much",
                ]
                for need in found.needs
            ],
        )


def _traits(found: Inspection, talks: Report) -> list[tuple[str, str]]:
    """Names and texts of what a model is like, without what it has not."""
    t = found.traits
    rope = t.rope if t.scaling == "none" else f"{t.rope}, {t.scaling}"
    if t.scale != 1:
        rope += f" x {t.scale:g}"
    kind = {
        "recurrent": t.recurrent,
        "hybrid": t.hybrid,
        "encoder": t.encoder,
        "MLA": t.mla,
        "learned sinks": t.sinks,
        "diffusion": t.diffusion,
        "sees later tokens": not t.causal,
    }
    from streamsink.gguf.settings import USUAL

    gain = t.shift_gain(USUAL)
    kv = {name: found.kv_bytes(name) for name in dict.fromkeys(n.cache_type for n in found.needs)}
    rows = {
        "architecture": f"{t.architecture} ({t.description})",
        "weights": gib(found.weight_bytes),
        "trained context": f"{t.n_ctx_train:,}"
        + (f", {t.n_ctx_unscaled:,} before scaling" if t.n_ctx_unscaled != t.n_ctx_train else ""),
        "positions": t.positions + (f" ({rope})" if t.positions == "rope" else ""),
        "gain of a K-shift": "" if abs(gain - 1) < 1e-6 else f"{gain:.4g}",
        "layers": str(t.n_layer),
        "sliding window": t.n_swa and f"{t.n_swa:,} in layers {_ranges(t.swa_layers)}",
        "kind": ", ".join(name for name, is_so in kind.items() if is_so),
        "heads": f"{t.n_head}, keys and values {_few(t.n_head_kv)}, of {t.n_key} dimensions",
        "KV bytes a token": ", ".join(f"{name} {size:,.0f}" for name, size in kv.items() if size),
        "vocabulary": f"{t.n_vocab:,}, BOS {_token(t.bos)}, EOS {_token(t.eos)}",
        "chat template": _template(t.chat_template, talks),
    }
    return [(name, str(text)) for name, text in rows.items() if text]


def _template(source: str, talks: Report) -> str:
    if not source:
        return "none"
    return ", ".join((f"{len(source):,} characters", *talks.has))


def _few(numbers: tuple[int, ...]) -> str:
    return "/".join(map(str, dict.fromkeys(numbers))) or "0"


def _token(token: int | None) -> str:
    return "none" if token is None else str(token)


def _ranges(layers: tuple[int, ...]) -> str:
    """Numbers with runs drawn together: 0-4, 6-10."""
    parts: list[list[int]] = []
    for layer in layers:
        if parts and layer == parts[-1][-1] + 1:
            parts[-1][1:] = [layer]
        else:
            parts.append([layer])
    return ", ".join("-".join(map(str, part)) for part in parts)


def _total(found: Inspection, need: Need) -> int:
    return found.weight_bytes + need.cache_bytes + need.scratch_bytes


def _able(found: Inspection) -> Capabilities:
    """What a stream may do, sliding windows kept whole where it rotates."""
    return found.able(found.settings, swa_full=True)


def recommended(
    model: str,
    engine: EngineOptions,
    found: Inspection,
    free: int,
    talks: Report,
    contexts: Sequence[int] = (),
) -> tuple[str | None, list[str]]:
    """The command line to begin with, if there is one, and what somebody should know before.

    Parameters
    ----------
    model, engine, contexts
        What was asked for.
    found : Inspection
        The model.
    free : int
        Bytes that are free where its layers go.
    talks : Report
        What its chat template can do.
    """
    from streamsink.gguf.recommendation import recommend

    best = recommend(found, free)
    advice = _advice(found, best, contexts)
    if isinstance(best, str):
        return None, advice
    return _command(model, engine, best, chat=talks.usable), [*advice, *talks.lacks]


def _advice(found: Inspection, best: Recommendation | str, contexts: Sequence[int]) -> list[str]:
    """What is odd about the model, about what was asked for, or about what is recommended."""
    if isinstance(best, str):
        n_ctx = max(contexts, default=None)
        none = f"nothing can be recommended: {best}"
        return [*warnings(found.traits, found.settings, n_ctx=n_ctx), none]
    n_ctx = max(contexts, default=best.n_ctx)
    able = found.able(best.settings, swa_full=best.policy.placement == "rotate")
    slack = choose(best.policy, able, 0, n_ctx).slack
    return warnings(found.traits, found.settings, best.policy, n_ctx, slack=slack)


def _command(model: str, engine: EngineOptions, best: Recommendation, *, chat: bool) -> str:
    """The command line to begin with, under the options that were given."""
    name = f"./{model}" if model.startswith("-") else model  # or it is taken for an option
    options = [*engine.words(), "--ctx", str(best.n_ctx)]
    if best.settings.cache_type_k != "f16":
        options += ["--cache-type-k", best.settings.cache_type_k]
        options += ["--cache-type-v", best.settings.cache_type_v]
    if best.policy.placement != "auto":
        options += ["--placement", best.policy.placement]
    if chat:
        return shlex.join(["streamsink", "chat", name, *options])
    return shlex.join(["streamsink", "generate", name, *options, "-p", PROMPT])


def _record(
    found: Inspection, free: int, talks: Report, advice: list[str], command: str | None
) -> dict[str, Any]:
    able = _able(found)
    return {
        "path": str(found.path),
        "weight_bytes": found.weight_bytes,
        "free_bytes": free,
        "traits": asdict(found.traits),
        "no_stream": able.no_stream or None,
        "placements": {
            "rotate": able.rotate._asdict(),
            "reanchor": able.reanchor._asdict(),
        },
        "needs": [asdict(need) for need in found.needs],
        "chat_template": {"usable": talks.usable, "has": talks.has},
        "warnings": [in_options(line) for line in advice],
        "recommended": command,
    }
