"""A stream on a machine that has other things to do: threads that give way against fixed numbers.

Each sample generates a piece of text with threads on ``auto`` and with every fixed number, one
after another, so that all of them meet the same neighbours.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from streamsink.bench.task import Place, Task
from streamsink.core.policy import SinkPolicy
from streamsink.core.sampling import Sampling
from streamsink.engine.stream import Stream
from streamsink.errors import StreamsinkError, UsageError
from streamsink.gguf.settings import Threads
from streamsink.system.cores import cores

N_SAMPLE = 64
"""Tokens of a sample."""
SETTLED = 16
"""Tokens before each sample, in which threads find their number."""
POLICY = SinkPolicy(4, 1)

SPIN = """
import os
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(100_000):
        pass
"""
"""A busy core, as long as there is a parent."""

STREAM = """
import os, sys
from streamsink import Model, Sampling, SinkPolicy
path, n_ctx, threads = sys.argv[1:]
parent = os.getppid()
with Model.open(path) as model:
    threads = threads if threads == "auto" else int(threads)
    with model.stream(SinkPolicy(4, 1), int(n_ctx), threads=threads) as stream:
        stream.feed("Call me Ishmael.")
        for step in stream.generate(None, sampling=Sampling(seed=1), ignore_eos=True):
            if step.index == 24:
                print("ready", flush=True)
            if os.getppid() != parent:
                break
"""
"""Another process that streams, as long as there is a parent."""


class Case(NamedTuple):
    """Who else is there: busy cores, and other processes that stream."""

    name: str
    n_spinning: int = 0
    n_streaming: int = 0


CASES = (
    Case("alone"),
    Case("beside one busy core", n_spinning=1),
    Case("beside two busy cores", n_spinning=2),
    Case("beside another process of ours", n_streaming=1),
)


@dataclass(frozen=True, slots=True)
class BusySettings:
    """What is timed.

    Parameters
    ----------
    n_ctx : tuple of int
        Contexts.
    samples : int
        Samples of each number of threads in each case.

    Raises
    ------
    UsageError
        A number out of range.
    """

    n_ctx: tuple[int, ...] = (256,)
    samples: int = 3

    def __post_init__(self) -> None:
        for n_ctx in self.n_ctx:
            POLICY.check(n_ctx)
        if self.samples < 1:
            raise UsageError(f"--samples {self.samples} is not possible: 1 or more")


def tasks(settings: BusySettings) -> list[Task]:
    """One task for each case and context."""
    return [
        Task(
            kind="busy",
            key=f"busy-{case.name.replace(' ', '-')}_ctx-{n_ctx}",
            settings={"n_ctx": n_ctx, "case": case.name, "samples": settings.samples},
            weight=float(N_SAMPLE * settings.samples * (1 + case.n_spinning + case.n_streaming)),
            run=partial(_measure, case, n_ctx, settings.samples),
        )
        for n_ctx in settings.n_ctx
        for case in CASES
    ]


def _measure(case: Case, n_ctx: int, n_samples: int, place: Place) -> dict[str, Any]:
    """Take the samples of one case.

    Returns
    -------
    dict
        ``threads``, a list: for ``auto`` and every fixed number ``n``, ``rate`` in tokens a second
        with quartiles, and ``cpu_ms_per_token``; ``share``, the rate of ``auto`` by the best fixed
        number's in each sample, with quartiles; ``best``, that number.
    """
    numbers: list[Threads] = ["auto", *range(1, cores().n_usable + 1)]
    rates: dict[Threads, list[float]] = {n: [] for n in numbers}
    cpu: dict[Threads, list[float]] = {n: [] for n in numbers}
    with ExitStack() as stack:
        streams: dict[Threads, Stream] = {}
        for n in numbers:
            streams[n] = stack.enter_context(place.stream(POLICY, n_ctx, threads=n))
            streams[n].feed("Call me Ishmael. " * (n_ctx // 4))
        for _ in range(case.n_spinning):
            stack.enter_context(_child(SPIN))
        for done in range(n_samples):
            for n in numbers:
                with ExitStack() as others:
                    for _ in range(case.n_streaming):
                        given = (str(place.model.path), str(n_ctx), str(n))
                        others.enter_context(_child(STREAM, given, waits=True))
                    seconds, cpu_seconds = _generate(streams[n], place.seed)
                rates[n].append(N_SAMPLE / seconds)
                cpu[n].append(1e3 * cpu_seconds / N_SAMPLE)
            place.progress((done + 1) / n_samples)
    best = max(numbers[1:], key=lambda n: float(np.median(rates[n])))
    shares = np.array(rates["auto"]) / np.array(rates[best])
    return {
        "threads": [
            {
                "n": n,
                "rate": float(np.median(rates[n])),
                "rate_q1": float(np.percentile(rates[n], 25)),
                "rate_q3": float(np.percentile(rates[n], 75)),
                "cpu_ms_per_token": float(np.median(cpu[n])),
            }
            for n in numbers
        ],
        "best": best,
        "share": float(np.median(shares)),
        "share_q1": float(np.percentile(shares, 25)),
        "share_q3": float(np.percentile(shares, 75)),
        "n_samples": n_samples,
        "n_tokens": N_SAMPLE,
    }


def _generate(stream: Stream, seed: int) -> tuple[float, float]:
    """Seconds, and those of CPU time, that a sample takes."""
    wall = cpu = 0.0
    sampling = Sampling(seed=seed)
    for n, _ in enumerate(
        stream.generate(SETTLED + N_SAMPLE, sampling=sampling, ignore_eos=True), 1
    ):
        if n == SETTLED:
            wall, cpu = time.perf_counter(), time.process_time()
    return time.perf_counter() - wall, time.process_time() - cpu


@contextmanager
def _child(program: str, given: Sequence[str] = (), *, waits: bool = False) -> Iterator[None]:
    """Another process, until the end of the block; ``waits`` until it says that it is ready."""
    child = subprocess.Popen(
        [sys.executable, "-c", program, *given], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    try:
        assert child.stdout
        if waits and not child.stdout.readline():
            raise StreamsinkError("the process beside which a stream is to be timed did not begin")
        yield
    finally:
        child.kill()
        child.wait()
        if child.stdout:
            child.stdout.close()
