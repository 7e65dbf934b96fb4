"""``streamsink bench``: what streaming costs, and what forgetting costs."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from streamsink.errors import UsageError

if TYPE_CHECKING:
    from streamsink.bench.folder import RunFolder
    from streamsink.bench.plan import Plan
    from streamsink.bench.ppl import Reading

app = typer.Typer(help="Measure a stream: speed, perplexity, recall, memory.")

QUICK_CTX, FULL_CTX = 512, 2048
QUICK_TOKENS, FULL_TOKENS = 2_500, 20_000

ModelName = Annotated[
    str, typer.Argument(metavar="[MODEL]", help="A name of `streamsink models`, or a file.")
]
Out = Annotated[
    Path | None, typer.Option(help="Folder for the run; a new one in streamsink-runs without.")
]
Resume = Annotated[
    Path | None, typer.Option(metavar="RUN", help="Go on with a run that was cut short.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the run as one JSON object.")]
Quick = Annotated[
    bool, typer.Option("--quick/--full", help="A few minutes, or enough to be quoted.")
]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 2, help="Seed of whatever is drawn.")]
Ctx = Annotated[str, typer.Option(help="Contexts, comma-separated.")]
OneCtx = Annotated[int | None, typer.Option("--ctx", help="Context; 512 quick, 2048 full.")]
Text = Annotated[
    list[str] | None, typer.Option(help="File to read, - is stdin; repeatable. Else Moby-Dick.")
]
Errors = Annotated[str, typer.Option(help="Bytes that are not UTF-8: strict or replace.")]
Tokens = Annotated[int | None, typer.Option(help="Tokens of the text at most; 0 reads it all.")]


@app.callback(invoke_without_command=True)
def bench(
    context: typer.Context,
    out: Out = None,
    resume: Resume = None,
    as_json: Json = False,
    quick: Quick = True,
    ctx: OneCtx = None,
    text: Text = None,
    errors: Errors = "strict",
    tokens: Tokens = None,
    seed: Seed = 0,
) -> None:
    """Alone: a bit of everything on the default model, in a few minutes."""
    if context.invoked_subcommand is None:
        everything("", out, resume, as_json, quick, ctx, text, errors, tokens, seed)


@app.command("all")
def everything(
    model: ModelName = "",
    out: Out = None,
    resume: Resume = None,
    as_json: Json = False,
    quick: Quick = True,
    ctx: OneCtx = None,
    text: Text = None,
    errors: Errors = "strict",
    tokens: Tokens = None,
    seed: Seed = 0,
) -> None:
    """Measure speed, perplexity, recall and memory."""
    from streamsink.bench import plan

    reading = _reading(text, errors, tokens, QUICK_TOKENS if quick else FULL_TOKENS)
    size = ctx or (QUICK_CTX if quick else FULL_CTX)
    _measure("all", model, (plan.quick if quick else plan.full)(size, reading), out, resume, seed,
             as_json)  # fmt: skip


@app.command()
def speed(
    model: ModelName = "",
    ctx: Annotated[str | None, typer.Option(help="Contexts; 512 quick, 2048 full.")] = None,
    discard: Annotated[str, typer.Option(help="Evictions: N, half.")] = "1,8,64,half",
    samples: Annotated[int | None, typer.Option(help="Samples of each; 1 quick, 3 full.")] = None,
    out: Out = None,
    resume: Resume = None,
    as_json: Json = False,
    quick: Annotated[bool, typer.Option("--quick/--full", help="Two minutes, or seven.")] = False,
    seed: Seed = 0,
) -> None:
    """Time a stream's evictions against decoding without any, on the same full cache."""
    from streamsink.bench.plan import Plan
    from streamsink.bench.speed import SpeedSettings
    from streamsink.cli.options import discard_of

    settings = SpeedSettings(
        n_ctx=_numbers("ctx", ctx or str(QUICK_CTX if quick else FULL_CTX)),
        n_discard=tuple(discard_of(part) for part in _parts(discard)),
        samples=samples if samples is not None else (1 if quick else 3),
    )
    _measure("speed", model, Plan(speed=settings), out, resume, seed, as_json)


