"""A file from a web server into its part, going on where an earlier attempt stopped."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

from streamsink.errors import FetchError
from streamsink.registry.part import Note, discard, length, read_note, write_note
from streamsink.registry.sources import shown
from streamsink.registry.transfer import CHUNK, Growth, Progress, Received, require_room
from streamsink.registry.web import Answer, Interrupted, ask

ATTEMPTS = 5
"""How often in a row a transfer may break off without a new byte."""
FIRST_WAIT = 0.5
"""Seconds before another attempt; doubled each time that no byte came."""


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
        Whether its checksum is known. Then a part is continued even where the server names no
        version of the file, for the checksum would find a mixture of two.
    progress : Progress
        Told of every block.

    Raises
    ------
    FetchError
        The server refuses, or keeps breaking off; or the disk has no room.
    OSError
        The part cannot be written.
    """
    reached, broken = length(part), 0
    while True:
        try:
            return _attempt(url, part, size, checked, progress)
        except Interrupted as error:
            if length(part) > reached:
                reached, broken = length(part), 0
            else:
                broken += 1
            if broken == ATTEMPTS:
                raise FetchError(
                    f"{shown(url)}: {error}, {ATTEMPTS} times in a row; "
                    f"{length(part):,} bytes are kept: pull again to go on"
                ) from error
            time.sleep(max(error.wait, FIRST_WAIT * 2 ** max(broken - 1, 0)))


def _attempt(url: str, part: Path, size: int | None, checked: bool, progress: Progress) -> Received:
    note = read_note(part)
    is_provable = note is not None and note.url == url and (note.validator is not None or checked)
    start = length(part) if is_provable else 0
    answer = ask(url, start, note.validator if note and start else None)
    try:
        _check_size(answer, url, size)
        if answer.start != 0 or answer.body is None:
            _check_continuation(answer, start, note, part)
        return _receive(answer, url, part, size, progress)
    finally:
        answer.close()


def _check_size(answer: Answer, url: str, size: int | None) -> None:
    if answer.total is not None and size is not None and answer.total != size:
        raise FetchError(
            f"{shown(url)} has {answer.total:,} bytes, the registry says {size:,}: "
            "it is another file now; correct size and sha256 with `streamsink models add --force`"
        )


def _check_continuation(answer: Answer, start: int, note: Note | None, part: Path) -> None:
    """Begin again unless the answer goes on with the part.

    Some servers honour Range and overlook If-Range, and some misread Range.
    """
    known = note.validator if note else None
    is_changed = known and answer.validator and answer.validator != known
    if is_changed or answer.start != start or not start:
        discard(part)
        raise Interrupted("the file changed on the server, or it sends another part than asked")


def _receive(
    answer: Answer, url: str, part: Path, size: int | None, progress: Progress
) -> Received:
    total = size if answer.total is None else answer.total
    require_room(part.parent, (total or 0) - length(part))
    growth = Growth(part.parent, shown(url), total)
    digest = hashlib.sha256()
    with part.open("ab" if answer.start else "wb") as out:
        if answer.start:
            _hash_into(digest, part)
        else:
            write_note(part, Note(url, answer.validator))
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
    if total is not None and done < total:
        raise Interrupted(f"the connection closed after {done:,} of {total:,} bytes")
    return Received(done, digest.hexdigest(), answer.announced)


def _check_growth(growth: Growth, done: int, part: Path) -> None:
    try:
        growth.check(done)
    except FetchError:
        discard(part)  # it is no part of the file, or of one without an end
        raise


def _hash_into(digest: hashlib._Hash, part: Path) -> None:
    with part.open("rb") as file:
        while block := file.read(CHUNK):
            digest.update(block)
