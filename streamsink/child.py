"""Work that may die: done in a process of its own, with limits of time and memory.

llama.cpp answers a file that it did not expect with an abort as often as with an error, and an
abort takes the whole process. A child's death is an answer.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any, TypeAlias

from streamsink import errors
from streamsink.errors import StreamsinkError

Answer: TypeAlias = dict[str, Any]

# No core file, no debugger called for a backtrace (ggml.c: ggml_print_backtrace).
QUIET = {"GGML_NO_BACKTRACE": "1"}
# A trial needs no GPU, and a GPU's runtime takes long to start and reserves address space.
NO_GPU = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "", "GGML_VK_VISIBLE_DEVICES": ""}


class Died(Exception):
    """The child gave no answer; the text says what became of it."""


def ask(
    module: str, request: Answer, *, seconds: float, n_bytes: int | None, gpu: bool = False
) -> Answer:
    """Let a module answer a request in another process.

    Parameters
    ----------
    module : str
        Calls `serve` when run.
    request : dict
        What it is given; JSON.
    seconds : float
        How long it may take.
    n_bytes : int or None
        How much memory of its own it may take, on Linux; no limit where it may see a GPU, whose
        driver reserves what it likes.
    gpu : bool
        Whether it may see the GPUs.

    Raises
    ------
    StreamsinkError
        What the module raised.
    Died
        It aborted, ran too long or took too much.
    """
    environment = {**os.environ, **QUIET, **({} if gpu else NO_GPU)}
    try:
        done = subprocess.run(
            [sys.executable, "-m", module],
            input=json.dumps({"n_bytes": n_bytes, "request": request}),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env=environment,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        raise Died(f"no answer within {seconds:.0f} s") from None
    try:
        answer: Answer = json.loads(done.stdout)
    except ValueError:
        raise Died(_cause_of_death(done)) from None
    if "error" in answer:
        kind, text = answer["error"]
        raise getattr(errors, kind, StreamsinkError)(text)
    return answer


def _cause_of_death(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    told = next((line for line in lines if "GGML_ASSERT" in line or "what():" in line), "")
    told = told or (lines[-1] if lines else "")
    if done.returncode >= 0:
        return told or f"exit code {done.returncode}"
    try:
        name = signal.Signals(-done.returncode).name
    except ValueError:
        name = f"signal {-done.returncode}"
    return f"{name}{': ' + told if told else ''}"


def serve(answer: Callable[[Answer], Answer]) -> None:
    """Read a request from stdin, keep to its limits, and write the answer to stdout."""
    out = os.dup(1)
    os.dup2(2, 1)  # what native code prints is no answer
    given = json.load(sys.stdin)
    _limit(given["n_bytes"])
    try:
        said = answer(given["request"])
    except StreamsinkError as error:
        said = {"error": [type(error).__name__, str(error)]}
    with os.fdopen(out, "w", encoding="utf-8") as file:
        json.dump(said, file)


def _limit(n_bytes: int | None) -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if n_bytes is not None and sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_DATA, (n_bytes, n_bytes))
