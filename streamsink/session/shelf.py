"""Where sessions have names: one folder, and a lock for each."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from streamsink.atomic import DRAFT
from streamsink.errors import SessionError, UsageError
from streamsink.lock import exclusive
from streamsink.registry import models_dir

SUFFIX = ".session"
_NAME = re.compile(r"[\w][\w -]*")


def folder() -> Path:
    """The folder of sessions that were given a name."""
    return models_dir().parent / "sessions"


def locate(name: str) -> Path:
    """The file that a name stands for: a bare name is in `folder`, all else is a path.

    Raises
    ------
    UsageError
        The name is empty.
    """
    if not name:
        raise UsageError("a session needs a name, or a file")
    if _NAME.fullmatch(name):
        return folder() / f"{name}{SUFFIX}"
    return Path(name).expanduser()


def names() -> list[str]:
    """Names of the sessions in `folder`, newest first."""
    files = [file for file in folder().glob(f"*{SUFFIX}") if file.is_file()]
    return [file.stem for file in sorted(files, key=lambda file: -file.stat().st_mtime)]


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Keep a session for this process, so that no two write one over the other.

    Raises
    ------
    SessionError
        Another process holds it, or its folder cannot be written.
    """
    try:
        if path.parent == folder():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        busy = SessionError(f"the session {path} is in use: end the other chat, or take a new name")
        with exclusive(path.with_name(f".{path.name}.lock"), busy):
            for draft in path.parent.glob(f".{_literal(path.name)}.????????{DRAFT}"):
                draft.unlink(missing_ok=True)  # of a process that was killed
            yield
    except OSError as error:
        raise SessionError(
            f"the session {path} cannot be kept there: {error.strerror or error}"
        ) from None


def _literal(name: str) -> str:
    """A name as a pattern of itself alone."""
    return re.sub(r"([*?[])", r"[\1]", name)
