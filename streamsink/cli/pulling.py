"""A model pulled, with a bar."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from streamsink.cli import terminal
from streamsink.system.sizes import file_size

if TYPE_CHECKING:
    from streamsink.registry.entries import Entry


def pull(entry: Entry, *, force: bool = False) -> Path:
    """Bring a model here, and show how far it is; Ctrl-C says what is kept of it.

    Raises
    ------
    FetchError, UsageError
        As for `streamsink.registry.fetch.pull`.
    typer.Exit
        Ctrl-C.
    """
    from streamsink.cli import progress
    from streamsink.registry import fetch
    from streamsink.registry.files import kept_bytes

    bar = progress.Transfer(entry.name)
    try:
        with bar:
            return fetch.pull(entry, bar.goes_on, force=force)
    except KeyboardInterrupt:
        kept = kept_bytes(entry)
        said = f"{file_size(kept)} are kept, pull again to go on" if kept else "nothing is kept"
        terminal.note(f"interrupted: {said}")
        raise typer.Exit(130) from None


def summary(entry: Entry) -> str:
    """What somebody should know before a model is pulled."""
    size = "its size is not known" if entry.size is None else file_size(entry.size)
    licence = f", licence {entry.licence}" if entry.licence else ", licence not stated"
    parameters = f" ({entry.parameters} parameters)" if entry.parameters else ""
    return f"{size}{parameters}{licence}, from {entry.source}"
