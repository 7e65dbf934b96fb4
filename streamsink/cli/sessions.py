"""``streamsink sessions``: list, show, export and remove what ``chat --session`` has saved."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamsink.cli import table as tables
from streamsink.cli import terminal
from streamsink.errors import SessionError, UsageError
from streamsink.system.sizes import file_size

if TYPE_CHECKING:
    from streamsink.session import Session

app = typer.Typer(help="List, show, export and remove saved chats.")

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME|FILE",
        help="A name of `streamsink sessions`, or a file: with a folder (./talk), or ending in "
        ".session.",
    ),
]


@app.callback(invoke_without_command=True)
def sessions(context: typer.Context) -> None:
    """List saved chats; or show, export and remove one."""
    if context.invoked_subcommand is None:
        list_sessions()


@app.command("list")
@app.command("ls", hidden=True)
def list_sessions(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the saved chats that have a name, newest first."""
    from streamsink.session import read, shelf

    records: list[dict[str, Any]] = []
    for path in shelf.files():
        try:
            records.append(_record(path.stem, path, read(path)))
        except (SessionError, OSError) as error:
            if path.exists():  # else it was deleted meanwhile
                records.append({"name": path.stem, "path": str(path), "error": str(error)})
    if as_json:
        terminal.say_json(records)
    elif records or not terminal.is_terminal():
        tables.show(
            ("name", "model", "turns", "tokens", "size", "saved"),
            [_row(record) for record in records],
            header=terminal.is_terminal(),
            **{title: {"justify": "right"} for title in ("turns", "tokens", "size")},
        )
    else:
        terminal.say("no sessions yet: streamsink chat --session NAME")


@app.command()
def show(
    name: Name,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a saved chat is about: model, size, last turn."""
    path, found = _read(name)
    record = _record(name, path, found)
    if as_json:
        terminal.say_json(record)
        return
    for key, value in record.items():
        terminal.say(f"{key:12} {value}")
    for message in found.conversation.messages[-2:] if found.conversation else ():
        terminal.say(f"{message.role:12} {message.text}")


@app.command()
def export(
    name: Name,
    as_json: Annotated[
        bool, typer.Option("--json", help="JSON, with messages as chat APIs have them.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="File to write to.")
    ] = None,
) -> None:
    """Write out a whole chat, what was forgotten included, in Markdown or JSON."""
    from streamsink.session import export as forms
    from streamsink.session import is_archive
    from streamsink.session.shelf import SUFFIX
    from streamsink.system.writing import write_whole

    path, found = _read(name)
    text = forms.plain(found) if as_json else forms.markdown(found, path.name.removesuffix(SUFFIX))
    if out is None:
        terminal.out(text)
        return
    if is_archive(out):
        raise UsageError(f"--out {out} is a session, or another archive: give another file")
    try:
        write_whole(out, text)
    except OSError as error:
        raise UsageError(f"--out {out} cannot be written: {error.strerror or error}") from None


@app.command("rm")
@app.command("delete", hidden=True)
def remove(
    name: Name, yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False
) -> None:
    """Remove a saved chat for good."""
    from streamsink.session import read, shelf

    path = shelf.locate(name)
    if not os.path.isfile(path):
        raise SessionError(f"there is no session {path}")
    kept = shelf.take(path)
    try:
        if path.parent != shelf.folder():
            read(path)  # what is no session is not deleted
        if not yes:
            terminal.confirm(f"Remove {path}?")
        for file in dict.fromkeys((kept.path, path)):  # a link goes too
            file.unlink(missing_ok=True)
    except OSError as error:
        raise SessionError(f"{path} cannot be deleted: {error.strerror or error}") from None
    finally:
        kept.release()


def _read(name: str) -> tuple[Path, Session]:
    from streamsink.session import read, shelf

    path = shelf.locate(name)
    return path, read(path)


def _record(name: str, path: Path, session: Session) -> dict[str, Any]:
    from streamsink.session import export as forms

    stream = session.stream
    return {
        "name": name,
        "model": session.kind.path,
        "turns": session.conversation.n_turns if session.conversation else 0,
        "tokens": stream.n_tokens + len(stream.pending),
        "visible": stream.n_live,
        "forgotten": stream.counters.evicted,
        "n_ctx": stream.n_ctx,
        "saved": forms.saved(session),
        "bytes": path.stat().st_size,
        "path": str(path),
    }


def _row(record: dict[str, Any]) -> list[str]:
    if "error" in record:
        return [record["name"], "", "", "", "", record["error"]]
    return [
        record["name"],
        Path(record["model"]).name,
        str(record["turns"]),
        f"{record['tokens']:,}",
        file_size(record["bytes"]),
        record["saved"],
    ]