@app.command()
def ppl(
    model: ModelName = "",
    policy: Annotated[
        str, typer.Option(help="dense, window, sink, recompute; comma-separated.")
    ] = "window,sink",
    ctx: Ctx = "512",
    keep: Annotated[str, typer.Option(help="Sinks, comma-separated.")] = "1,2,4,8",
    discard: Annotated[str, typer.Option(help="Evictions, comma-separated: N, half.")] = "1",
    placement: Annotated[str, typer.Option(help="auto, rotate, reanchor.")] = "auto",
    slack: Annotated[str, typer.Option(help="Slacks, comma-separated: N, auto.")] = "auto",
    cache_type: Annotated[str, typer.Option(help="Types of keys and values: f16, q8_0 …")] = "f16",
    every: Annotated[int, typer.Option(help="recompute scores one token in so many.")] = 64,
    singly: Annotated[bool, typer.Option(help="Token by token, as a check.")] = False,
    text: Text = None,
    errors: Errors = "strict",
    tokens: Tokens = None,
    out: Out = None,
    resume: Resume = None,
    as_json: Json = False,
    quick: Quick = True,
    seed: Seed = 0,
) -> None:
    """Score a text of any length under a grid of policies."""
    from streamsink.bench.plan import Plan
    from streamsink.bench.ppl import grid
    from streamsink.cli.options import discard_of

    cells = grid(
        policies=cast(Any, _parts(policy)),
        n_ctx=_numbers("ctx", ctx),
        n_keep=_numbers("keep", keep),
        n_discard=[discard_of(part) for part in _parts(discard)],
        placement=cast(Any, _parts(placement)),
        slack=[None if part == "auto" else _number("slack", part) for part in _parts(slack)],
        cache_types=_parts(cache_type),
        every=every,
        batched=not singly,
    )
    reading = _reading(text, errors, tokens, QUICK_TOKENS if quick else FULL_TOKENS)
    _measure("ppl", model, Plan(cells=tuple(cells), reading=reading), out, resume, seed, as_json)


@app.command()
def recall(
    model: ModelName = "",
    ctx: OneCtx = None,
    keep: Annotated[int, typer.Option(help="Tokens pinned.")] = 4,
    discard: Annotated[str, typer.Option(help="Tokens evicted at once: N, half.")] = "1",
    facts: Annotated[int | None, typer.Option(help="Questions at each distance.")] = None,
    out: Out = None,
    resume: Resume = None,
    as_json: Json = False,
    quick: Quick = True,
    seed: Seed = 0,
) -> None:
    """Ask for facts at growing distances: inside the window, and past its edge."""
    from streamsink.bench.plan import Plan
    from streamsink.bench.recall import RecallSettings
    from streamsink.cli.options import discard_of

    settings = RecallSettings(
        n_ctx=ctx or QUICK_CTX,
        n_keep=keep,
        n_discard=discard_of(discard),
        n_facts=facts if facts is not None else (12 if quick else 40),
    )
    _measure("recall", model, Plan(recall=settings), out, resume, seed, as_json)


@app.command()
def memory(
    model: ModelName = "",
    ctx: OneCtx = None,
    tokens: Annotated[
        int | None, typer.Option(help="Length of the stream; 20 contexts quick, 100000 full.")
    ] = None,
    cache_type: Annotated[str, typer.Option(help="Type of keys and values.")] = "f16",
    out: Out = None,
    resume: Resume = None,
    as_json: Json = False,
    quick: Quick = False,
    seed: Seed = 0,
) -> None:
    """Watch the memory of a long stream."""
    from streamsink.bench.memory import MemorySettings
    from streamsink.bench.plan import Plan

    size = ctx or QUICK_CTX
    n_tokens = tokens if tokens is not None else (20 * size if quick else 100_000)
    settings = MemorySettings(size, n_tokens, cache_type, cache_type)
    _measure("memory", model, Plan(memory=settings), out, resume, seed, as_json)


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
        typer.echo(f"streamsink: {remark}", err=True)
    typer.echo(folder / "report.html")


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="Folder of a run.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Folder of another.")],
    as_json: Json = False,
) -> None:
    """Put two runs side by side; what matters is marked with a star."""
    from streamsink.bench.compare import compare as differences
    from streamsink.bench.folder import RunFolder
    from streamsink.cli import tables

    tables.show_differences(differences(RunFolder(a), RunFolder(b)), as_json)


