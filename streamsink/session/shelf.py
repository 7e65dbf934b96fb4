"""Sessions by name, in one folder, each with a lock that keeps other processes from writing it."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import unicodedata
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from streamsink.errors import SessionError, UsageError
from streamsink.session.file import OWNER_ONLY, is_archive
from streamsink.system.atomic import clear_away
from streamsink.system.folders import data_dir
from streamsink.system.lock import Lock
from streamsink.system.regular import Stamp, open_regular, require_replaceable

SUFFIX = ".session"
LONGEST = 200
"""Bytes of a name. File systems allow 255, of which the names of drafts and locks take some."""

_RESERVED = re.compile(
    r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])(\..*)?", re.IGNORECASE
)
_NUMBERED = re.compile(r"(.+)-\d+")
# Once only these were names, and anything else was a file in the current folder.
_ONCE_A_NAME = re.compile(r"[\w][\w -]*")


class _InUse(SessionError):
    """Another process holds the session."""


@dataclass(frozen=True)
class Kept:
    """A session file that no other process writes until `release`. Made by `take`.

    Attributes
    ----------
    path : Path
        The file itself, links followed.
    found : Stamp or None
        What was there when it was taken.
    """

    path: Path
    found: Stamp | None
    _lock: Lock

    def is_at(self, path: Path) -> bool:
        """Return whether another path leads to this file too, by links or in another spelling."""
        return self._lock.is_at(_lock_of(Path(os.path.realpath(path))))

    def renew(self) -> Kept:
        """Return itself, or take the file again if its lock file is gone.

        That happens when the folder was moved, or somebody cleaned up.

        Raises
        ------
        SessionError
            Another process has taken the file meanwhile, or its folder is gone.
        """
        if self._lock.is_at(self._lock.path):
            return self
        self.release()
        return take(self.path)

    def stamp(self) -> Stamp | None:
        """Return what is there now. Another stamp than before means that somebody has written it.

        Returns
        -------
        Stamp or None
            None if there is no file.
        """
        return _stamp(self.path)

    def set_aside(self) -> Path | None:
        """Keep what is in the file under another name, ``NAME-1`` and so on, before it is replaced.

        Returns
        -------
        Path or None
            Where it is kept; None if there is no file.

        Raises
        ------
        SessionError
            It cannot be kept; nothing has changed.
        """
        stem = self.path.name.removesuffix(SUFFIX)
        suffix = self.path.name[len(stem) :]
        try:
            for number in count(1):
                aside = self.path.with_name(f"{stem}-{number}{suffix}")
                with contextlib.suppress(FileExistsError):
                    _copy(self.path, aside)
                    return aside
        except FileNotFoundError:
            pass
        except OSError as error:
            raise SessionError(
                f"the session {self.path} cannot be set aside: {error.strerror or error}"
            ) from None
        return None

    def beside(self) -> Kept:
        """Reserve a new file beside it: ``NAME-1`` and so on, the first that is not there.

        Raises
        ------
        SessionError
            As for `take`.
        """
        stem = self.path.name.removesuffix(SUFFIX)
        suffix = self.path.name[len(stem) :]
        if found := _NUMBERED.fullmatch(stem):
            stem = found[1]
        for number in count(1):
            path = self.path.with_name(f"{stem}-{number}{suffix}")
            if os.path.lexists(path):
                continue
            with contextlib.suppress(_InUse):
                kept = take(path)
                if kept.found is None:
                    return kept
                kept.release()  # somebody has written it just now
        raise AssertionError

    def release(self) -> None:
        """Let other processes write it. Twice is fine."""
        self._lock.close()


def folder() -> Path:
    """Return the folder of sessions that have a name."""
    return data_dir() / "sessions"


def locate(name: str) -> Path:
    """Return the file that a name stands for.

    What contains a folder, as in ``./talk``, begins with ``~`` or ends in ``.session`` is a path.
    Anything else is a name, dots and spaces included, and its file is in `folder`.

    Raises
    ------
    UsageError
        No file can have this name; or it has a dot, and there is a session of this name in the
        current folder, where such names once led.
    """
    if not name.strip():
        raise UsageError("a session needs a name, or a file")
    if "\0" in name:
        raise UsageError("a session's name cannot hold a NUL")
    if os.path.basename(name) != name or name.startswith("~") or name.endswith(SUFFIX):
        return Path(os.path.expanduser(name))
    path = folder() / f"{name}{SUFFIX}"
    if os.path.lexists(path):
        return path
    if why := _unfit(name):
        raise UsageError(
            f"{name[:40]!r} cannot be the name of a session: {why}; take another, or give a file "
            "with its folder (./talk)"
        )
    if not _ONCE_A_NAME.fullmatch(name) and is_archive(Path(name)):
        raise UsageError(
            f"there is no session {name}, but a file of that name in this folder: "
            f"./{name} is that file; take another name for a new session"
        )
    return path


def name_of(path: Path) -> str:
    """Return what to call a session file: its name if it is in `folder`, else its path."""
    is_named = path.parent == Path(os.path.realpath(folder())) and path.name.endswith(SUFFIX)
    return path.name.removesuffix(SUFFIX) if is_named else str(path)


def files() -> list[Path]:
    """Return the files of the sessions in `folder`, newest first."""
    times: dict[Path, float] = {}
    for file in folder().glob(f"*{SUFFIX}"):
        with contextlib.suppress(OSError):  # deleted meanwhile
            if file.is_file():
                times[file] = file.stat().st_mtime
    return sorted(times, key=lambda file: -times[file])


def take(path: Path) -> Kept:
    """Reserve a session file for this process, so that no two processes overwrite each other's.

    The lock is beside the file to which the path leads, links followed, so that all paths to a file
    share one lock. Hard links do not: a save replaces the file under one of its names, and from
    then on they are two files.

    Raises
    ------
    SessionError
        Another process holds it, its folder cannot be written, or it is no regular file.
    """
    busy = _InUse(f"the session {path} is in use: end the other chat, or take a new name")
    try:
        if path.parent == folder():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        target = Path(os.path.realpath(path))
        require_replaceable(target)
        lock = Lock(_lock_of(target), busy)
    except OSError as error:
        raise SessionError(
            f"the session {path} cannot be kept there: {error.strerror or error}"
        ) from None
    clear_away(target)
    return Kept(target, _stamp(target), lock)


def _stamp(path: Path) -> Stamp | None:
    try:
        return Stamp.of(path.stat())
    except OSError:
        return None


def _lock_of(target: Path) -> Path:
    return target.parent / f".{target.name}.lock"


def _unfit(name: str) -> str:
    """Return why no file can have this name, here or on another system; empty if one can."""
    if any(unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp") for letter in name):
        return "it holds control characters"
    if found := next((letter for letter in '<>:"\\|?*' if letter in name), None):
        return f"it holds a {found}"
    if name.startswith(".") or name != name.strip() or name.endswith("."):
        return "it begins with a dot or a space, or ends in one"
    if _RESERVED.fullmatch(name):
        return "Windows keeps it for a device"
    if len(name.encode()) > LONGEST:
        return f"it is longer than {LONGEST} bytes"
    return ""


def _copy(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        with open_regular(source) as old, target.open("xb") as new:
            target.chmod(OWNER_ONLY)
            shutil.copyfileobj(old, new)
            os.fsync(new.fileno())
