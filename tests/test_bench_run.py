"""Runs: written down as they go, gone on with, and told in the terminal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from streamsink.bench import plan, suite
from streamsink.bench.folder import RunFolder
from streamsink.bench.memory import MemorySettings, watch
from streamsink.bench.plan import Plan
from streamsink.bench.ppl import Cell, Reading
from streamsink.bench.speed import SpeedSettings
from streamsink.bench.task import Place, Setup, Task
from streamsink.errors import CapabilityError, StreamsinkError, UsageError
from streamsink.gguf.settings import CacheSettings
from streamsink.llama.weights import Weights
from streamsink.model import Model

STREAMSINK = [sys.executable, "-c", "from streamsink.cli.main import main; main()"]


def task(key: str, **result: Any) -> Task:
    return Task("ppl", key, {"n": 1}, 1.0, lambda place: result)


class Silent:
    """Watches, and remembers."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def begins(self, task: Task) -> None:
        self.seen.append(task.key)

    def goes_on(self, done: float) -> None:
        pass

    def ends(self, task: Task, result: dict[str, Any]) -> None:
        pass


def test_a_torn_line_counts_as_not_written(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", {"seed": 1})
    folder.append(task("a"), {"x": 1}, 0.5)
    with (folder.path / "results.jsonl").open("a") as file:
        file.write('{"kind": "ppl", "key": "b", "resu')
    assert not folder.has(task("b"))
    folder.append(task("b"), {"x": 2}, 0.5)
    again = RunFolder(tmp_path / "run")
    assert [(r["key"], r["result"]) for r in again.records()] == [("a", {"x": 1}), ("b", {"x": 2})]
    assert again.config == {"seed": 1}


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not the folder of a run"):
        RunFolder(tmp_path)
    RunFolder.create(tmp_path / "run", {})
    with pytest.raises(UsageError, match="--resume"):
        RunFolder.create(tmp_path / "run", {})


def test_a_run_goes_on_where_it_was(tmp_path: Path, tiny_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", {})

    def fails(place: Place) -> dict[str, Any]:
        raise StreamsinkError("the disk is full")

    def cannot(place: Place) -> dict[str, Any]:
        raise CapabilityError("it is recurrent")

    broken = Task("ppl", "b", {}, 1.0, fails)
    with Model(Weights(tiny_path)) as model:
        with pytest.raises(StreamsinkError, match="disk"):
            suite.run([task("a", x=1), broken, task("c", x=3)], model, folder, 0, Silent())
        watcher = Silent()
        tasks = [task("a", x=9), Task("ppl", "b", {}, 1.0, cannot), task("c", x=3)]
        suite.run(tasks, model, folder, 0, watcher)
    assert watcher.seen == ["b", "c"]
    results = {record["key"]: record["result"] for record in folder.records()}
    assert results == {"a": {"x": 1}, "b": {"skipped": "it is recurrent"}, "c": {"x": 3}}


@pytest.mark.parametrize("make", [plan.quick, plan.full])
def test_a_plan_survives_json(make: Any) -> None:
    setup = Setup(3, CacheSettings("q8_0", rope_scaling="yarn", rope_scale=2.0))
    made = make(512, Reading(("a.txt",), 100, "replace"), setup)
    assert Plan.from_dict(json.loads(json.dumps(made.as_dict()))) == made
    keys = [(task.kind, task.key) for task in made.tasks()]
    assert len(keys) == len(set(keys))
    assert {kind for kind, _ in keys} == {"speed", "ppl", "recall", "memory"}


def test_a_plan_that_is_none() -> None:
    with pytest.raises(UsageError, match="--resume"):
        Plan.from_dict({"cells": [{"nonsense": 1}]})


def test_speed_pairs_every_variant_with_its_baseline(tmp_path: Path, tiny_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", {})
    tasks = Plan(speed=SpeedSettings((512,), (1, "half"), samples=1)).tasks()
    with Model(Weights(tiny_path)) as model:
        suite.run(tasks, model, folder, 0, Silent())
    records = list(folder.records())
    assert len(records) == 2 * 3 + 6 + 4
    for record in records:
        result = record["result"]
        assert 0 < result["ms_q1"] <= result["ms_per_token"] <= result["ms_q3"]
        assert result["p50"] <= result["p90"] <= result["p99"] <= result["worst"]
        assert result["speed"] > 0
        evicts = result["name"].startswith(("stream", "feed", "score"))
        assert (result["ms_per_eviction"] is not None) == evicts


def test_memory_says_where_it_grows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_path: Path
) -> None:
    sizes = iter([1000] * 40 + [9000] * 200)
    monkeypatch.setattr("streamsink.bench.memory.resident_bytes", lambda: next(sizes))
    with Model(Weights(tiny_path)) as model:
        place = Place(model, tmp_path, 0, lambda done: None)
        result = watch(MemorySettings(64, 8000), place)
        cell = model.cell_bytes("f16", "f16")
    assert result["growth_bytes"] == 8000
    points = {point["n_tokens"]: point["resident_bytes"] for point in result["points"]}
    assert points[result["grew_at"]] == 9000
    assert result["kv_bytes_computed"] == 64 * cell
    assert result["kv_bytes_allocated"] >= result["kv_bytes_computed"]
    # 3 layers, 2 heads of 16 for keys and values, two bytes each.
    assert cell == 3 * 2 * 16 * 2 * 2
    with pytest.raises(UsageError, match="--tokens"):
        MemorySettings(64, 100)


# -- the command --------------------------------------------------------------------------------


def run(*arguments: str, given: str = "", cwd: Path | None = None) -> Any:
    return subprocess.run(
        [*STREAMSINK, "bench", *arguments],
        input=given,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        cwd=cwd,
    )


def test_a_killed_run_is_gone_on_with(tmp_path: Path, tiny_path: Path) -> None:
    grid = ["ppl", str(tiny_path), "--ctx", "64,96", "--keep", "1,4", "--tokens", "6000"]
    whole = run(*grid, "--out", str(tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr
    killed = subprocess.Popen(
        [*STREAMSINK, "bench", *grid, "--out", str(tmp_path / "killed")],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    results = tmp_path / "killed" / "results.jsonl"
    while not (results.exists() and results.read_text().count("\n") >= 2):
        assert killed.poll() is None
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    before = results.read_text().splitlines()[:2]
    assert len(list(RunFolder(tmp_path / "killed").records())) < 6
    resumed = run("--resume", str(tmp_path / "killed"))
    assert resumed.returncode == 0, resumed.stderr
    assert results.read_text().splitlines()[:2] == before

    def figures(name: str) -> dict[str, float]:
        return {r["key"]: r["result"]["nll"] for r in RunFolder(tmp_path / name).records()}

    assert figures("killed") == figures("whole")
    assert len(figures("whole")) == 6


@pytest.mark.usefixtures("ctrl_c_interrupts")
def test_ctrl_c_leaves_a_run_and_says_how_to_go_on(tmp_path: Path, tiny_path: Path) -> None:
    arguments = ["ppl", str(tiny_path), "--ctx", "64", "--tokens", "200000"]
    child = subprocess.Popen(
        [*STREAMSINK, "bench", *arguments, "--out", str(tmp_path / "run")],
        stderr=subprocess.PIPE,
        text=True,
    )
    while not any(path.stat().st_size for path in tmp_path.glob("run/arrays/*.f32")):
        assert child.poll() is None
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 130
    assert f"streamsink bench --resume {tmp_path / 'run'}" in said
    assert "Traceback" not in said
    (record,) = RunFolder(tmp_path / "run").records()
    assert record["result"]["interrupted"]
    assert 0 < record["result"]["n_scored"] < 200_000
    assert record["result"]["perplexity"] > 1
    task = Task("ppl", record["key"], {}, 1.0, lambda place: {})
    assert not RunFolder(tmp_path / "run").has(task)


def test_json_and_standard_input(tmp_path: Path, tiny_path: Path) -> None:
    done = run(
        "ppl", str(tiny_path), "--text", "-", "--ctx", "64", "--keep", "1,2", "--json",
        given="the sea and the ship\n" * 100, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert [record["kind"] for record in printed["results"]] == ["ppl"] * 3
    scored = {record["result"]["n_scored"] for record in printed["results"]}
    assert len(scored) == 1
    assert printed["environment"]["llama_cpp_python"]
    assert len(printed["model"]["sha256"]) == 64
    (folder,) = (tmp_path / "streamsink-runs").iterdir()
    assert (folder / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["ppl", "--text", "/none"], "--text /none"),
        (["ppl", "--errors", "ignore"], "--errors ignore"),
        (["ppl", "--keep", "600"], "--keep 600"),
        (["ppl", "--keep", "four"], "--keep four"),
        (["ppl", "--policy", "sinc"], "--policy sinc"),
        (["speed", "--ctx", "5"], "--ctx 5"),
        (["speed", "--samples", "0"], "--samples 0"),
        (["memory", "--tokens", "5"], "--tokens 5"),
        (["ppl", "--resume", "/none", "--ctx", "64"], "drop --ctx"),
        (["ppl", "m.gguf", "--resume", "/none"], "drop model"),
        (["sped"], "did you mean bench speed?"),
        (["--slack", "9"], "No such option"),
        (["speed", "--rope-scaling", "ntk"], "--rope-scaling ntk"),
        (["recall", "--cache-type-k", "q9"], "--cache-type-k q9"),
        (["--resume", "/none"], "/none is not the folder of a run"),
        (["report", "/none"], "/none is not the folder of a run"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], says: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


def test_text_that_is_not_utf_8(tmp_path: Path, tiny_path: Path) -> None:
    (tmp_path / "latin").write_bytes("der Größte\n".encode("latin-1") * 50)
    arguments = ["ppl", str(tiny_path), "--text", str(tmp_path / "latin"), "--ctx", "64"]
    done = run(*arguments, "--out", str(tmp_path / "a"))
    assert done.returncode == 2
    assert "not UTF-8" in done.stderr
    done = run(*arguments, "--errors", "replace", "--out", str(tmp_path / "b"))
    assert done.returncode == 0, done.stderr


def test_environment_is_not_a_path(tmp_path: Path) -> None:
    assert Cell("sink", 64).key == "4+60_discard-1_auto-slack-auto"
    assert os.sep not in Cell("sink", 64).key
