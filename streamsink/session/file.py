"""The session file: a zip archive of ``session.json`` and, as llama.cpp gives them out, the cells.

Nothing in it is compressed, so that it is written and read at the speed of the disk; its checksums
are those of the archive (CRC-32), and an archive is found by its end, so that a torn file is known
as one. A file is made beside the old one and then takes its name. Whoever can read it reads the
conversation: it belongs to its owner alone.
"""

from __future__ import annotations

import contextlib
import os
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from streamsink import __version__
from streamsink.core.snapshot import CacheKey, Snapshot
from streamsink.errors import SessionError, StreamsinkError
from streamsink.session.conversation import Conversation
from streamsink.system.atomic import replacing
from streamsink.system.regular import open_regular

VERSION = 2
RECORD, CELLS, LOGITS = "session.json", "cells.bin", "logits.bin"
OWNER_ONLY = 0o600
_ARCHIVE = b"PK"


class Session(msgspec.Struct, frozen=True):
    """What a session file holds, but for the cells.

    Attributes
    ----------
    kind : CacheKey
        The model, and what the cells depend on.
    stream : Snapshot
        Where the stream stands.
    conversation : Conversation or None
        The conversation, where there is one.
    saved : float
        When, in seconds since 1970.
    version : int
        Of the file's form.
    by : str
        Version of streamsink.
    """

    kind: CacheKey
    stream: Snapshot
    conversation: Conversation | None = msgspec.field(name="talk")
    saved: float
    version: int = VERSION
    by: str = __version__

    def __repr__(self) -> str:
        """What it is of, and how far it went, in one line."""
        n = self.conversation.n_turns if self.conversation else 0
        said = f"{n:,} turn{'s' * (n != 1)}, " if self.conversation else ""
        return f"<Session of {Path(self.kind.path).name!r}: {said}{self.stream.index:,} tokens>"


class _Versioned(msgspec.Struct):
    """What every version has."""

    version: Annotated[int, msgspec.Meta(ge=1)]


def write(
    path: Path,
    kind: CacheKey,
    stream: Snapshot,
    conversation: Conversation | None,
    cells: memoryview | None,
    logits: NDArray[np.float32] | None = None,
) -> None:
    """Write a session file, whole or not at all.

    Raises
    ------
    SessionError
        The file cannot be written; it is as it was.
    """
    record = msgspec.json.encode(Session(kind, stream, conversation, time.time()))
    try:
        with replacing(path, OWNER_ONLY) as file, zipfile.ZipFile(file, "w") as archive:
            archive.writestr(RECORD, record)
            row = None if logits is None else memoryview(logits.tobytes())
            for name, data in ((CELLS, cells), (LOGITS, row)):
                if data is not None:
                    with archive.open(name, "w", force_zip64=True) as member:
                        member.write(data)
    except OSError as error:
        raise SessionError(
            f"the session {path} cannot be written: {error.strerror or error}"
        ) from None


