"""Tries files one after another, each in forks of this process: ``python -m tests.try_files``.

Paths come by stdin, a line each, and the answer is a line: ``refused: WHY``, ``died: SIGNAL`` in
the trial that every new file is put to, or what a stream on it came to, after that trial:
``fine``, ``failed: WHY``, ``crashed: SIGNAL``. A new process for every file would take a second
each, for imports.
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from streamsink import Model, Sampling, SinkPolicy
from streamsink.errors import StreamsinkError
from streamsink.llama import preflight_child as trial
from streamsink.llama.weights import Weights
from streamsink.system.serve import limit

SECONDS = 30
FINE, REFUSED, RAISED = 0, 10, 11


def main() -> None:
    """Answer until there are no more paths."""
    if hasattr(os, "sched_setaffinity"):  # with so small a file a second thread is in the way
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    for line in sys.stdin:
        path = Path(line.rstrip("\n"))
        code, told = _in_a_fork(_try, path)
        if code == FINE:
            code, told = _in_a_fork(_use, path)
            verdict = {FINE: "fine", REFUSED: "failed"}.get(code, "crashed")
        else:
            verdict = {REFUSED: "refused"}.get(code, "died")
        print(f"{verdict}: {told}", flush=True)


def _in_a_fork(work: Callable[[Path], None], path: Path) -> tuple[int, str]:
    """Exit code, or minus the signal that ended it, and what it said."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os._exit(_guarded(work, path, write))
    os.close(write)
    with os.fdopen(read, encoding="utf-8", errors="replace") as pipe:
        told = " ".join(pipe.read().split())
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status, signal.Signals(-status).name if status < 0 else told


def _guarded(work: Callable[[Path], None], path: Path, write: int) -> int:
    signal.alarm(SECONDS)
    limit(4 * 2**30)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    try:
        work(path)
    except StreamsinkError as error:
        os.write(write, str(error).encode("utf-8", "replace")[:2000])
        return REFUSED
    except BaseException:
        os.write(write, traceback.format_exc().encode("utf-8", "replace")[-2000:])
        return RAISED
    return FINE


def _try(path: Path) -> None:
    trial.answer({"path": str(path)})


def _use(path: Path) -> None:
    """What a person does next."""
    with Model(Weights(path)) as model, model.stream(SinkPolicy(), n_ctx=64) as stream:
        stream.feed("The white whale swam on, and on, and on, and on, and on. " * 4)
        for _ in stream.generate(24, sampling=Sampling(seed=1), ignore_eos=True):
            pass


if __name__ == "__main__":
    main()
