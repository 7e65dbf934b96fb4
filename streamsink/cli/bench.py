"""``streamsink bench``: what streaming costs, and what forgetting costs."""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from typer.core import TyperGroup

from streamsink.cli import terminal
from streamsink.cli.grouped import grouped
from streamsink.cli.measuring import RunOptions, TextOptions, measure, setup
from streamsink.cli.options import CacheOptions, EngineOptions, ModelName
from streamsink.cli.values import discard_of, number
from streamsink.core import policy as policies
from streamsink.core.policy import LARGEST
from streamsink.errors import UsageError

if TYPE_CHECKING:
    pass

QUICK_CTX, FULL_CTX, BUSY_CTX = 512, 2048, 256


class _AllByDefault(TyperGroup):
    """``streamsink bench`` alone, with options or with a model, means ``streamsink bench all``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or args[0] not in ("-h", "--help", *self.commands):
            if args and not args[0].startswith("-"):
                self._check_model(args[0])
            args = ["all", *args]
        return super().parse_args(ctx, args)

    def _check_model(self, word: str) -> None:
        """Refuse a word that is no model, and may be a measurement that was mistyped."""
        from streamsink.registry.catalog import load_registry

        near = get_close_matches(word, self.commands)
        if near and not os.path.exists(word) and word not in load_registry():
            raise UsageError(
                f"{word} is neither a measurement nor a model: did you mean bench "
                f"{' or '.join(near)}? `streamsink models` lists the models"
            )


app = typer.Typer(
    cls=_AllByDefault,
    help="Measure what streaming costs, and what forgetting costs.\n\nAlone, or with a model, it "
    "measures a bit of everything, in a few minutes.",
)


Quick = Annotated[
    bool, typer.Option("--quick/--full", help="Take a few minutes, or enough to be quoted.")
]
OneCtx = Annotated[
    int | None,
    typer.Option(
        "--ctx", "-c", metavar="N", help="Context size.", show_default="512 quick, 2048 full"
    ),
]


@app.command("all")
@grouped
def everything(
    context: typer.Context,
    model: ModelName = "",
    quick: Quick = True,
    ctx: OneCtx = None,
    *,
    text: TextOptions,
    run: RunOptions,
    cache: CacheOptions,
    engine: EngineOptions,
) -> None:
    """Measure speed, perplexity, recall and memory."""
    from streamsink.bench import plan

    size = ctx or (QUICK_CTX if quick else FULL_CTX)
    make = plan.quick if quick else plan.full
    measure(context, model, make(size, text.reading(quick=quick), setup(engine, cache)), run)


def _check_together(given: dict[str, object]) -> None:
    """Refuse options of which each asks for another measurement."""
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise UsageError(f"{' and '.join(named)} do not go together: give one of them")


@app.command()
@grouped
def speed(
    context: typer.Context,
    model: ModelName = "",
    ctx: Annotated[
        str | None,
        typer.Option(
            "--ctx",
            "-c",
            metavar="N[,N]…",
            help="Context sizes.",
            show_default="512 quick, 2048 full",
        ),
    ] = None,
    discard: Annotated[
        str | None,
        typer.Option(
            metavar="N[,N]…", help="Tokens evicted at once: N, half.", show_default="1,8,64,half"
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(metavar="N", help="Samples of each.", show_default="1 quick, 3 full"),
    ] = None,
    streams: Annotated[
        str | None,
        typer.Option(
            metavar="N[,N]…", help="Time so many streams at once instead, each with --ctx: 1,4,8."
        ),
    ] = None,
    busy: Annotated[
        bool, typer.Option("--busy", help="Time threads on auto beside other processes instead.")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick/--full", help="Take two minutes, or seven.")
    ] = False,
    *,
    run: RunOptions,
    cache: CacheOptions,
    engine: EngineOptions,
) -> None:
    """Measure speed: a stream beside plain decoding, on the same full cache."""
    from streamsink.bench.busy import BusySettings
    from streamsink.bench.plan import Plan
    from streamsink.bench.speed import SpeedSettings
    from streamsink.bench.streams import StreamsSettings

    _check_together({"--streams": streams, "--busy": busy or None, "--discard": discard})
    if busy and engine.threads is not None:
        raise UsageError("--busy tries every number of threads: drop --threads")
    n_samples = samples if samples is not None else (1 if quick else 3)
    plan: dict[str, Any]
    if busy:
        plan = {"busy": BusySettings(_numbers("ctx", ctx or str(BUSY_CTX)), n_samples)}
    elif streams is not None:
        contexts = _numbers("ctx", ctx or str(QUICK_CTX))
        plan = {"streams": StreamsSettings(_numbers("streams", streams), contexts, n_samples)}
    else:
        plan = {
            "speed": SpeedSettings(
                _numbers("ctx", ctx or str(QUICK_CTX if quick else FULL_CTX)),
                tuple(_discard_of(part) for part in _parts(discard or "1,8,64,half")),
                n_samples,
            )
        }
    measure(context, model, Plan(setup(engine, cache), **plan), run)


@app.command()
@grouped
def ppl(
    context: typer.Context,
    model: ModelName = "",
    policy: Annotated[
        str, typer.Option(metavar="NAME[,NAME]…", help="dense, window, sink, recompute.")
    ] = "window,sink",
    ctx: Annotated[
        str, typer.Option("--ctx", "-c", metavar="N[,N]…", help="Context sizes.")
    ] = "512",
    keep: Annotated[str, typer.Option(metavar="N[,N]…", help="Tokens pinned.")] = "1,2,4,8",
    discard: Annotated[
        str, typer.Option(metavar="N[,N]…", help="Tokens evicted at once: N, half.")
    ] = "1",
    placement: Annotated[
        str, typer.Option(metavar="WAY[,WAY]…", help="auto, rotate, reanchor.")
    ] = "auto",
    slack: Annotated[str, typer.Option(metavar="N[,N]…", help="Slacks: N, never, auto.")] = "auto",
    cache_type: Annotated[
        str, typer.Option(metavar="TYPE[,TYPE]…", help="Types of keys and values: f16, q8_0 ….")
    ] = "f16",
    every: Annotated[
        int, typer.Option(metavar="N", help="Of recompute, score one token in N.")
    ] = 64,
    singly: Annotated[
        bool, typer.Option("--singly", help="Feed token by token, as a check.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Take placements that are only approximate.")
    ] = False,
    quick: Quick = True,
    *,
    text: TextOptions,
    run: RunOptions,
    engine: EngineOptions,
) -> None:
    """Measure perplexity of a text of any length, under a grid of policies."""
    from streamsink.bench.plan import Plan
    from streamsink.bench.ppl import grid

    cells = grid(
        policies=cast(Any, _parts(policy)),
        n_ctx=_numbers("ctx", ctx),
        n_keep=_numbers("keep", keep),
        n_discard=[_discard_of(part) for part in _parts(discard)],
        placement=cast(Any, _parts(placement)),
        slack=[_slack_of(part) for part in _parts(slack)],
        cache_types=_parts(cache_type),
        every=every,
        batched=not singly,
        force=force,
    )
    reading = text.reading(quick=quick)
    plan = Plan(setup(engine, CacheOptions()), cells=tuple(cells), reading=reading)
    measure(context, model, plan, run)


@app.command()
@grouped
def recall(
    context: typer.Context,
    model: ModelName = "",
    ctx: Annotated[int, typer.Option("--ctx", "-c", metavar="N", help="Context size.")] = QUICK_CTX,
    keep: Annotated[int, typer.Option(metavar="N", help="Tokens pinned.")] = 4,
    discard: Annotated[
        str, typer.Option(metavar="N", help="Tokens evicted at once: N, half.")
    ] = "1",
    facts: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Questions at each distance.", show_default="12 quick, 40 full"
        ),
    ] = None,
    quick: Quick = True,
    *,
    run: RunOptions,
    cache: CacheOptions,
    engine: EngineOptions,
) -> None:
    """Measure recall: facts asked for inside the window, and past its edge."""
    from streamsink.bench.plan import Plan
    from streamsink.bench.recall_settings import RecallSettings

    settings = RecallSettings(
        n_ctx=ctx,
        n_keep=keep,
        n_discard=_discard_of(discard),
        n_facts=facts if facts is not None else (12 if quick else 40),
    )
    measure(context, model, Plan(setup(engine, cache), recall=settings), run)


@app.command()
@grouped
def memory(
    context: typer.Context,
    model: ModelName = "",
    ctx: Annotated[int, typer.Option("--ctx", "-c", metavar="N", help="Context size.")] = QUICK_CTX,
    tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Length of the stream in tokens.",
            show_default="20 contexts quick, 100000 full",
        ),
    ] = None,
    quick: Quick = False,
    *,
    run: RunOptions,
    cache: CacheOptions,
    engine: EngineOptions,
) -> None:
    """Measure memory along a long stream."""
    from streamsink.bench.memory import MemorySettings
    from streamsink.bench.plan import Plan

    n_tokens = tokens if tokens is not None else (20 * ctx if quick else 100_000)
    settings = MemorySettings(ctx, n_tokens)
    measure(context, model, Plan(setup(engine, cache), memory=settings), run)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FOLDER",
            help="Folder for the report.",
            show_default="the first run",
        ),
    ] = None,
) -> None:
    """Draw one report of several runs, and print its path."""
    from streamsink.bench.folder import RunFolder
    from streamsink.bench.report import write_report

    folder = out or runs[0]
    for remark in write_report([RunFolder(path) for path in runs], folder):
        terminal.tell(remark)
    terminal.path(folder / "report.html")


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="Folder of a run.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Folder of another.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare two runs: what differs in their settings, and what that comes to."""
    from streamsink.bench.folder import RunFolder
    from streamsink.cli import runs

    runs.show_comparison(RunFolder(a), RunFolder(b), as_json)


def _slack_of(text: str) -> int | None:
    if text == "auto":
        return None
    return LARGEST if text == "never" else number("slack", text, "a number, 'never' or 'auto'")


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _numbers(option: str, text: str) -> tuple[int, ...]:
    return tuple(number(option, part) for part in _parts(text))


def _discard_of(text: str) -> policies.Discard:
    """What ``--discard`` means where nobody takes turns."""
    discard = discard_of(text)
    if discard in policies.WHOLES:
        raise UsageError(f"--discard {text} is for chats: a number or 'half' can be measured")
    return discard
