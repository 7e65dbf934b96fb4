"""Plots of a run's records, by matplotlib, which is the extra ``streamsink[bench]``."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from streamsink.bench.names import policy_name
from streamsink.bench.statistics import paired_interval
from streamsink.core.policy import LARGEST
from streamsink.errors import StreamsinkError
from streamsink.system.installing import how_to_install

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record: TypeAlias = dict[str, Any]

# Okabe and Ito's palette, which the colour-blind can tell apart; dashes tell the lines apart too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":")
WIDTH, HEIGHT, LINE = 6.0, 3.6, 0.2
"""Inches of a figure without its legend, and of a line of that."""
LENGTHS = ("stream", "window", "feed, discard 1, batched")
"""How the names of those begin that are drawn over contexts."""
APART = 0.22
"""How far contexts of one variant lie apart, in rows."""
EXPLODES = 5
"""Ratio of the largest to the smallest perplexity from which on the scale is logarithmic."""


def draw(records: Sequence[Record]) -> Iterator[tuple[str, str, Figure]]:
    """Draw whatever there are records for: name, caption and figure of each plot.

    Raises
    ------
    StreamsinkError
        matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise StreamsinkError(
            f"there are no plots without matplotlib: {how_to_install('matplotlib')}"
        ) from None

    for name, caption, paint in (
        ("perplexity", "Perplexity along the stream", _perplexity),
        ("trade-off", "What an eviction costs, and what it saves", _trade_off),
        ("speed", "What a stream costs", _speed),
        ("length", "Cost of a token by the size of the context", _length),
        ("recall", "What is still known, by distance", _recall),
        ("memory", "Resident memory along the stream", _memory),
    ):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        axes = figure.add_subplot()
        if paint(axes, records):
            axes.grid(alpha=0.25)
            for side in ("top", "right"):
                axes.spines[side].set_visible(False)
            n_labels = len(axes.get_legend_handles_labels()[0])
            if n_labels:
                figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
                figure.set_figheight(HEIGHT + LINE * -(-n_labels // 2))
            yield name, caption, figure


def svg(figure: Figure) -> str:
    """The figure as SVG, the same bytes for the same data."""
    import matplotlib

    out = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "streamsink", "svg.fonttype": "none"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()


def png(figure: Figure) -> bytes:
    """The figure as PNG."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=150)
    return out.getvalue()


def _of(records: Sequence[Record], kind: str) -> list[Record]:
    return [r for r in records if r["kind"] == kind and "skipped" not in r["result"]]


def _style(at: int) -> dict[str, Any]:
    return {
        "color": COLOURS[at % len(COLOURS)],
        "linestyle": DASHES[at // len(COLOURS) % len(DASHES)],
    }


def _logarithmic(axes: Axes) -> None:
    """Powers of ten as plain numbers; between them a few where there is room."""
    from matplotlib.ticker import LogFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))


def _perplexity(axes: Axes, records: Sequence[Record]) -> bool:
    lowest, highest = math.inf, 0.0
    for at, record in enumerate(_of(records, "ppl")):
        curve = record["result"]["curve"]
        points = [
            (index, math.exp(min(nll, 700)))
            for index, nll in zip(curve["index"], curve["nll"], strict=True)
            if nll is not None
        ]
        if not points:
            continue
        where, level = zip(*points, strict=True)
        lowest, highest = min(lowest, *level), max(highest, *level)
        axes.plot(where, level, label=policy_name(record["settings"]), linewidth=1.2, **_style(at))
    if highest == 0:
        return False
    if highest / lowest > EXPLODES:
        _logarithmic(axes)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("position in the stream, tokens")
    axes.set_ylabel("perplexity")
    return True


def _trade_off(axes: Axes, records: Sequence[Record]) -> bool:
    """Perplexity against speed, where both were measured for two evictions or more.

    The perplexities are paired with that of the smallest eviction: what makes a text hard for all
    of them would hide the difference.
    """
    speeds = {
        (r["settings"]["n_ctx"], r["settings"]["n_discard"], r["settings"]["placement"]): r
        for r in _of(records, "speed")
        if "n_discard" in r["settings"] and r["settings"]["slack"] is None
    }
    from matplotlib.ticker import PercentFormatter

    found = []
    for record in _of(records, "ppl"):
        s = record["settings"]
        speed = speeds.get((s["n_ctx"], s["n_discard"], record["result"].get("placement")))
        if s["policy"] == "sink" and s["n_keep"] == 4 and speed:
            found.append((s["n_discard"], speed["result"]["speed"], _levels(record)))
    found.sort(key=lambda point: _eviction(str(point[0])))
    for at, (n_discard, speed, levels) in enumerate(found):
        mean, interval = paired_interval(levels, found[0][2], seed=0, block=1)
        cost, low, high = (math.expm1(nat) for nat in (mean, interval.low, interval.high))
        axes.errorbar(
            speed, cost, [[cost - low], [high - cost]], fmt="o", capsize=3,
            label=f"discard {n_discard}", **_style(at),
        )  # fmt: skip
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.margins(0.1)
    axes.set_xlabel("speed, of plain decoding")
    axes.set_ylabel("perplexity more than the first, with 95 %")
    return len(found) > 1


def _levels(record: Record) -> NDArray[np.float64]:
    """Mean NLL of each stretch of a stream, in nat; NaN where nothing was scored."""
    return np.array(record["result"]["curve"]["nll"], dtype=np.float64)


def _speed(axes: Axes, records: Sequence[Record]) -> bool:
    """Every variant beside its baseline, one colour a context, contexts side by side.

    What is many times slower lies on zero, where its number tells more than its place.
    """
    found = _of(records, "speed")
    names = list(dict.fromkeys(record["result"]["name"] for record in found))[::-1]
    contexts = sorted({record["settings"]["n_ctx"] for record in found})
    for at, n_ctx in enumerate(contexts):
        here = [record["result"] for record in found if record["settings"]["n_ctx"] == n_ctx]
        speed = [r["speed"] for r in here]
        spread = [
            [r["speed"] - r["speed_q1"] for r in here],
            [r["speed_q3"] - r["speed"] for r in here],
        ]
        aside = APART * ((len(contexts) - 1) / 2 - at)
        where = [names.index(r["name"]) + aside for r in here]
        axes.errorbar(
            speed, where, xerr=spread, fmt="o", markersize=4, capsize=2,
            label=f"n_ctx {n_ctx:,}", color=_style(at)["color"],
        )  # fmt: skip
        for one, y in zip(speed, where, strict=True):
            if one < 1 / EXPLODES:
                axes.annotate(f"  {one:.2g}", (one, y), fontsize=7, va="center")
    fastest = max((record["result"]["speed_q3"] for record in found), default=1.0)
    axes.set_xlim(0, 1.1 * max(1.0, fastest))
    axes.axvline(1, color="grey", linestyle=":", linewidth=1)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlabel("speed, of the same without the stream")
    return bool(found)


def _length(axes: Axes, records: Sequence[Record]) -> bool:
    """The smallest eviction, the paper's baseline and plain decoding, over contexts."""
    found = _of(records, "speed")
    evicting = [r for r in found if "n_discard" in r["settings"]]
    least = min((str(r["settings"]["n_discard"]) for r in evicting), key=_eviction, default="")
    lines: dict[str, list[tuple[int, float]]] = {}
    for record in found:
        s, r = record["settings"], record["result"]
        if str(s.get("n_discard", least)) != least or not r["name"].startswith(LENGTHS):
            continue
        lines.setdefault(r["name"], []).append((s["n_ctx"], r["ms_per_token"]))
        if s.get("placement") == r["auto"] and s["slack"] is None:
            lines.setdefault(r["baseline"], []).append((s["n_ctx"], r["baseline_ms"]))
    lines = {name: sorted(points) for name, points in lines.items() if len(points) > 1}
    for at, (name, points) in enumerate(lines.items()):
        where, level = zip(*points, strict=True)
        axes.plot(where, level, marker="o", markersize=4, label=name, **_style(at))
    axes.set_xscale("log", base=2)
    _logarithmic(axes)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("n_ctx, tokens")
    axes.set_ylabel("ms a token")
    return bool(lines)


def _eviction(n_discard: str) -> int:
    return int(n_discard) if n_discard.isdecimal() else LARGEST


def _recall(axes: Axes, records: Sequence[Record]) -> bool:
    found = _of(records, "recall")
    for at, record in enumerate(found):
        r = record["result"]
        points = r["points"]
        where = [point["distance"] for point in points]
        level = [point["accuracy"] for point in points]
        below = [max(0.0, p["accuracy"] - p["low"]) for p in points]
        above = [max(0.0, p["high"] - p["accuracy"]) for p in points]
        name = "facts in the pinned prefix" if record["key"].startswith("pinned") else "in the text"
        axes.errorbar(
            where, level, [below, above], marker="o", capsize=3,
            label=f"{name}, n_ctx {r['n_ctx']:,}", **_style(at),
        )  # fmt: skip
        if r["window_edge"] is not None:
            axes.axvline(r["window_edge"], color=COLOURS[at % len(COLOURS)], alpha=0.5)
            axes.annotate(
                " the window's edge", (r["window_edge"], 0.5), fontsize=9, va="center", ha="left"
            )
    if found:
        axes.axhline(found[0]["result"]["chance"], color="grey", linestyle=":", label="chance")
    axes.set_ylim(-0.03, 1.06)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.set_xlabel("tokens between fact and question")
    axes.set_ylabel("right answers, with 95 %")
    return bool(found)


def _memory(axes: Axes, records: Sequence[Record]) -> bool:
    found = _of(records, "memory")
    for at, record in enumerate(found):
        points = record["result"]["points"]
        axes.plot(
            [point["n_tokens"] for point in points],
            [point["resident_bytes"] / 2**20 for point in points],
            label=f"n_ctx {record['settings']['n_ctx']:,}",
            **_style(at),
        )
    axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("position in the stream, tokens")
    axes.set_ylabel("resident memory, MiB")
    return bool(found)
