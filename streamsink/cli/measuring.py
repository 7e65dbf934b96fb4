"""A benchmark's run from the command line: begun or gone on with, printed, drawn."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, cast

import typer

from streamsink.cli import terminal
from streamsink.cli.options import CacheOptions, EngineOptions
from streamsink.errors import UsageError
from streamsink.gguf.advice import warnings
from streamsink.system.reading import stdin

if TYPE_CHECKING:
    from streamsink.bench.folder import RunFolder
    from streamsink.bench.plan import Plan
    from streamsink.bench.ppl import Reading
    from streamsink.bench.task import Setup

QUICK_TOKENS, FULL_TOKENS = 2_500, 20_000


@dataclass(frozen=True)
class RunOptions:
    """Run."""

    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FOLDER",
            help="Folder for the run.",
            show_default="a new one in streamsink-runs",
        ),
    ] = None
    resume: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Go on with a run that was cut short.")
    ] = None
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False
    seed: Annotated[
        int,
        typer.Option(
            "--seed", metavar="N", min=0, max=2**32 - 2, help="Seed of whatever is drawn."
        ),
    ] = 0


@dataclass(frozen=True)
class TextOptions:
    """Text."""

    text: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="File to read; - is stdin; may be given several times.",
            show_default="Moby-Dick",
        ),
    ] = None
    errors: Annotated[
        str, typer.Option(metavar="HOW", help="Bytes that are not UTF-8: strict or replace.")
    ] = "strict"
    tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Maximum number of tokens; 0: all.",
            show_default=f"{QUICK_TOKENS} quick, {FULL_TOKENS} full",
        ),
    ] = None

    def reading(self, *, quick: bool) -> Reading:
        """The text that the options ask for."""
        from streamsink.bench.ppl import Reading

        if self.errors not in ("strict", "replace"):
            raise UsageError(f"--errors {self.errors} is not one of strict, replace")
        if "-" in (self.text or ()):
            stdin("--text -")
        for name in self.text or ():
            if name != "-" and (not os.path.exists(name) or os.path.isdir(name)):
                raise UsageError(f"--text {name} cannot be read: no such file")
        # A pipe's name is resolved to one that nobody can open.
        names = [os.path.realpath(one) if os.path.isfile(one) else one for one in self.text or ()]
        usual = QUICK_TOKENS if quick else FULL_TOKENS
        limit = usual if self.tokens is None else self.tokens or None
        return Reading(tuple(names), limit, cast(Any, self.errors))


def setup(engine: EngineOptions, cache: CacheOptions) -> Setup:
    """The model's settings that the options ask for."""
    from streamsink.bench.task import Setup

    return Setup(engine.gpu_layers, engine.settings(cache))


def measure(context: typer.Context, model: str, plan: Plan, options: RunOptions) -> None:
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
        terminal.warn(warnings(opened.traits, plan.setup.cache))
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
    from streamsink.bench.environment import environment, identity
    from streamsink.bench.folder import RunFolder

    now = datetime.now(timezone.utc)
    path = options.out or Path("streamsink-runs") / f"{now:%Y-%m-%d-%H%M%S}-{kind}"
    from streamsink.registry.catalog import DEFAULT_MODEL

    name = str(Path(asked).resolve()) if os.path.isfile(asked) else asked or DEFAULT_MODEL
    config = {
        "command": shlex.join(["streamsink", *sys.argv[1:]]),
        "started": now.isoformat(timespec="seconds"),
        "environment": environment(),
        "model": {"asked": name, **identity(model)},
        "seed": options.seed,
    }
    # What is no file can be read but once: it is kept, for every policy and for going on.
    once = [name for name in plan.reading.names if not os.path.isfile(name)]
    kept = {name: path / "arrays" / f"text-{at}.txt" for at, name in enumerate(once)}
    names = tuple(str(kept[one].resolve()) if one in kept else one for one in plan.reading.names)
    plan = replace(plan, reading=replace(plan.reading, names=names))
    sources = {name: _source(name) for name in once}
    folder = RunFolder.create(path, {**config, "plan": plan.as_dict()})
    for name, source in sources.items():
        with source, kept[name].open("wb") as file:
            shutil.copyfileobj(source, file)
    return folder


def _source(name: str) -> BinaryIO:
    """Standard input, a pipe or a device, to be read."""
    if name == "-":
        return stdin("--text -")
    try:
        return open(name, "rb")
    except OSError as error:
        raise UsageError(f"--text {name} cannot be read: {error.strerror}") from None
