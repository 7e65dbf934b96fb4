"""Reports and comparisons, on runs written by hand: what they show, mark and escape."""

from __future__ import annotations

import json
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamsink.bench.compare import circumstances, compare
from streamsink.bench.folder import RunFolder
from streamsink.bench.pairing import pairs
from streamsink.bench.report import write_report
from streamsink.bench.statistics import bootstrap_interval, curve, mean_nll, perplexity
from streamsink.bench.task import Task

HOSTILE = "<script>alert(1)</script>|`x`&amp;"
N_TOKENS = 4000


def new_run(path: Path, description: str = "llama 135M") -> RunFolder:
    environment = {
        "streamsink": "0", "llama_cpp_python": "0", "llama_cpp": "", "cpu": "a cpu", "cores": 2,
    }  # fmt: skip
    model = {"file": "a.gguf", "description": description, "sha256": "00"}
    return RunFolder.create(
        path,
        {
            "command": f"streamsink bench --text '{description}'",
            "started": "2026-01-01",
            "environment": environment,
            "model": model,
            "seed": 0,
        },
    )


def add(run: RunFolder, kind: str, key: str, settings: dict[str, Any], **result: Any) -> None:
    run.append(Task(kind, key, settings, 1.0, lambda place: result), result, 1.5)


def add_scores(
    run: RunFolder,
    scores: np.ndarray[Any, Any],
    n_keep: int = 4,
    n_discard: Any = 1,
    sha256: str = "same",
) -> None:
    key = f"{n_keep}+508" + ("" if n_discard == 1 else f"-{n_discard}")
    scores.astype("<f4").tofile(run.arrays / f"{key}.f32")
    interval = bootstrap_interval(scores, seed=0)
    index, level = curve(scores)
    add(
        run, "ppl", key,
        {
            "policy": "sink", "n_ctx": 512, "n_keep": n_keep, "n_discard": n_discard,
            "placement": "auto",
            "slack": None, "cache_type_k": "f16",
        },
        n_scored=len(scores), nll=mean_nll(scores), perplexity=perplexity(mean_nll(scores)),
        low=perplexity(interval.low), high=perplexity(interval.high),
        curve={"index": index.tolist(), "nll": level.tolist()},
        tokens_per_second=1.0, nll_file=f"{key}.f32", tokens_sha256=sha256,
        placement="reanchor", slack=319, stopped="",
    )  # fmt: skip


def add_speed(run: RunFolder, n_ctx: int, ms: float, spread: float = 0.1) -> None:
    add(
        run, "speed", f"ctx-{n_ctx}",
        {"n_ctx": n_ctx, "n_discard": 1, "placement": "reanchor", "slack": None},
        name="stream, discard 1, reanchor", ms_per_token=ms, ms_q1=ms - spread, ms_q3=ms + spread,
        baseline="plain decode", baseline_ms=ms, speed=1.0, speed_q1=1.0, speed_q3=1.0, p50=ms,
        p90=ms, p99=ms, worst=ms, ms_per_eviction=None, auto="reanchor", n_samples=3, n_tokens=9,
    )  # fmt: skip


def add_recall(run: RunFolder, accuracy: float) -> None:
    point = {
        "distance": 100, "accuracy": accuracy, "low": accuracy - 0.1, "high": accuracy + 0.1,
        "inside": True, "n": 40,
    }  # fmt: skip
    add(run, "recall", "stream", {}, chance=0.25, n_ctx=512, window_edge=500, points=[point])


def add_memory(run: RunFolder, growth: int) -> None:
    points = [{"n_tokens": n, "resident_bytes": 2**28 + n} for n in (1000, 2000)]
    add(
        run, "memory", "ctx-512", {"n_ctx": 512}, kv_bytes_computed=2**20,
        kv_bytes_allocated=2**21, points=points, growth_bytes=growth, grew_at=None,
    )  # fmt: skip


def fill(run: RunFolder) -> RunFolder:
    scores = np.random.default_rng(0).gamma(2.0, 2.0, N_TOKENS)
    add_scores(run, scores)
    add_scores(run, scores + 2.0, n_keep=0)
    add_speed(run, 512, 5.0)
    add_speed(run, 2048, 9.0)
    add_recall(run, 0.8)
    add_memory(run, 0)
    return run


