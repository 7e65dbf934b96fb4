"""Runs of benchmarks as tables."""

from __future__ import annotations

import dataclasses
from typing import Any

from streamsink.bench.compare import circumstances as circumstances_apart
from streamsink.bench.compare import compare
from streamsink.bench.folder import RunFolder
from streamsink.bench.rows import KINDS, circumstances
from streamsink.cli import terminal
from streamsink.cli.table import show


def show_run(folder: RunFolder) -> None:
    """Print all that a run has found."""
    _say(circumstances(folder.config))
    for kind, (columns, rows_of) in KINDS.items():
        records = [r for r in folder.records() if r["kind"] == kind]
        rows = [row for r in records if "skipped" not in r["result"] for row in rows_of(r)]
        if rows:
            _say([kind])
            show(columns, rows)
        _say(
            f"not measured: {r['key']}: {r['result']['skipped']}"
            for r in records
            if "skipped" in r["result"]
        )


def show_comparison(a: RunFolder, b: RunFolder, as_json: bool) -> None:
    """Print two runs side by side: what differs, and what that comes to."""
    whole, found = circumstances_apart(a, b), compare(a, b)
    if as_json:
        terminal.say_json(
            {
                "differs": [dict(zip(("setting", "a", "b"), one, strict=True)) for one in whole],
                "measurements": [dataclasses.asdict(one) for one in found],
            }
        )
        return
    show(("run", ""), [["A", str(a.path)], ["B", str(b.path)]])
    terminal.say()
    if whole:
        show(("differs", "A", "B"), [[name, *map(_shown, values)] for name, *values in whole])
    else:
        terminal.say("same model, versions, machine and seed")
    terminal.say()
    show(
        ("", "what", "differs", "measure", "A", "B", "B / A", "why"),
        [
            [
                "*" if one.matters else "",
                one.what,
                ", ".join(f"{name} {_shown(x)} → {_shown(y)}" for name, x, y in one.differs),
                one.measure,
                "-" if one.a is None else f"{one.a:.4g}",
                "-" if one.b is None else f"{one.b:.4g}",
                "-" if one.ratio is None else f"{one.ratio:.3f}",
                one.why,
            ]
            for one in found
        ],
    )
    terminal.say("* is more than noise")


def _shown(value: Any) -> str:
    return "-" if value is None else str(value)


def _say(lines: Any) -> None:
    for line in lines:
        terminal.say(line)
