"""Prompts with which several streams of an engine begin: each is evaluated once.

It is not *held* once, for it cannot be for long. A cell of llama.cpp's has one position
(llama-kv-cells.h), and a sink stands right below a window that moves: streams that share its cells
would have to move all at once, which changes what the others say.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from streamsink.engine.base import Input
from streamsink.engine.saving import Capture
from streamsink.engine.stream import Stream

MOST = 8
"""Prefixes whose cells are kept in memory: those that were used last."""


class Prefixes:
    """The prefixes of an engine's streams, with their cells."""

    def __init__(self) -> None:
        self._held: OrderedDict[tuple[int, ...], Capture] = OrderedDict()
        self._lock = threading.Lock()

    def begin(self, stream: Stream, prefix: Input, *, special: bool) -> None:
        """Have an empty stream begin with a prefix, which is evaluated if it is a new one.

        Raises
        ------
        UsageError, DecodeError, CacheError
            As for `Stream.feed`.
        """
        tokens = tuple(stream._tokens(prefix, special))
        with self._lock:  # who comes second waits for the first
            captured = self._held.get(tokens)
            if captured is None:
                stream.feed(tokens)
                self._held[tokens] = stream.capture()
                if len(self._held) > MOST:
                    self._held.popitem(last=False)
                return
            self._held.move_to_end(tokens)
        stream._begin_as(captured)
