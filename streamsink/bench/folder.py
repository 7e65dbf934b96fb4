"""A run on disk: ``config.json``, ``results.jsonl``, and arrays beside them.

A record is one line, written when its measurement is done, so that a run that was killed holds all
that it had finished; a line that was torn in two counts as not written.

Each line of ``results.jsonl`` is an object with

* ``kind``, ``key``, ``settings``: as in `streamsink.bench.task.Task`
* ``result``: what was found, by the benchmark of that kind
* ``seconds``: time it took
* ``finished``: when, ISO 8601 in UTC
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from streamsink.bench.task import Task
from streamsink.errors import StreamsinkError, UsageError

CONFIG, RESULTS, ARRAYS = "config.json", "results.jsonl", "arrays"


class RunFolder:
    """A run's folder.

    Parameters
    ----------
    path : Path
        The folder, which `create` has made.

    Raises
    ------
    UsageError
        It is no run's folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.config: dict[str, Any] = json.loads((path / CONFIG).read_text("utf-8"))
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise UsageError(f"{path} is not the folder of a run: {CONFIG}: {why}") from None

    @classmethod
    def create(cls, path: Path, config: dict[str, Any]) -> RunFolder:
        """Make a folder for a new run.

        Raises
        ------
        UsageError
            It is there already, or cannot be made.
        """
        try:
            path.mkdir(parents=True)
            (path / ARRAYS).mkdir()
            (path / CONFIG).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
        except FileExistsError:
            raise UsageError(
                f"--out {path} is there already: name another, or go on with --resume {path}"
            ) from None
        except OSError as error:
            raise UsageError(f"--out {path} cannot be made: {error.strerror}") from None
        return cls(path)

    @property
    def arrays(self) -> Path:
        """Folder of the arrays."""
        return self.path / ARRAYS

    def records(self) -> Iterator[dict[str, Any]]:
        """Everything finished, in the order of finishing; of two of one key the later counts."""
        try:
            lines = (self.path / RESULTS).read_text("utf-8", "replace").splitlines()
        except FileNotFoundError:
            return
        found: dict[str, dict[str, Any]] = {}
        for line in lines:
            try:
                record = json.loads(line)
                found[f"{record['kind']} {record['key']}"] = record
            except (ValueError, TypeError, KeyError):
                continue  # torn by a kill
        yield from found.values()

    def has(self, task: Task) -> bool:
        """Whether a task is finished."""
        return any(
            r["kind"] == task.kind and r["key"] == task.key and not r["result"].get("interrupted")
            for r in self.records()
        )

    def append(self, task: Task, result: dict[str, Any], seconds: float) -> None:
        """Write a finished task down, to the disk itself."""
        record = {
            "kind": task.kind,
            "key": task.key,
            "settings": task.settings,
            "result": result,
            "seconds": round(seconds, 3),
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        path = self.path / RESULTS
        try:
            with path.open("a+b") as file:
                if file.tell() and not _ends_a_line(path):
                    file.write(b"\n")
                file.write(json.dumps(record, allow_nan=False).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StreamsinkError(f"{path} cannot be written: {error.strerror}") from None


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
