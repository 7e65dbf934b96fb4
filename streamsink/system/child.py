"""Work that may die: done in a process of its own, with limits of time and memory.

llama.cpp answers a file that it did not expect with an abort as often as with an error, and a chat
template out of a file is a program. That a child died is an answer too. `streamsink.system.serve`
is the child's side.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from _thread import start_new_thread
from functools import partial
from pathlib import Path
from typing import IO

from streamsink import errors
from streamsink.errors import StreamsinkError
from streamsink.system.closing import Closing
from streamsink.system.serve import Answer

# No debugger is called for a backtrace (ggml.c: ggml_print_backtrace), and threads that wait leave
# their core to others: on a busy machine milliseconds would become seconds.
QUIET = {"GGML_NO_BACKTRACE": "1", "OMP_WAIT_POLICY": "passive", "PYTHONUTF8": "1"}
# A trial needs no GPU, and a GPU's runtime takes long to start and reserves address space.
NO_GPU = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "", "GGML_VK_VISIBLE_DEVICES": ""}

# Runs a module like ``python -m``, which looks in the current folder first and so would run what
# anyone has put there.
ROOT = str(Path(__file__).resolve().parents[2])
BEGIN = (
    "import sys; sys.path[0] = sys.argv.pop(1); import runpy; import importlib.util as util; "
    # A child needs llama_cpp's bindings alone. What its __init__ imports besides (chat formats,
    # Jinja) takes half as long as all that a child imports.
    "spec = util.find_spec('llama_cpp'); "
    "sys.modules.update({'llama_cpp': util.module_from_spec(spec)} if spec else {})\n"
    "from streamsink.errors import StreamsinkError\n"
    "try: runpy.run_module(sys.argv.pop(1), run_name='__main__')\n"
    # What keeps it from being imported is the answer to the first request.
    "except StreamsinkError as error:\n"
    " import json; print(json.dumps({'error': [type(error).__name__, error.message]}))"
)
INSPECTOR = "streamsink.llama.inspect_child"
"""The module that `streamsink.gguf.inspection` asks. Named here, so that it can be started before
that is imported."""

# The folders in a source file's path, as an assertion states it.
_FOLDERS = re.compile(r"\S*[/\\](?=[\w.-]+:\d+:)")

DYING_SECONDS = 10.0
SLICE_SECONDS = 0.1


class Died(Exception):
    """The child gave no answer; the text says what became of it."""


class Child(Closing):
    """A process that answers requests, one after another, of any thread.

    When an answer does not come, the process is ended, whether it died or the wait for it was
    interrupted: what it would say later is nobody's answer. The next request gets a new process.

    Parameters
    ----------
    module : str
        Calls `streamsink.system.serve.serve` when run.
    n_bytes : int, optional
        How much memory of its own it may take, on Linux; no limit by default.
    gpu : bool
        Whether it may see the GPUs.

    Raises
    ------
    Died
        No process can be started.
    """

    def __init__(self, module: str, *, n_bytes: int | None = None, gpu: bool = False) -> None:
        self._begin = partial(_Process.begun, module, n_bytes=n_bytes, gpu=gpu)
        self._closed = False
        self._process: _Process | None = None
        self._forget()
        self._process = self._begin()

    def ask(self, request: Answer, *, seconds: float) -> Answer:
        """Let the child answer a request.

        Parameters
        ----------
        request : dict
            Anything that JSON holds.
        seconds : float
            How long the answer may take.

        Raises
        ------
        StreamsinkError
            What the module raised.
        Died
            It aborted, or took longer than that or more memory than it may.
        """
        if self._pid != os.getpid():  # a fork shares the pipes, and perhaps a lock that is held
            self._forget()
        with self._lock:
            if self._is_closed():
                raise Died("it was closed")
            # While it owes an answer the object does not hold it, so that an interruption at any
            # moment leaves no process whose answer belongs to an earlier request.
            process, self._process = self._process, None
            if process is None or not process.lives:
                process = self._begin()
            try:
                answer = process.ask(request, seconds=seconds)
            except BaseException:
                process.end()
                raise
            self._process = process
            if self._is_closed():
                self.close()
        if "error" in answer:
            kind, text = answer["error"]
            raise getattr(errors, kind, StreamsinkError)(text)
        return answer

    def _is_closed(self) -> bool:
        """Return whether any thread has called `close`."""
        return self._closed

    def _forget(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._process = None

    def close(self) -> None:
        """End the process. Twice is fine."""
        self._closed = True
        process, self._process = self._process, None
        if process is not None:
            process.end()


class _Process:
    """A process that runs, until it owes an answer that does not come."""

    def __init__(self, module: str, *, n_bytes: int | None, gpu: bool) -> None:
        self._said: IO[str] = tempfile.TemporaryFile(  # noqa: SIM115 - closed by _end
            "w+", encoding="utf-8", errors="replace"
        )
        self._popen = subprocess.Popen(
            [sys.executable, "-c", BEGIN, ROOT, module, str(n_bytes or 0)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env={**os.environ, **QUIET, **({} if gpu else NO_GPU)},
            start_new_session=True,  # Ctrl-C in a terminal is meant for the parent
        )
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._free = weakref.finalize(
            self, _end, os.getpid(), self._popen, self._said, self._requests
        )
        # A thread of its own writes and reads: then a child that does not read holds nobody up, and
        # a signal tears no line.
        start_new_thread(_converse, (self._popen, self._requests, self._answers))

    @classmethod
    def begun(cls, module: str, *, n_bytes: int | None, gpu: bool) -> _Process:
        """Begin one, or raise `Died`.

        In another thread, since Python raises signals in the main thread only: one that came while
        the process starts would lose its number. If the wait for it is interrupted, the object is
        dropped and the process ends with it. Not by `threading.Thread`, which holds locks while it
        starts.
        """
        done: queue.SimpleQueue[_Process | Exception] = queue.SimpleQueue()

        def begin() -> None:
            try:
                done.put(cls(module, n_bytes=n_bytes, gpu=gpu))
            except Exception as error:  # no file, no process, no thread
                done.put(error)

        try:
            start_new_thread(begin, ())
            found = done.get()
        except RuntimeError as error:
            found = error
        if isinstance(found, Exception):
            raise Died(f"no process can be started: {found}")
        return found

    @property
    def lives(self) -> bool:
        """Whether it runs and owes nothing: its pipe is open and empty.

        Not by `Popen.poll`, which takes a lock that an interruption would leave taken.
        """
        assert self._popen.stdout is not None
        pipe = select.poll()
        pipe.register(self._popen.stdout, select.POLLIN)
        return not pipe.poll(0)

    def ask(self, request: Answer, *, seconds: float) -> Answer:
        """Let it answer, or raise `Died`."""
        self._requests.put(json.dumps(request).encode() + b"\n")
        line = self._wait(seconds)
        try:
            answer: Answer = json.loads(line)
        except ValueError:
            raise Died(self._cause_of_death()) from None
        return answer

    def _wait(self, seconds: float) -> bytes:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            # In slices, since a signal that another thread received does not end a wait.
            with contextlib.suppress(queue.Empty):
                return self._answers.get(timeout=min(left, SLICE_SECONDS))
        raise Died(f"no answer within {seconds:.0f} s")

    def _cause_of_death(self) -> str:
        try:
            code = self._popen.wait(DYING_SECONDS)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            code = self._popen.wait()
        self._said.seek(0)
        lines = [line.strip() for line in self._said.read().splitlines() if line.strip()]
        told = next((line for line in lines if "GGML_ASSERT" in line or "what():" in line), "")
        told = _FOLDERS.sub("", told or (lines[-1] if lines else ""))
        if code >= 0:
            return told or f"exit code {code}"
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"{name}{': ' + told if told else ''}"

    def end(self) -> None:
        """Kill it. Twice is fine."""
        self._free()


def ask(
    module: str,
    request: Answer,
    *,
    seconds: float,
    n_bytes: int | None = None,
    gpu: bool = False,
) -> Answer:
    """Let a child of its own answer one request; see `Child`."""
    with Child(module, n_bytes=n_bytes, gpu=gpu) as child:
        return child.ask(request, seconds=seconds)


def _converse(
    popen: subprocess.Popen[bytes],
    requests: queue.SimpleQueue[bytes | None],
    answers: queue.SimpleQueue[bytes],
) -> None:
    """Pass requests on to a child and its answers back; an empty one says that it is gone."""
    assert popen.stdin is not None
    assert popen.stdout is not None
    with contextlib.suppress(OSError), popen.stdin as writes, popen.stdout as reads:
        while (request := requests.get()) is not None:
            line = b""
            with contextlib.suppress(OSError):
                writes.write(request)
                writes.flush()
                line = reads.readline()
            answers.put(line)


def _end(
    pid: int,
    popen: subprocess.Popen[bytes],
    said: IO[str],
    requests: queue.SimpleQueue[bytes | None],
) -> None:
    requests.put(None)
    # A fork has a copy of the object, but not the child. `Popen.kill` and `Popen.wait` would take a
    # lock that an interruption leaves taken.
    if pid == os.getpid() and popen.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(popen.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            popen.returncode = os.waitstatus_to_exitcode(os.waitpid(popen.pid, 0)[1])
    with contextlib.suppress(OSError):
        said.close()
