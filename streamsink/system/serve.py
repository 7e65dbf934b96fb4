"""A child process's side: requests come on stdin, a line of JSON each, answers go to stdout."""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from collections.abc import Callable
from typing import Any, TypeAlias

from streamsink.errors import StreamsinkError

Answer: TypeAlias = dict[str, Any]
"""A request or an answer, as JSON has it."""


def serve(answer: Callable[[Answer], Answer]) -> None:
    """Answer requests until the parent is gone.

    The memory that the process may take is its first argument; see `limit`.

    Parameters
    ----------
    answer : callable
        Makes the answer to a request. A `StreamsinkError` that it raises is raised in the parent.
    """
    limit(int(sys.argv[1]))
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(requests,), daemon=True).start()
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)  # what native code prints is no answer
        while True:
            try:
                said = answer(json.loads(requests.get()))
            except StreamsinkError as error:
                said = {"error": [type(error).__name__, error.message]}
            out.write(json.dumps(said) + "\n")
            out.flush()


def _receive(requests: queue.SimpleQueue[bytes]) -> None:
    """Take in lines. When the parent is gone, end the process in the middle of its work."""
    line = b""
    while read := os.read(0, 2**16):  # not sys.stdin, whose lock would be held at an exit
        *whole, line = (line + read).split(b"\n")
        for request in whole:
            requests.put(request)
    os._exit(0)


def limit(n_bytes: int) -> None:
    """Let this process take no more memory of its own than that, and leave no core file.

    Mapped files do not count.

    Parameters
    ----------
    n_bytes : int
        The limit, which only Linux keeps; 0 is none.
    """
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if n_bytes and sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_DATA, (n_bytes, n_bytes))
