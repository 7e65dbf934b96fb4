"""Two runs side by side, and which of their differences are more than noise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from streamsink.bench.folder import RunFolder
from streamsink.bench.names import title
from streamsink.bench.pairing import Pair, pairs
from streamsink.bench.scores import read_scores
from streamsink.bench.statistics import paired_interval

TRIFLE = 0.001
"""Nat: differences of the mean below this do not matter, however certain."""
GROWTH = 8 * 2**20
"""Bytes by which two streams may grow apart."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One measure of one measurement in both runs.

    Attributes
    ----------
    kind, what : str
        The measurement: its kind, and what was measured, in words.
    differs : tuple of (str, value, value)
        Settings that differ, and both values.
    measure : str
        What of it.
    a, b : float or None
        Its values; None where a run lacks it.
    ratio : float or None
        ``b / a``.
    matters : bool
        Whether the difference is more than noise.
    why : str
        By what that was judged.
    """

    kind: str
    what: str
    differs: tuple[tuple[str, Any, Any], ...]
    measure: str
    a: float | None
    b: float | None
    ratio: float | None
    matters: bool
    why: str


def compare(a: RunFolder, b: RunFolder) -> list[Difference]:
    """Pair the measurements of two runs, those of the first in its order and then the others.

    What differs between two that belong together is named, and what is equal is compared.
    """
    found = pairs(list(a.records()), list(b.records()))
    return [one for pair in found for one in _differences(pair, a, b)]


def circumstances(a: RunFolder, b: RunFolder) -> list[tuple[str, Any, Any]]:
    """In what two runs differ as a whole: model, versions, machine, seed, and how it computes."""
    mine, theirs = (_circumstances(folder.config) for folder in (a, b))
    names = dict.fromkeys([*mine, *theirs])
    found = [(name, mine.get(name), theirs.get(name)) for name in names]
    return [one for one in found if one[1] != one[2]]


def _circumstances(config: dict[str, Any]) -> dict[str, Any]:
    machine = config["environment"]
    setup = (config.get("plan") or {}).get("setup") or {}
    return {
        "model": config["model"]["file"],
        "file": config["model"]["sha256"][:12],
        **{name: machine.get(name) for name in ("streamsink", "llama_cpp_python", "llama_cpp")},
        **{name: machine.get(name) for name in ("cpu", "cores", "threads_allowed")},
        "seed": config["seed"],
        "n_gpu_layers": setup.get("n_gpu_layers"),
        **(setup.get("cache") or {}),
    }


def _differences(pair: Pair, a: RunFolder, b: RunFolder) -> Iterator[Difference]:
    first = pair.a or pair.b
    assert first
    kind = first["kind"]
    key = kind, title(kind, first["settings"]), pair.differs
    x, y = (record and record["result"] for record in (pair.a, pair.b))
    if x is None or y is None or "skipped" in x or "skipped" in y:
        only = "A" if y is None or "skipped" in y else "B"
        yield Difference(*key, "", None, None, None, False, f"measured in {only} only")
    elif kind == "ppl":
        matters, why = _judge_scores(x, y, a, b)
        yield _difference(key, "perplexity", x["perplexity"], y["perplexity"], matters, why)
    elif kind == "speed":
        apart = x["ms_q3"] < y["ms_q1"] or y["ms_q3"] < x["ms_q1"]
        yield _difference(
            key, "ms a token", x["ms_per_token"], y["ms_per_token"], apart,
            f"quartiles {x['ms_q1']:.2f}-{x['ms_q3']:.2f} and {y['ms_q1']:.2f}-{y['ms_q3']:.2f}",
        )  # fmt: skip
    elif kind == "recall":
        others = {point["distance"]: point for point in y["points"]}
        for point in x["points"]:
            other = others.get(point["distance"])
            if other:
                apart = point["high"] < other["low"] or other["high"] < point["low"]
                yield _difference(
                    key, f"accuracy at {point['distance']}", point["accuracy"], other["accuracy"],
                    apart, "95 % intervals",
                )  # fmt: skip
    elif kind == "memory":
        grew = x["growth_bytes"], y["growth_bytes"]
        yield _difference(
            key, "growth in bytes", *grew, abs(grew[0] - grew[1]) > GROWTH, "8 MiB apart or more"
        )


def _judge_scores(
    x: dict[str, Any], y: dict[str, Any], a: RunFolder, b: RunFolder
) -> tuple[bool, str]:
    """Token by token where both runs still have their scores, which tells far more."""
    if x["tokens_sha256"] != y["tokens_sha256"]:
        return False, "not to be compared: they scored different texts"
    mine, theirs = a.arrays / x["nll_file"], b.arrays / y["nll_file"]
    if not mine.is_file() or not theirs.is_file():
        apart = None not in (x["low"], y["low"]) and (x["high"] < y["low"] or y["high"] < x["low"])
        return apart, "95 % intervals; the scores of single tokens are not here"
    mean, interval = paired_interval(read_scores(theirs), read_scores(mine), seed=0)
    if not math.isfinite(interval.low):
        return False, f"{mean:+.4f} nat a token, of too few to tell how certain"
    matters = abs(mean) > TRIFLE and not interval.low <= 0 <= interval.high
    return matters, (
        f"{mean:+.4f} nat a token, 95 % from {interval.low:+.4f} to {interval.high:+.4f}"
    )


Key: TypeAlias = tuple[str, str, tuple[tuple[str, Any, Any], ...]]
"""Kind, words, and what differs."""


def _difference(
    key: Key, measure: str, a: float | None, b: float | None, matters: bool, why: str
) -> Difference:
    ratio = b / a if a and b is not None else None
    return Difference(*key, measure, a, b, ratio, matters, why)
