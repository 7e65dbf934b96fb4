"""A sequence's state in a form that does not tell in which of how many pools it stood.

llama.cpp writes of each cache how many pools it has, and then pool after pool, nearly all of them
empty (llama-kv-cache.cpp: state_write); it reads that into a cache of as many pools. A cache with a
sliding window is two, one after the other (llama-kv-cache-iswa.cpp). What is kept here is what a
cache of one pool would have written: so streams move between contexts, and into session files.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from streamsink.errors import CacheError

HEAD = 8
"""Bytes before the caches: a magic number, and the sequence's (llama-context.cpp)."""
NUMBER = 4
"""Bytes of a number of pools, or of the cells in one."""


def merged(state: memoryview, n_pools: int, pool: int, n_last: int) -> memoryview:
    """What a cache of one pool would have written.

    Parameters
    ----------
    state : memoryview
        What one of ``n_pools`` has written, of a sequence in ``pool``.
    n_last : int
        Bytes of the last of two caches, as it was written; 0 where there is one.

    Raises
    ------
    CacheError
        It is not laid out so.
    """
    pieces = [state[:HEAD]]
    for cache in _caches(state[HEAD:], n_last):
        first, stop = NUMBER * (1 + pool), len(cache) - NUMBER * (n_pools - 1 - pool)
        is_so = stop >= first + NUMBER and _numbers(cache[:first]) == [n_pools, *[0] * pool]
        if not is_so or any(_numbers(cache[stop:])):
            raise CacheError("llama.cpp writes cells in another form than is known here")
        pieces += [_bytes(1), cache[first:stop]]
    return _joined(pieces)


def divided(state: memoryview, n_pools: int, pool: int, n_last: int) -> memoryview:
    """What a cache of ``n_pools`` would have written: the inverse of `merged`.

    Parameters
    ----------
    state : memoryview
        What one of one pool has written.
    n_last : int
        Bytes of the last of two caches in this form; 0 where there is one.
    """
    pieces = [state[:HEAD]]
    for cache in _caches(state[HEAD:], n_last):
        empty = n_pools - 1 - pool
        pieces += [_bytes(n_pools, *[0] * pool), cache[NUMBER:], _bytes(*[0] * empty)]
    return _joined(pieces)


def _caches(body: memoryview, n_last: int) -> Sequence[memoryview]:
    return [body[:-n_last], body[-n_last:]] if n_last else [body]


def _numbers(data: memoryview) -> list[int]:
    found: list[int] = np.frombuffer(data, np.uint32).tolist()
    return found


def _bytes(*numbers: int) -> memoryview:
    return memoryview(np.array(numbers, np.uint32).tobytes())


def _joined(pieces: Sequence[memoryview]) -> memoryview:
    return memoryview(b"".join(pieces))
