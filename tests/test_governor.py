"""Threads that give way: what the governor settles on, by clocks and loads that the test sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from streamsink.bench import busy as bench
from streamsink.bench.task import Place
from streamsink.core.policy import SinkPolicy
from streamsink.errors import UsageError
from streamsink.gguf.settings import CacheSettings
from streamsink.llama import threads as native
from streamsink.llama.governor import INTERVAL, PATIENCE, Governor
from streamsink.llama.weights import Weights
from streamsink.model import Model
from streamsink.system import cgroup
from streamsink.system.cores import Cores, Load
from tests.tiny_gguf import SPECIALS

TOKENS = [len(SPECIALS) + (7 * at) % 200 for at in range(200)]


class Machine:
    """Cores, others who use some of them, and a process whose threads spin."""

    def __init__(self, n_cores: int = 2, spins: bool = True) -> None:
        self.now = self.process = self.thread = self.busy = 0.0
        self.others = 0.0
        self.tells = True
        self.cores = Cores(n_cores, n_cores, n_cores)
        self.governor = Governor(
            self.cores,
            Load(lambda: self.busy if self.tells else None, lambda: self.process, lambda: self.now),
            spins=spins,
            wall=lambda: self.now,
            thread_cpu=lambda: self.thread,
            process_cpu=lambda: self.process,
            draw=lambda: 0.0,
        )

    def decode(self, seconds: float, step: float = 0.02, n_streams: int = 1) -> list[int]:
        """Decode for a while; threads of each step."""
        found = []
        end = self.now + seconds
        while self.now < end:
            n = self.governor.begin(n_streams)
            found.append(n)
            free = max(0.0, self.cores.n_usable - self.others)
            runs = min(1.0, free / n) if self.others else 1.0
            if n <= free:
                runs = 1.0
            self.now += step
            self.thread += step * runs
            self.process += step * runs * n
            self.busy += step * min(self.cores.n_usable, runs * n + self.others)
            self.governor.end()
        return found


def test_alone_it_has_all_cores() -> None:
    machine = Machine(4)
    assert set(machine.decode(5)) == {4}
    assert machine.governor.why == ""


@pytest.mark.parametrize(
    ("n_cores", "others", "left"), [(2, 1, 1), (2, 2, 1), (8, 3, 5), (8, 0.2, 8)]
)
def test_it_gives_way_within_a_few_steps_and_comes_back(
    n_cores: int, others: float, left: int
) -> None:
    machine = Machine(n_cores)
    machine.decode(1)
    machine.others = others
    beside = machine.decode(2)
    assert beside[-1] == left
    assert beside.index(left) * 0.02 <= 3 * INTERVAL
    assert bool(machine.governor.why) == (left < n_cores)
    machine.others = 0
    after = machine.decode(2)
    assert after[-1] == n_cores
    assert after.index(n_cores) * 0.02 <= 2 * PATIENCE + 4 * INTERVAL


def test_decodes_tell_where_the_system_does_not() -> None:
    machine = Machine(2)
    machine.tells = False
    machine.decode(1)
    machine.others = 1
    assert machine.decode(1)[-1] == 1


def test_where_a_gpu_computes_waiting_threads_tell_nothing() -> None:
    machine = Machine(2, spins=False)
    machine.tells = False
    machine.others = 1
    assert set(machine.decode(2)) == {2}


def test_decodes_at_once_share_the_cores() -> None:
    machine = Machine(4)
    assert set(machine.decode(1, n_streams=2)) == {2}
    assert "streams of this process" in machine.governor.why
    assert machine.decode(1)[-1] == 4


def test_two_governors_settle_on_a_core_each() -> None:
    """Each sees the other's threads, and neither takes back what the other uses."""
    machine = Machine(2)
    machine.others = 1  # the other one has settled
    assert machine.decode(20)[-500:] == [1] * 500


def test_a_number_is_kept(model: Model) -> None:
    for given, n in ((1, 1), (3, 3)):
        with model.stream(SinkPolicy(4), 64, threads=given) as stream:
            stream.feed(TOKENS)
            assert stream.stats.threads == (n, n, "")


def test_a_tiny_model_has_one_thread(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    with model.stream(SinkPolicy(4), 64) as stream:
        stream.feed(TOKENS)
        assert stream.stats.threads == (1, 1, "")
    monkeypatch.setattr(native, "TINY", 0)
    monkeypatch.setattr(native, "cores", lambda: Cores(2, 2, 2))
    with model.stream(SinkPolicy(4), 64, threads=2, threads_batch="auto") as stream:
        stream.feed(TOKENS)
        assert stream.stats.threads == (2, 2, "")


def test_logits_do_not_depend_on_the_number_of_threads(model: Model) -> None:
    found = []
    for n in (1, 2, 3):
        with model.stream(SinkPolicy(4), 64, "f32", "f32", threads=n) as stream:
            stream.feed(TOKENS)
            found.append(stream.logits())
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


def test_settings_say_auto() -> None:
    assert CacheSettings().threads == "auto" == CacheSettings(threads=None).threads
    assert CacheSettings().governs == (True, True)
    assert CacheSettings(threads=2).governs == (False, False)
    assert CacheSettings(threads=2).n_threads(8) == (2, 2)
    with pytest.raises(UsageError, match="threads"):
        CacheSettings(threads="many")  # type: ignore[arg-type]


def test_a_quota_is_read(tmp_path: Path) -> None:
    """The smallest on the way up counts, in both versions of cgroups."""
    own = tmp_path / "own"
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "cpu" / "c").mkdir(parents=True)
    own.write_text("0::/a/b\n")
    assert cgroup.quota(tmp_path, own) is None
    (tmp_path / "a" / "b" / "cpu.max").write_text("max 100000\n")
    (tmp_path / "a" / "cpu.max").write_text("250000 100000\n")
    assert cgroup.quota(tmp_path, own) == 2.5
    own.write_text("4:cpu,cpuacct:/c\n")
    (tmp_path / "cpu" / "c" / "cpu.cfs_quota_us").write_text("150000\n")
    (tmp_path / "cpu" / "c" / "cpu.cfs_period_us").write_text("100000\n")
    assert cgroup.quota(tmp_path, own) == 1.5


def test_it_is_timed_beside_others(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "N_SAMPLE", 8)
    monkeypatch.setattr(bench, "SETTLED", 2)
    tasks = bench.tasks(bench.BusySettings((64,), samples=1))
    assert len({task.key for task in tasks}) == len(bench.CASES)
    with Model(Weights(tiny_path)) as model:
        for task in (tasks[1], tasks[3]):
            found = task.run(Place(model, tmp_path, 0, lambda part: None))
            assert [one["n"] for one in found["threads"]][:2] == ["auto", 1]
            assert all(one["rate"] > 0 for one in found["threads"])
            assert found["share"] > 0
