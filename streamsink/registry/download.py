"""A file from a web server into its ``.part``, going on where an earlier attempt stopped."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from streamsink.errors import FetchError
from streamsink.registry import web
from streamsink.registry.sources import shown
from streamsink.registry.transfer import CHUNK, Growth, Progress, Received, require_room
from streamsink.registry.web import Answer, Interrupted, ask

ATTEMPTS = 5
"""How often in a row a transfer may break without a new byte."""
FIRST_WAIT = 0.5
"""Seconds before another attempt; twice as long each time that no byte came."""


@dataclass(frozen=True)
class _Note:
    """What a part is a part of; beside it, so that the next pull can prove that it goes on."""

    url: str
    validator: str | None


def download(
    url: str, part: Path, *, size: int | None, checked: bool, progress: Progress
) -> Received:
    """Bring the file at ``url`` to ``part``.

    Parameters
    ----------
    url : str
        Where it is.
    part : Path
        Where its bytes go. What is there already is kept if it is provably of the same file.
    size : int or None
        The bytes it must have, where known.
    checked : bool
        Whether its checksum is known. If so, a part may be gone on with even where the server
        names no version of the file: a wrong mixture would be found at the end.
    progress : Progress
        Told of every block.

    Raises
    ------
    FetchError
        The server refuses, or keeps breaking off; or the disk has no room.
    OSError
        The part cannot be written.
    """
    reached, broken = _length(part), 0
    while True:
        try:
            return _attempt(url, part, size, checked, progress)
        except Interrupted as error:
            if _length(part) > reached:
                reached, broken = _length(part), 0
            else:
                broken += 1
            if broken == ATTEMPTS:
                raise FetchError(
                    f"{shown(url)}: {error}, {ATTEMPTS} times in a row; "
                    f"{_length(part):,} bytes are kept: pull again to go on"
                ) from error
            time.sleep(max(error.wait, FIRST_WAIT * 2 ** max(broken - 1, 0)))


def discard(part: Path) -> None:
    """Remove a part and what is noted about it."""
    part.unlink(missing_ok=True)
    _note_of(part).unlink(missing_ok=True)


def forget_note(part: Path) -> None:
    """Remove what is noted about a part that has become a file."""
    _note_of(part).unlink(missing_ok=True)


def _attempt(url: str, part: Path, size: int | None, checked: bool, progress: Progress) -> Received:
    note = _read_note(part)
    provable = note is not None and note.url == url and (note.validator is not None or checked)
    start = _length(part) if provable else 0
    answer = ask(url, start, note.validator if note and start else None)
    try:
        _check_answer(answer, start, note, url, part, size)
        total = size if answer.total is None else answer.total
        require_room(part.parent, (total or 0) - _length(part))
        growth = Growth(part.parent, shown(url), total)
        digest = hashlib.sha256()
        with part.open("ab" if answer.start else "wb") as out:
            if answer.start:
                _hash_into(digest, part)
            else:
                _write_note(part, _Note(url, answer.validator))
            done = answer.start
            progress(done, total)
            while answer.total is None or done < answer.total:
                block = answer.read(min(CHUNK, answer.total - done) if answer.total else CHUNK)
                if not block:
                    break
                done += len(block)
                _check_growth(growth, done, part)
                out.write(block)
                digest.update(block)
                progress(done, total)
    finally:
        answer.close()
    if total is not None and done < total:
        raise Interrupted(f"the connection closed after {done:,} of {total:,} bytes")
    return Received(done, digest.hexdigest(), answer.announced)


def _check_answer(
    answer: Answer, start: int, note: _Note | None, url: str, part: Path, size: int | None
) -> None:
    if answer.total is not None and size is not None and answer.total != size:
        raise FetchError(
            f"{shown(url)} has {answer.total:,} bytes, the registry says {size:,}: "
            "it is another file now; correct size and sha256 with `streamsink models add --force`"
        )
    if answer.start == 0 and answer.body is not None:
        return
    # Some servers honour Range and overlook If-Range; some misread Range.
    known = note.validator if note else None
    changed = known and answer.validator and answer.validator != known
    if changed or answer.start != start or not start:
        discard(part)
        raise Interrupted("the file changed on the server, or it sends another part than asked")


def _check_growth(growth: Growth, done: int, part: Path) -> None:
    try:
        growth.check(done)
    except FetchError:
        discard(part)  # it is no part of what was wanted, or nobody knows how much room it takes
        raise


def _hash_into(digest: hashlib._Hash, part: Path) -> None:
    with part.open("rb") as file:
        while block := file.read(CHUNK):
            digest.update(block)


def _length(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _note_of(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _read_note(part: Path) -> _Note | None:
    try:
        note = _Note(**json.loads(_note_of(part).read_text("utf-8")))
    except (FileNotFoundError, ValueError, TypeError, RecursionError):
        return None  # a part without a readable note proves nothing, and is begun again
    return note if web.is_validator(note.validator) else None


def _write_note(part: Path, note: _Note) -> None:
    _note_of(part).write_text(json.dumps(asdict(note)), "utf-8")
