"""``streamsink bench``: what streaming costs, and what forgetting costs."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from typer.core import TyperGroup

from streamsink.cli import terminal
from streamsink.cli.grouped import grouped
from streamsink.cli.opening import warn
from streamsink.cli.options import (
    CacheOptions,
    EngineOptions,
    ModelName,
    discard_of,
    number,
)
from streamsink.core import policy as policies
from streamsink.core.policy import LARGEST
from streamsink.errors import UsageError
from streamsink.gguf.advice import warnings
from streamsink.registry.catalog import DEFAULT_MODEL
from streamsink.system.reading import stdin

if TYPE_CHECKING:
    from streamsink.bench.folder import RunFolder
    from streamsink.bench.plan import Plan
    from streamsink.bench.ppl import Reading
    from streamsink.bench.task import Setup

QUICK_CTX, FULL_CTX = 512, 2048
QUICK_TOKENS, FULL_TOKENS = 2_500, 20_000


class _AllByDefault(TyperGroup):
    """``streamsink bench`` alone, or with options, means ``streamsink bench all``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in ("-h", "--help")):
            args = ["all", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_AllByDefault,
    help="Measure a stream: speed, perplexity, recall, memory. Alone, a bit of everything on the "
    "default model, in a few minutes.",
)


@dataclass(frozen=True)
class RunOptions:
    """A run and its folder."""

    out: Annotated[
        Path | None, typer.Option(help="Folder for the run; a new one in streamsink-runs without.")
    ] = None
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on with a run that was cut short.")
    ] = None
    json: Annotated[bool, typer.Option("--json", help="Print the run as one JSON object.")] = False
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 2, help="Seed of whatever is drawn.")] = 0


@dataclass(frozen=True)
class TextOptions:
    """What is read."""

    text: Annotated[
        list[str] | None,
        typer.Option(help="File to read, - is stdin; repeatable. Else Moby-Dick."),
    ] = None
    errors: Annotated[str, typer.Option(help="Bytes that are not UTF-8: strict or replace.")] = (
        "strict"
    )
    tokens: Annotated[
        int | None,
        typer.Option(
            help=f"Tokens at most, 0 reads all; {QUICK_TOKENS} quick, {FULL_TOKENS} full."
        ),
    ] = None

    def reading(self, *, quick: bool) -> Reading:
        """The text that the options ask for."""
        from streamsink.bench.ppl import Reading

        if self.errors not in ("strict", "replace"):
            raise UsageError(f"--errors {self.errors} is not one of strict, replace")
        names = [name if name == "-" else str(Path(name).resolve()) for name in self.text or ()]
        if "-" in names:
            stdin("--text -")
        for name in names:
            if name != "-" and not os.path.isfile(name):
                raise UsageError(f"--text {name} cannot be read: no such file")
        usual = QUICK_TOKENS if quick else FULL_TOKENS
        limit = usual if self.tokens is None else self.tokens or None
        return Reading(tuple(names), limit, cast(Any, self.errors))


Quick = Annotated[
    bool, typer.Option("--quick/--full", help="A few minutes, or enough to be quoted.")
]
OneCtx = Annotated[int | None, typer.Option("--ctx", help="Context; 512 quick, 2048 full.")]


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
    _measure(context, model, make(size, text.reading(quick=quick), _setup(engine, cache)), run)


@app.command()
@grouped
def speed(
    context: typer.Context,
    model: ModelName = "",
    ctx: Annotated[str | None, typer.Option(help="Contexts; 512 quick, 2048 full.")] = None,
    discard: Annotated[str, typer.Option(help="Evictions: N, half.")] = "1,8,64,half",
    samples: Annotated[int | None, typer.Option(help="Samples of each; 1 quick, 3 full.")] = None,
    quick: Annotated[bool, typer.Option("--quick/--full", help="Two minutes, or seven.")] = False,
    *,
    run: RunOptions,
    cache: CacheOptions,
    engine: EngineOptions,
) -> None:
    """Time a stream's evictions against decoding without any, on the same full cache."""
    from streamsink.bench.plan import Plan
    from streamsink.bench.speed import SpeedSettings

    settings = SpeedSettings(
        n_ctx=_numbers("ctx", ctx or str(QUICK_CTX if quick else FULL_CTX)),
        n_discard=tuple(_discard_of(part) for part in _parts(discard)),
        samples=samples if samples is not None else (1 if quick else 3),
    )
    _measure(context, model, Plan(_setup(engine, cache), speed=settings), run)


