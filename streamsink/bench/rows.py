"""Records as rows of text, for the terminal and for the report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from streamsink.system.sizes import gib

Row: TypeAlias = list[str]


def circumstances(config: dict[str, Any]) -> list[str]:
    """Model, versions and machine of a run, in two lines."""
    model, machine = config["model"], config["environment"]
    return [
        f"{model['file']} ({model['description']}), seed {config['seed']}",
        f"streamsink {machine['streamsink']}, llama-cpp-python {machine['llama_cpp_python']}"
        f" ({machine['llama_cpp'] or 'build unknown'}), {machine['cpu']}, "
        f"{machine['cores'] or '?'} cores",
    ]


def rope_name(settings: dict[str, Any]) -> str:
    """How RoPE is scaled, where it is."""
    if "rope_scale" not in settings:
        return ""
    return f", {settings['rope_scaling']} x {settings['rope_scale']:g}"


def _speed(record: dict[str, Any]) -> list[Row]:
    r = record["result"]
    spent = r["ms_per_eviction"]
    auto = " (auto)" if r["name"].endswith(f", {r['auto']}") else ""
    return [
        [
            str(record["settings"]["n_ctx"]),
            r["name"] + auto,
            f"{r['ms_per_token']:.2f}",
            f"{r['speed']:.3f} x",
            f"{r['speed_q1']:.3f}-{r['speed_q3']:.3f}",
            f"{r['baseline']} ({r['baseline_ms']:.2f} ms)",
            f"{r['p50']:.1f} / {r['p90']:.1f} / {r['p99']:.1f} / {r['worst']:.1f}",
            "" if spent is None else f"{spent:.2f}",
            f"{r['n_samples']} x {r['n_tokens']}",
        ]
    ]


def _streams(record: dict[str, Any]) -> list[Row]:
    s, r = record["settings"], record["result"]
    rows = []
    for name in ("engine", "contexts", "one"):
        one = r[name]
        is_engine = name == "engine"
        rows.append(
            [
                f"{s['n_streams']} x {s['n_ctx']}" if is_engine else "",
                {"engine": "one engine", "contexts": "separate contexts", "one": "one stream"}[
                    name
                ],
                f"{one['ms_per_token']:.2f}",
                f"{one['ms_q1']:.2f}-{one['ms_q3']:.2f}",
                f"{one['cpu_ms_per_token']:.2f}",
                f"{1e3 / one['ms_per_token']:.1f}",
                f"{r['speed']:.3f} x ({r['speed_q1']:.3f}-{r['speed_q3']:.3f})"
                if is_engine
                else "",
                _first_token(r["first_token"]) if is_engine else "",
            ]
        )
    return rows


def _first_token(first: dict[str, Any]) -> str:
    alone = f"{first['alone_s']:.2f} s alone"
    if first["beside_s"] is None:
        return alone
    return (
        f"{alone}, {first['beside_s']:.2f} s beside others, "
        f"who go from {first['rate_before']:.1f} to {first['rate_beside']:.1f} tok/s"
    )


def _busy(record: dict[str, Any]) -> list[Row]:
    s, r = record["settings"], record["result"]
    share = f"{r['share']:.3f} x ({r['share_q1']:.3f}-{r['share_q3']:.3f}) of {r['best']}"
    return [
        [
            "" if at else f"{s['n_ctx']}, {s['case']}",
            str(one["n"]),
            f"{one['rate']:.1f}",
            f"{one['rate_q1']:.1f}-{one['rate_q3']:.1f}",
            f"{one['cpu_ms_per_token']:.2f}",
            "" if at else share,
        ]
        for at, one in enumerate(r["threads"])
    ]


def _ppl(record: dict[str, Any]) -> list[Row]:
    s, r = record["settings"], record["result"]
    kept = 0 if s["policy"] == "window" else s["n_keep"]
    policy = f"{kept}+{s['n_ctx'] - kept}" if s["policy"] in ("window", "sink") else s["policy"]
    streams = s["policy"] in ("window", "sink")
    return [
        [
            policy + rope_name(s),
            str(s["n_discard"]) if streams else "",
            f"{r['placement']}, slack {r['slack']}" if streams else "",
            s["cache_type_k"],
            "infinite" if r["perplexity"] is None else f"{r['perplexity']:.2f}",
            "" if r["low"] is None else f"{r['low']:.2f}-{r['high']:.2f}",
            f"{r['n_scored']:,}",
            f"{r['tokens_per_second']:.0f}",
            r["stopped"],
        ]
    ]


def _recall(record: dict[str, Any]) -> list[Row]:
    r = record["result"]
    return [
        [
            record["key"],
            str(point["distance"]),
            "inside" if point["inside"] else "outside",
            f"{point['accuracy']:.0%}",
            f"{point['low']:.0%}-{point['high']:.0%}",
            f"{r['chance']:.0%}",
            str(point["n"]),
        ]
        for point in r["points"]
    ]


def _memory(record: dict[str, Any]) -> list[Row]:
    r = record["result"]
    grew = f"most at {r['grew_at']:,} tokens" if r["grew_at"] else "flat"
    return [
        [
            str(record["settings"]["n_ctx"]),
            f"{r['points'][-1]['n_tokens']:,}",
            gib(r["kv_bytes_computed"]),
            gib(r["kv_bytes_allocated"]),
            gib(r["points"][-1]["resident_bytes"]),
            f"{r['growth_bytes'] / 2**20:+.1f} MiB, {grew}",
        ]
    ]


KINDS: dict[str, tuple[tuple[str, ...], Callable[[dict[str, Any]], list[Row]]]] = {
    "speed": (
        (
            "n_ctx", "what", "ms/token", "speed", "quartiles", "of",
            "ms/call: p50 / p90 / p99 / worst", "ms/eviction", "samples",
        ),
        _speed,
    ),
    "streams": (
        (
            "streams", "", "ms/token", "quartiles", "CPU ms/token", "tok/s",
            "contexts / engine", "first token of a prompt of 1,000",
        ),
        _streams,
    ),
    "busy": (
        ("n_ctx", "threads", "tok/s", "quartiles", "CPU ms/token", "auto / best fixed number"),
        _busy,
    ),
    "ppl": (
        (
            "policy", "discard", "placement", "KV", "perplexity", "95 %", "tokens", "tok/s", "",
        ),
        _ppl,
    ),
    "recall": (("facts", "distance", "", "accuracy", "95 %", "chance", "asked"), _recall),
    "memory": (("n_ctx", "tokens", "KV", "KV allocated", "resident", "growth"), _memory),
}  # fmt: skip
"""By kind of benchmark: names of the columns, and the rows of a record."""