def _measure(
    kind: str,
    model: str,
    plan: Plan,
    out: Path | None,
    resume: Path | None,
    seed: int,
    as_json: bool,
) -> None:
    """Run a plan, or go on with one; then print it and draw its report."""
    from streamsink.bench import suite
    from streamsink.bench.environment import identity
    from streamsink.bench.folder import RunFolder
    from streamsink.bench.plan import Plan
    from streamsink.bench.report import write_report
    from streamsink.cli import tables
    from streamsink.cli.progress import Bar
    from streamsink.model import Model

    if resume:
        if out:
            raise UsageError("--resume goes on in its own folder: drop --out")
        folder = RunFolder(resume)
        plan = Plan.from_dict(folder.config["plan"])
        seed, model = int(folder.config["seed"]), str(folder.config["model"]["path"])
    with Model.open(model) as opened:
        if resume:
            if identity(opened)["sha256"] != folder.config["model"]["sha256"]:
                raise UsageError(f"--resume {resume}: {opened.path} is not the file it began with")
        else:
            folder = _create(kind, opened, plan, out, seed)
            plan = Plan.from_dict(folder.config["plan"])
        tasks = plan.tasks()
        try:
            with Bar(tasks, folder) as bar:
                suite.run(tasks, opened, folder, seed, bar)
        except KeyboardInterrupt:
            done = sum(folder.has(task) for task in tasks)
            typer.echo(
                f"interrupted: {done} of {len(tasks)} measurements are in {folder.path}; "
                f"go on with `streamsink bench --resume {shlex.quote(str(folder.path))}`",
                err=True,
            )
            raise typer.Exit(130) from None
    remarks = write_report([folder], folder.path)
    if as_json:
        typer.echo(json.dumps({**folder.config, "results": list(folder.records())}, indent=2))
    else:
        tables.show_run(folder)
    for remark in [*remarks, f"the report is {folder.path / 'report.html'}"]:
        typer.echo(f"streamsink: {remark}", err=True)


def _create(kind: str, model: Any, plan: Plan, out: Path | None, seed: int) -> RunFolder:
    from dataclasses import replace

    from streamsink.bench.environment import environment, identity
    from streamsink.bench.folder import RunFolder

    now = datetime.now(timezone.utc)
    path = out or Path("streamsink-runs") / f"{now:%Y-%m-%d-%H%M%S}-{kind}"
    config = {
        "command": shlex.join(["streamsink", *sys.argv[1:]]),
        "started": now.isoformat(timespec="seconds"),
        "environment": environment(),
        "model": {**identity(model), "path": str(model.path.resolve())},
        "seed": seed,
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
        shutil.copyfileobj(sys.stdin.buffer, file)
    return folder


def _reading(text: list[str] | None, errors: str, tokens: int | None, default: int) -> Reading:
    from streamsink.bench.ppl import Reading

    if errors not in ("strict", "replace"):
        raise UsageError(f"--errors {errors} is not one of strict, replace")
    names = [name if name == "-" else str(Path(name).resolve()) for name in text or ()]
    for name in names:
        if name != "-" and not Path(name).is_file():
            raise UsageError(f"--text {name} cannot be read: no such file")
    limit = default if tokens is None else tokens or None
    return Reading(tuple(names), limit, cast(Any, errors))


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _numbers(option: str, text: str) -> tuple[int, ...]:
    return tuple(_number(option, part) for part in _parts(text))


def _number(option: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"--{option} {text} is not possible: a number") from None
