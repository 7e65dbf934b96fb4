"""The cores of the machine: those this process may use, and how many of them others keep busy."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import NamedTuple

from streamsink.system import cgroup

TELLING = 0.05
"""Seconds that can be told from none: the system's counters go by ticks of 10 ms."""


class Cores(NamedTuple):
    """What this process may use.

    Attributes
    ----------
    n_physical : int
        Physical cores; hyper-threads slow llama.cpp down.
    n_logical : int
        Hardware threads.
    n_usable : int
        Cores that it can keep busy: the physical ones, within the quota of its cgroup, which is
        rounded down, since all threads halt together once it is spent; and within OpenMP's own
        limit, the environment's ``OMP_THREAD_LIMIT``.
    """

    n_physical: int
    n_logical: int
    n_usable: int


def cores() -> Cores:
    """The cores that this process may use."""
    import psutil

    n_logical = len(_allowed())
    n_physical = max(1, min(psutil.cpu_count(logical=False) or 1, n_logical))
    limits = [n_physical, int(cgroup.quota() or n_physical), _openmp_limit() or n_physical]
    return Cores(n_physical, n_logical, max(1, min(limits)))


class Load:
    """How many hardware threads others keep busy, between two looks.

    Others are all but this process. What a hypervisor takes for other machines ("steal") is taken
    by others too.

    Parameters
    ----------
    busy : callable, optional
        Seconds for which the hardware threads that this process may use were busy, added up;
        ``None`` where nobody tells. By default the system is asked.
    own : callable, optional
        Seconds of CPU time that this process took.
    wall : callable, optional
        Seconds that passed.
    """

    def __init__(
        self,
        busy: Callable[[], float | None] | None = None,
        own: Callable[[], float] = time.process_time,
        wall: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._busy, self._own, self._wall = busy or busy_seconds, own, wall
        self._before: tuple[float | None, float, float] = (None, 0.0, 0.0)

    @classmethod
    def begun(cls) -> Load:
        """One that is looked at now."""
        load = cls()
        load.look()
        return load

    def look(self) -> float | None:
        """Hardware threads that were busy with others since the last look.

        ``None`` where that is not known: at the first look and right after one, and with counters
        that cannot be read or do not even show what this process took.
        """
        before, now = self._before, (self._busy(), self._own(), self._wall())
        self._before = now
        if before[0] is None or now[0] is None:
            return None
        busy, own, wall = now[0] - before[0], now[1] - before[1], now[2] - before[2]
        if wall < TELLING or (own > TELLING and busy < own / 2):
            return None
        return max(0.0, (busy - own) / wall)


def busy_seconds() -> float | None:
    """Seconds for which the hardware threads that this process may use were busy, added up."""
    import psutil

    try:
        times = psutil.cpu_times(percpu=True)
    except (OSError, ValueError, IndexError, NotImplementedError):
        return None
    allowed = [times[at] for at in _allowed() if at < len(times)]
    return sum(map(_busy, allowed)) if allowed else None


def _busy(times: NamedTuple) -> float:
    """Seconds for which one was busy; a guest's are counted among the user's already."""
    spent: dict[str, float] = times._asdict()
    idle = ("idle", "iowait", "guest", "guest_nice")
    return sum(seconds for name, seconds in spent.items() if name not in idle)


def _openmp_limit() -> int:
    """Threads that OpenMP may start; 0 without a limit."""
    given = os.environ.get("OMP_THREAD_LIMIT", "").strip()
    return int(given) if given.isdecimal() else 0


def _allowed() -> list[int]:
    """Numbers of the hardware threads that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