class SessionFile(contextlib.AbstractContextManager["SessionFile"]):
    """A session file, opened: record and cells are of one moment, whoever replaces it meanwhile.

    Parameters
    ----------
    path : Path
        The file.

    Attributes
    ----------
    session : Session
        What it holds, but for the cells.

    Raises
    ------
    SessionError
        There is none, it is no regular file, or it is torn, damaged or of another version.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._refusing():
            self._file = open_regular(path)
        try:
            self.session = _session(path, self._member(RECORD) or b"")
        except BaseException:
            self._file.close()
            raise

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def cells(self) -> memoryview | None:
        """The cells; None where it has none.

        Raises
        ------
        SessionError
            The file is torn or damaged.
        """
        cells = self._member(CELLS)
        return None if cells is None else memoryview(cells)

    def logits(self) -> NDArray[np.float32] | None:
        """What the newest token foresaw, of a model that could not compute it again; or None.

        Raises
        ------
        SessionError
            The file is torn or damaged.
        """
        logits = self._member(LOGITS)
        if logits is None:
            return None
        if len(logits) % 4:
            raise SessionError(
                f"the session {self._path} is damaged: {LOGITS} holds no whole numbers"
            )
        return np.frombuffer(logits, np.float32)

    def _member(self, name: str) -> bytes | None:
        """One file out of the archive, its checksum held against it."""
        path = self._path
        with self._refusing(), zipfile.ZipFile(self._file) as archive:
            names = archive.namelist()
            if RECORD not in names or len(names) > 3:
                raise SessionError(f"{path} is an archive, but not a session")
            if name not in names:
                return None
            info = archive.getinfo(name)
            # Neither compressed nor encrypted: what is read is no larger than the file.
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
                raise SessionError(f"the session {path} is damaged: {name} is packed")
            if info.file_size > os.fstat(self._file.fileno()).st_size:
                raise SessionError(f"the session {path} is damaged: {name} is larger than it")
            return archive.read(info)

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[None]:
        """Turn what the system or zipfile raises into an error that names the file."""
        path = self._path
        try:
            yield
        except FileNotFoundError:
            raise SessionError(f"there is no session {path}") from None
        except OSError as error:
            raise SessionError(
                f"the session {path} cannot be read: {error.strerror or error}"
            ) from None
        except _DAMAGE as error:
            raise SessionError(f"the session {path} is torn or damaged: {error}") from None


def read(path: Path) -> Session:
    """Read a session file without its cells; see `SessionFile`."""
    with SessionFile(path) as file:
        return file.session


def is_archive(path: Path) -> bool:
    """Whether a file begins as sessions do, also those that are damaged."""
    try:
        with open_regular(path) as file:
            return file.read(len(_ARCHIVE)) == _ARCHIVE
    except OSError:
        return False


def read_cells(path: Path) -> memoryview | None:
    """The cells of a session file; see `SessionFile`."""
    with SessionFile(path) as file:
        return file.cells()


def _session(path: Path, record: bytes) -> Session:
    try:
        version = msgspec.json.decode(record, type=_Versioned).version
        if 1 <= version <= VERSION:
            found = msgspec.convert(_brought_up(msgspec.json.decode(record)), Session)
            if not found.kind.is_printable():
                raise SessionError("a name holds control characters")
            return found
    except StreamsinkError as error:
        raise SessionError(f"the session {path} is damaged: {error}") from None
    except (msgspec.MsgspecError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise SessionError(f"the session {path} is damaged: {error}") from None
    raise SessionError(
        f"the session {path} is of version {version}, and this streamsink reads {VERSION}: "
        f"{'update it' if version > VERSION else 'go on with an older one'}"
    )


def _brought_up(record: dict[str, Any]) -> dict[str, Any]:
    """A record of an earlier version, as this one has it.

    In version 1 a pinned span had its tokens alone, and the policy's ``n_keep`` counted them; a
    system block was known by its end, and by 0 once it was swapped.
    """
    if record["version"] == 1:
        stream, conversation = record["stream"], record["talk"]
        spans = stream["pinned"]["spans"]
        if spans:
            stream["pinned"]["spans"] = [{"ranges": [], "tokens": span} for span in spans]
            stream["pinned"]["n_prefix"] = stream["n_keep"] - sum(map(len, spans))
        if conversation and stream["pieces"]:
            first = stream["pieces"][0]
            end = first["index"] + len(first["tokens"])
            swapped = (first["index"], end) if first["index"] < 0 else (0, 0)
            conversation["block"] = (
                (0, conversation["block_end"]) if conversation["block_end"] else swapped
            )
        record["version"] = VERSION
    return record


_DAMAGE: Any = (
    # What zipfile raises on archives that are none, and on bytes that mean something else.
    zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError, OverflowError,
    IndexError, KeyError, zipfile.LargeZipFile, MemoryError,
)  # fmt: skip
