"""How many threads a decode is to have: as many as there are cores that nobody else uses.

llama.cpp's threads wait for one another by spinning, many times in a token (ggml-cpu.c:
ggml_barrier). If another process has one of their cores, all wait for the one that does not run,
and two threads are slower than one. So the governor gives way, and takes the cores back when they
are free again.

Two things tell. The system's counters say how many cores others keep busy, whatever this process
does, so nothing has to be tried out. Where they say nothing, or threads of this very process take
the cores, the decode itself tells: threads that spin take all the time of their cores, and less
only if somebody else runs there. One thread cannot tell, so there more are tried after a while.

Processes that do so beside one another see each other's threads, and each gives way. Each waits a
time of its own before it takes a core back, so that they do not all take the same one.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from streamsink.system.cores import Cores, Load

INTERVAL = 0.1
"""Seconds between two looks: the counters go by ticks of 10 ms."""
COST = 200
"""An interval is at least so many times what a look costs: on many cores that is milliseconds."""
TRIFLE = 0.35
"""Part of a core that may be taken before it is given up. Alone on a machine up to 0.17 were
counted in 100 ms, beside one busy core 0.42 and more."""
FULL = 0.85
"""Part of their cores' time that threads take if they are alone: there 1.00, and 0.63 to 0.74
beside a busy core."""
LEAST_SECONDS = 0.02
"""Time of decodes from which that can be told."""
PATIENCE, MOST_PATIENCE = 0.1, 4.0
"""Seconds for which cores must be free before they are taken back; twice as long each time that
they have to be given up again at once."""
HELD = 1.0
"""Seconds after which that is no longer at once."""

OTHERS = "others use the cores"
SIBLINGS = "other streams of this process use them"


class Governor:
    """Chooses the number of threads of one context, from decode to decode.

    Parameters
    ----------
    cores : Cores
        What the process may use.
    load : Load
        What others use.
    spins : bool
        Whether decodes keep their threads busy throughout; where a GPU computes, they wait.
    wall, thread_cpu, process_cpu : callable, optional
        Clocks in seconds: what passed, and CPU time of the calling thread and of the process.
    draw : callable, optional
        A number from 0 to 1, by which the patience of processes differs.
    """

    def __init__(
        self,
        cores: Cores,
        load: Load,
        *,
        spins: bool = True,
        wall: Callable[[], float] = time.perf_counter,
        thread_cpu: Callable[[], float] = time.thread_time,
        process_cpu: Callable[[], float] = time.process_time,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._cores, self._load, self._spins = cores, load, spins
        self._wall, self._thread_cpu, self._process_cpu = wall, thread_cpu, process_cpu
        self._draw = draw
        self._room = cores.n_usable
        self._n = self._room
        self._crowd = self._crowd_before = 1
        self._cost = float("inf")
        self._look_at = float("-inf")
        self._raised: float | None = None
        self._free_since: float | None = None
        self._patience = self._wait = PATIENCE
        self._begun = (0.0, 0.0, 0.0)
        self._spent = [0.0, 0.0, 0.0]

    @property
    def n(self) -> int:
        """Threads of the decode that began last."""
        return self._n

    @property
    def why(self) -> str:
        """Why they are not as many as there are cores; '' if they are."""
        if self._n == self._cores.n_usable:
            return ""
        return SIBLINGS if self._room > self._n else OTHERS

    def begin(self, n_streams: int) -> int:
        """A decode begins: the threads that it is to have.

        Parameters
        ----------
        n_streams : int
            Decodes that this process has under way, this one included.
        """
        now = self._wall()
        if now >= self._look_at:
            self._look(now)
        self._crowd = max(self._crowd, n_streams)
        self._n = max(1, self._room // max(self._crowd, self._crowd_before))
        if self._n > 1 and self._spins:
            self._begun = (now, self._thread_cpu(), self._process_cpu())
        return self._n

    def end(self) -> None:
        """The decode is done."""
        if self._n > 1 and self._spins:
            wall, thread_cpu, process_cpu = self._begun
            spent = self._spent
            spent[0] += self._wall() - wall
            spent[1] += self._thread_cpu() - thread_cpu
            spent[2] += (self._process_cpu() - process_cpu) / self._n

    # -- looking --------------------------------------------------------------------------------

    def _look(self, now: float) -> None:
        taken = self._load.look()
        looked = self._wall()
        self._cost = min(self._cost, looked - now)
        self._look_at = looked + max(INTERVAL, COST * self._cost)
        self._settle(min(self._free(taken), self._undisturbed()), now)
        self._crowd, self._crowd_before = 1, self._crowd
        self._spent = [0.0, 0.0, 0.0]

    def _free(self, taken: float | None) -> int:
        """Cores that others leave, of hardware threads that they have taken."""
        if taken is None:
            return self._cores.n_usable
        # Two hardware threads of a core share what it can do: each counts as half of one.
        n_physical, n_logical, n_usable = self._cores
        free = n_physical * (1 - taken / n_logical)
        return max(1, min(n_usable, int(free + TRIFLE)))

    def _undisturbed(self) -> int:
        """Threads that had a core each, by what the decodes since the last look took."""
        wall, thread_cpu, process_cpu = self._spent
        if wall < LEAST_SECONDS or min(thread_cpu, process_cpu) > FULL * wall:
            return self._cores.n_usable
        missing = self._n * (1 - min(thread_cpu, process_cpu) / wall)
        return max(1, self._room - max(1, round(missing)))

    def _settle(self, room: int, now: float) -> None:
        """Give cores up at once; take them back once they have been free for a while."""
        if self._raised is not None and now - self._raised > HELD:
            self._raised, self._patience = None, PATIENCE
        if room <= self._room:
            if room < self._room and self._raised is not None:
                self._raised, self._patience = None, min(MOST_PATIENCE, 2 * self._patience)
            self._room, self._free_since = room, None
        elif self._free_since is None:
            self._free_since = now
            self._wait = self._patience * (1 + self._draw())
        elif now - self._free_since >= self._wait:
            self._room, self._raised, self._free_since = room, now, None
