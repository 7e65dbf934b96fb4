"""The threads of a context: kept as they were given, or governed from decode to decode."""

from __future__ import annotations

import os
import weakref
from copy import copy

import llama_cpp.llama_cpp as llama

from streamsink.core.events import Threads
from streamsink.gguf.settings import CacheSettings
from streamsink.llama.governor import Governor
from streamsink.system.cores import Load, cores

TINY = 8 * 2**20
"""Bytes of a model of which a decode is over before a second thread has begun."""


class NativeThreads:
    """Sets the threads of a context for each decode that is made in a ``with`` block of it.

    Parameters
    ----------
    context : ctypes pointer
        The ``llama_context *``, made with the threads that were given, or else with as many as
        there are cores.
    settings : CacheSettings
        Which of its numbers are to be kept.
    load : Load
        What others use, since it was looked at last.
    n_bytes : int
        Size of the weights.
    offloads : bool
        Whether layers are on a GPU.
    """

    __slots__ = ("__weakref__", "_batch", "_context", "_governor", "_governs", "_n", "_n_max")

    def __init__(
        self,
        context: llama.llama_context_p,
        settings: CacheSettings,
        load: Load,
        n_bytes: int,
        *,
        offloads: bool,
    ) -> None:
        self._context = context
        self._n = self._n_max = int(llama.llama_n_threads(context))
        self._batch = int(llama.llama_n_threads_batch(context))
        self._governs = settings.governs
        there = cores()
        if n_bytes < TINY:
            self._n, self._batch = (
                1 if is_auto else n
                for is_auto, n in zip(self._governs, (self._n, self._batch), strict=True)
            )
            llama.llama_set_n_threads(context, self._n, self._batch)
            self._n_max = self._n
        governs = any(self._governs) and there.n_usable > 1 and n_bytes >= TINY
        spins = not offloads and os.environ.get("OMP_WAIT_POLICY", "").lower() != "passive"
        self._governor = Governor(there, copy(load), spins=spins) if governs else None

    @property
    def used(self) -> Threads:
        """Threads of the decode of a single token, of how many, and why not more."""
        why = self._governor.why if self._governor and self._governs[0] else ""
        return Threads(self._n, self._n_max, why)

    def __enter__(self) -> None:
        _under_way.add(self)
        if self._governor:
            n = self._governor.begin(len(_under_way))
            single = n if self._governs[0] else self._n
            batch = n if self._governs[1] else self._batch
            if (single, batch) != (self._n, self._batch):
                llama.llama_set_n_threads(self._context, single, batch)
                self._n, self._batch = single, batch

    def __exit__(self, *_: object) -> None:
        _under_way.discard(self)
        if self._governor:
            self._governor.end()


_under_way: weakref.WeakSet[NativeThreads] = weakref.WeakSet()
"""The decodes that this process has under way: they share its cores."""
