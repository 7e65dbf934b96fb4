"""A child that says what it was told, for `tests.test_child`."""

from __future__ import annotations

import os
import time

from streamsink.system.serve import Answer, serve


def answer(request: Answer) -> Answer:
    """Wait as long as the request says, then say it again; or die."""
    time.sleep(request.get("seconds", 0))
    if request.get("dies"):
        os._exit(4)
    return {"heard": request["text"], "pid": os.getpid()}


if __name__ == "__main__":
    serve(answer)