@app.command()
@grouped
def ppl(
    context: typer.Context,
    model: ModelName = "",
    policy: Annotated[
        str, typer.Option(help="dense, window, sink, recompute; comma-separated.")
    ] = "window,sink",
    ctx: Annotated[str, typer.Option(help="Contexts, comma-separated.")] = "512",
    keep: Annotated[str, typer.Option(help="Sinks, comma-separated.")] = "1,2,4,8",
    discard: Annotated[str, typer.Option(help="Evictions, comma-separated: N, half.")] = "1",
    placement: Annotated[str, typer.Option(help="auto, rotate, reanchor.")] = "auto",
    slack: Annotated[str, typer.Option(help="Slacks, comma-separated: N, never, auto.")] = "auto",
    cache_type: Annotated[str, typer.Option(help="Types of keys and values: f16, q8_0 …")] = "f16",
    every: Annotated[int, typer.Option(help="recompute scores one token in so many.")] = 64,
    singly: Annotated[bool, typer.Option("--singly", help="Token by token, as a check.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Take placements that are only approximate.")
    ] = False,
    quick: Quick = True,
    *,
    text: TextOptions,
    run: RunOptions,
    engine: EngineOptions,
) -> None:
    """Score a text of any length under a grid of policies."""
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
    plan = Plan(_setup(engine, CacheOptions()), cells=tuple(cells), reading=reading)
    _measure(context, model, plan, run)


@app.command()
@grouped
def recall(
    context: typer.Context,
    model: ModelName = "",
    ctx: Annotated[int, typer.Option(help="Context.")] = QUICK_CTX,
    keep: Annotated[int, typer.Option(help="Tokens pinned.")] = 4,
    discard: Annotated[str, typer.Option(help="Tokens evicted at once: N, half.")] = "1",
    facts: Annotated[
        int | None, typer.Option(help="Questions at each distance; 12 quick, 40 full.")
    ] = None,
    quick: Quick = True,
    *,
    run: RunOptions,
    cache: CacheOptions,
    engine: EngineOptions,
) -> None:
    """Ask for facts at growing distances: inside the window, and past its edge."""
    from streamsink.bench.plan import Plan
    from streamsink.bench.recall import RecallSettings

    settings = RecallSettings(
        n_ctx=ctx,
        n_keep=keep,
        n_discard=_discard_of(discard),
        n_facts=facts if facts is not None else (12 if quick else 40),
    )
    _measure(context, model, Plan(_setup(engine, cache), recall=settings), run)


@app.command()
@grouped
def memory(
    context: typer.Context,
    model: ModelName = "",
    ctx: Annotated[int, typer.Option(help="Context.")] = QUICK_CTX,
    tokens: Annotated[
        int | None, typer.Option(help="Length of the stream; 20 contexts quick, 100000 full.")
    ] = None,
    quick: Quick = False,
    *,
    run: RunOptions,
    cache: CacheOptions,
    engine: EngineOptions,
) -> None:
    """Watch the memory of a long stream."""
    from streamsink.bench.memory import MemorySettings
    from streamsink.bench.plan import Plan

    n_tokens = tokens if tokens is not None else (20 * ctx if quick else 100_000)
    settings = MemorySettings(ctx, n_tokens)
    _measure(context, model, Plan(_setup(engine, cache), memory=settings), run)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the report; the first run's without.")
    ] = None,
) -> None:
    """Draw one report from several runs, and print the path of the page."""
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
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """Put two runs side by side; what matters is marked with a star."""
    from streamsink.bench.compare import compare as differences
    from streamsink.bench.folder import RunFolder
    from streamsink.cli import runs

    runs.show_differences(differences(RunFolder(a), RunFolder(b)), as_json)


