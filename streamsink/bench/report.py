"""One page about one or several runs: tables, plots, and under which circumstances they hold."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from streamsink.bench import plots
from streamsink.bench.folder import RunFolder
from streamsink.bench.rows import KINDS, circumstances
from streamsink.errors import StreamsinkError

TITLES = {
    "ppl": "Perplexity",
    "speed": "Speed",
    "streams": "Many streams",
    "busy": "Beside others",
    "recall": "Recall",
    "memory": "Memory",
}


def write_report(runs: Sequence[RunFolder], out: Path) -> list[str]:
    """Write ``report.html``, which needs no other file, ``report.md``, and plots as SVG and PNG.

    Parameters
    ----------
    runs : sequence of RunFolder
        Runs, finished or not.
    out : Path
        Folder of the report.

    Returns
    -------
    list of str
        What there is to say about it: that there are no plots, and why.

    Raises
    ------
    StreamsinkError
        It cannot be written.
    """
    records = [record for run in runs for record in run.records()]
    remarks: list[str] = []
    pictures: list[dict[str, Any]] = []
    try:
        (out / "plots").mkdir(parents=True, exist_ok=True)
        try:
            for name, caption, figure in plots.draw(records):
                drawn = plots.svg(figure)
                (out / "plots" / f"{name}.svg").write_text(drawn, "utf-8")
                (out / "plots" / f"{name}.png").write_bytes(plots.png(figure))
                # matplotlib escapes the text in it; only the drawing itself goes into the page.
                inner = Markup(drawn[drawn.index("<svg") :])
                pictures.append({"name": name, "caption": caption, "svg": inner})
        except StreamsinkError as error:
            remarks.append(str(error))
        content = {
            "runs": [_described(run) for run in runs],
            "tables": _tables(records),
            "pictures": pictures,
            "remarks": remarks,
        }
        for name in ("report.html", "report.md"):
            (out / name).write_text(_template(name).render(content), "utf-8")
    except OSError as error:
        raise StreamsinkError(f"{out} cannot be written: {error.strerror}") from None
    return remarks


def _template(name: str) -> Any:
    source = files("streamsink.bench").joinpath(f"{name}.jinja").read_text("utf-8")
    blocks = Environment(autoescape=name.endswith("html"), trim_blocks=True, lstrip_blocks=True)
    blocks.filters["cell"] = _cell
    return blocks.from_string(source)


def _cell(text: str) -> str:
    """What a Markdown table shows as it is."""
    for mark, shown in (("&", "&amp;"), ("<", "&lt;"), ("|", "&#124;"), ("`", "&#96;")):
        text = text.replace(mark, shown)
    return " ".join(text.split())


def _described(run: RunFolder) -> dict[str, Any]:
    seconds = sum(record["seconds"] for record in run.records())
    took = f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
    return {**run.config, "lines": circumstances(run.config), "took": took}


def _tables(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    tables = []
    for kind, title in TITLES.items():
        columns, rows_of = KINDS[kind]
        mine = [record for record in records if record["kind"] == kind]
        refused = [record for record in mine if "skipped" in record["result"]]
        tables.append(
            {
                "title": title,
                "columns": columns,
                "rows": [row for r in mine if "skipped" not in r["result"] for row in rows_of(r)],
                "skipped": [f"{r['key']}: {r['result']['skipped']}" for r in refused],
            }
        )
    return [table for table in tables if table["rows"] or table["skipped"]]