class Page(HTMLParser):
    """What a browser would see: tags, and text outside of them."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.links: list[str] = []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_report_stands_alone(tmp_path: Path) -> None:
    run = fill(new_run(tmp_path / "run"))
    assert write_report([run], run.path) == []
    page = Page(run.path / "report.html")
    assert page.tags.count("svg") == 5
    assert page.tags.count("table") == 4
    assert "script" not in page.tags
    # Only references within the page itself.
    assert all(link.startswith("#") for link in page.links if link)
    for name in ("perplexity", "speed", "length", "recall", "memory"):
        assert (run.path / "plots" / f"{name}.svg").read_text().lstrip().startswith("<?xml")
        assert (run.path / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert f"plots/{name}.svg" in (run.path / "report.md").read_text()
    assert "4+508" in page.text
    assert "4+508" in (run.path / "report.md").read_text()


def test_one_report_of_several_runs(tmp_path: Path) -> None:
    one, other = new_run(tmp_path / "one"), new_run(tmp_path / "other", "gemma 1B")
    add_speed(one, 512, 5.0)
    add_speed(other, 2048, 9.0)
    write_report([one, other], tmp_path / "both")
    page = Page(tmp_path / "both" / "report.html")
    assert page.text.count("measured in") == 2
    assert "gemma 1B" in page.text
    # Two contexts make a line.
    assert "length" in {path.stem for path in (tmp_path / "both" / "plots").iterdir()}


def test_speed_and_perplexity_together_show_the_trade_off(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    scores = np.random.default_rng(0).gamma(2.0, 2.0, N_TOKENS)
    for n_discard in (1, 8):
        add_scores(run, scores + n_discard / 100)
        add_speed(run, 512, 5.0)
        for line in (tmp_path / "run" / "results.jsonl").read_text().splitlines()[-2:]:
            record = json.loads(line)
            record["key"] += f"-{n_discard}"
            record["settings"]["n_discard"] = n_discard
            with (tmp_path / "run" / "results.jsonl").open("a") as file:
                file.write(json.dumps(record) + "\n")
    write_report([run], run.path)
    assert "discard 8" in (run.path / "plots" / "trade-off.svg").read_text()


def test_text_from_outside_is_never_markup(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", HOSTILE)
    add(run, "ppl", HOSTILE, {}, skipped=HOSTILE)
    write_report([run], run.path)
    page = Page(run.path / "report.html")
    assert "script" not in page.tags
    assert HOSTILE in page.text
    markdown = (run.path / "report.md").read_text()
    assert "<script" not in markdown
    assert "Not measured: &lt;script>" in markdown


def test_the_same_run_gives_the_same_plots(tmp_path: Path) -> None:
    run = fill(new_run(tmp_path / "run"))
    write_report([run], tmp_path / "once")
    write_report([run], tmp_path / "twice")
    for once in (tmp_path / "once" / "plots").glob("*.svg"):
        assert once.read_bytes() == (tmp_path / "twice" / "plots" / once.name).read_bytes()


def test_without_matplotlib_there_are_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    run = fill(new_run(tmp_path / "run"))
    (remark,) = write_report([run], run.path)
    assert "pip install matplotlib" in remark
    page = Page(run.path / "report.html")
    assert "pip install matplotlib" in page.text
    assert page.tags.count("table") == 4
    assert "svg" not in page.tags


def test_a_run_without_results_has_a_report(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    assert write_report([run], run.path) == []
    assert "table" not in Page(run.path / "report.html").tags


def test_what_matters_is_marked_and_trifles_are_not(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    scores = draw.gamma(2.0, 2.0, N_TOKENS)
    a, b = new_run(tmp_path / "a"), new_run(tmp_path / "b")
    for run, worse, ms, accuracy, growth in ((a, 0.0, 5.0, 0.8, 0), (b, 0.02, 5.9, 0.3, 2**24)):
        add_scores(run, scores + worse + draw.normal(0, 0.01, N_TOKENS))
        add_scores(run, scores + draw.normal(0, 0.01, N_TOKENS), n_keep=8)
        add_speed(run, 512, ms)
        add_speed(run, 1024, ms, spread=2.0)
        add_recall(run, accuracy)
        add_memory(run, growth)
    found = {(one.kind, one.what): one for one in compare(a, b)}
    matters = {kind: what for (kind, what), one in found.items() if one.matters}
    assert matters.keys() == {"ppl", "speed", "recall", "memory"}
    assert "4+508" in matters["ppl"]
    assert "n_ctx 512" in matters["speed"]
    assert "+0.02" in found["ppl", matters["ppl"]].why
    assert found["speed", matters["speed"]].ratio == pytest.approx(5.9 / 5.0)
    assert not any(one.differs for one in found.values())
    assert not any(one.matters for one in compare(a, a))


def test_perplexities_of_different_tokens_are_not_compared(tmp_path: Path) -> None:
    scores = np.random.default_rng(0).gamma(2.0, 2.0, N_TOKENS)
    a, b = new_run(tmp_path / "a"), new_run(tmp_path / "b")
    add_scores(a, scores)
    add_scores(b, scores + 3, sha256="other")
    (one,) = compare(a, b)
    assert not one.matters
    assert "different texts" in one.why


def test_without_the_scores_of_tokens_intervals_are_compared(tmp_path: Path) -> None:
    scores = np.random.default_rng(0).gamma(2.0, 2.0, N_TOKENS)
    a, b, c = (new_run(tmp_path / name) for name in "abc")
    for run, worse in ((a, 0.0), (b, 0.01), (c, 1.0)):
        add_scores(run, scores + worse)
    (a.arrays / "4+508.f32").unlink()
    (near,), (far,) = compare(a, b), compare(a, c)
    assert "not here" in near.why
    assert not near.matters
    assert far.matters


def test_what_one_run_lacks_is_said(tmp_path: Path) -> None:
    a, b = new_run(tmp_path / "a"), new_run(tmp_path / "b")
    add_speed(a, 512, 5.0)
    (speed,) = a.records()
    add(b, "speed", "ctx-512", speed["settings"], skipped="no room")
    add_memory(b, 0)
    assert [(one.kind, one.why) for one in compare(a, b)] == [
        ("speed", "measured in A only"),
        ("memory", "measured in B only"),
    ]


def test_what_differs_is_named_and_what_is_equal_compared(tmp_path: Path) -> None:
    scores = np.random.default_rng(0).gamma(2.0, 2.0, N_TOKENS)
    a, b = new_run(tmp_path / "a"), new_run(tmp_path / "b")
    for n_keep in (4, 8):
        add_scores(a, scores, n_keep=n_keep)
        add_scores(b, scores + 1, n_keep=n_keep, n_discard="half")
    add_scores(b, scores, n_keep=2, n_discard=64)
    found = compare(a, b)
    assert [one.differs for one in found[:2]] == [(("n_discard", 1, "half"),)] * 2
    assert all(one.matters for one in found[:2])
    assert found[2].why == "measured in B only"
    assert circumstances(a, b) == []
    config = dict(b.config)
    config["model"] = {**config["model"], "file": "other.gguf"}
    other = RunFolder.create(tmp_path / "c", config)
    assert circumstances(a, other) == [("model", a.config["model"]["file"], "other.gguf")]


def record(kind: str = "ppl", **settings: Any) -> dict[str, Any]:
    return {"kind": kind, "key": "", "settings": settings, "result": {}}


@pytest.mark.parametrize(
    ("mine", "theirs", "paired"),
    [
        ([1], [1], [(1, 1)]),
        ([1], [8], [(1, 8)]),
        ([1, 8], [8, 64], [(1, 64), (8, 8)]),
        ([1, 8], [64], [(1, None), (8, None), (None, 64)]),  # which of them was changed?
        ([], [1], [(None, 1)]),
    ],
)
def test_which_belong_together(
    mine: list[int], theirs: list[int], paired: list[tuple[int | None, int | None]]
) -> None:
    a, b = ([record(n_ctx=512, n_discard=n) for n in some] for some in (mine, theirs))
    found = [
        tuple(one and one["settings"]["n_discard"] for one in (pair.a, pair.b))
        for pair in pairs(a, b)
    ]
    assert found == paired


def test_what_is_measured_is_not_what_differs() -> None:
    some = record("recall", where="pinned", n_ctx=512), record("recall", where="stream", n_ctx=512)
    assert [(pair.a, pair.b) for pair in pairs(some[:1], some[1:])] == [
        (some[0], None),
        (None, some[1]),
    ]


def test_of_too_few_tokens_nothing_is_said(tmp_path: Path) -> None:
    a, b = new_run(tmp_path / "a"), new_run(tmp_path / "b")
    for run, worse in ((a, 0), (b, 1)):
        add_scores(run, np.full(N_TOKENS, 2.0))
        np.array([1.0 + worse, 2.0 + worse], "<f4").tofile(run.arrays / "4+508.f32")
    (one,) = compare(a, b)
    assert "too few" in one.why
    assert not one.matters