def _setup(engine: EngineOptions, cache: CacheOptions) -> Setup:
    from streamsink.bench.task import Setup

    return Setup(engine.gpu_layers, engine.settings(cache))


def _measure(context: typer.Context, model: str, plan: Plan, options: RunOptions) -> None:
    """Run a plan, or go on with one; then print it and draw its report."""
    from streamsink.bench import suite
    from streamsink.bench.environment import identity
    from streamsink.bench.folder import RunFolder
    from streamsink.bench.plan import Plan
    from streamsink.bench.report import write_report
    from streamsink.cli import runs
    from streamsink.cli.progress import Bar
    from streamsink.model import Model

    resume, seed = options.resume, options.seed
    if resume:
        _check_alone(context)
        folder = RunFolder(resume)
        plan = Plan.from_dict(folder.config["plan"])
        seed, model = int(folder.config["seed"]), str(folder.config["model"]["asked"])
    with Model.open(model, plan.setup.n_gpu_layers) as opened:
        if resume:
            if identity(opened)["sha256"] != folder.config["model"]["sha256"]:
                raise UsageError(f"--resume {resume}: {opened.path} is not the file it began with")
        else:
            folder = _create(str(context.info_name), model, opened, plan, options)
            plan = Plan.from_dict(folder.config["plan"])
        warn(warnings(opened.traits, plan.setup.cache))
        tasks = plan.tasks()
        try:
            with Bar(tasks, folder) as bar:
                suite.run(tasks, opened, folder, seed, bar, plan.setup.cache)
        except KeyboardInterrupt:
            done = sum(folder.has(task) for task in tasks)
            terminal.note(
                f"interrupted: {done} of {len(tasks)} measurements are in {folder.path}; "
                f"go on with `streamsink bench --resume {shlex.quote(str(folder.path))}`"
            )
            raise typer.Exit(130) from None
    remarks = write_report([folder], folder.path)
    if options.json:
        terminal.say_json({**folder.config, "results": list(folder.records())})
    else:
        runs.show_run(folder)
    for remark in [*remarks, f"the report is {folder.path / 'report.html'}"]:
        terminal.tell(remark)


def _check_alone(context: typer.Context) -> None:
    """A run that goes on does so under its own settings."""
    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        if parameter.name in ("resume", "json") or not source or source.name != "COMMANDLINE":
            continue
        raise UsageError(f"--resume goes on with the run's own settings: drop {parameter.opts[0]}")


def _create(kind: str, asked: str, model: Any, plan: Plan, options: RunOptions) -> RunFolder:
    from dataclasses import replace

    from streamsink.bench.environment import environment, identity
    from streamsink.bench.folder import RunFolder

    now = datetime.now(timezone.utc)
    path = options.out or Path("streamsink-runs") / f"{now:%Y-%m-%d-%H%M%S}-{kind}"
    name = str(Path(asked).resolve()) if os.path.isfile(asked) else asked or DEFAULT_MODEL
    config = {
        "command": shlex.join(["streamsink", *sys.argv[1:]]),
        "started": now.isoformat(timespec="seconds"),
        "environment": environment(),
        "model": {"asked": name, **identity(model)},
        "seed": options.seed,
    }
    names = plan.reading.names
    if "-" not in names:
        return RunFolder.create(path, {**config, "plan": plan.as_dict()})
    # Standard input can be read but once: it is kept, for every policy and for going on.
    kept = path / "arrays" / "stdin.txt"
    names = tuple(str(kept.resolve()) if name == "-" else name for name in names)
    plan = replace(plan, reading=replace(plan.reading, names=names))
    folder = RunFolder.create(path, {**config, "plan": plan.as_dict()})
    with kept.open("wb") as file:
        shutil.copyfileobj(stdin("--text -"), file)
    return folder


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
