"""Runs of benchmarks as tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from streamsink.bench.compare import Difference
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


def show_differences(differences: Sequence[Difference], as_json: bool) -> None:
    """Print a comparison; what matters is marked with a star."""
    if as_json:
        terminal.say_json([dataclasses.asdict(one) for one in differences])
        return
    show(
        ("", "what", "measure", "A", "B", "B / A", "why"),
        [
            [
                "*" if one.matters else "",
                f"{one.kind} {one.key}",
                one.measure,
                "-" if one.a is None else f"{one.a:.4g}",
                "-" if one.b is None else f"{one.b:.4g}",
                "-" if one.ratio is None else f"{one.ratio:.3f}",
                one.why,
            ]
            for one in differences
        ],
    )


def _say(lines: Any) -> None:
    for line in lines:
        terminal.say(line)
