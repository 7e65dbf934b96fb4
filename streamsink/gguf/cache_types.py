"""Types of a KV cache: what there is, and what an element takes."""

from __future__ import annotations

from typing import NamedTuple


class CacheType(NamedTuple):
    """A type of keys or values.

    Attributes
    ----------
    number : int
        ggml's number of it (ggml.h: enum ggml_type).
    element_bytes : float
        Bytes of one element (ggml-common.h: the blocks).
    quantised : bool
        Whether elements share a scale in blocks.
    """

    number: int
    element_bytes: float
    quantised: bool


CACHE_TYPES = {
    "f32": CacheType(0, 4.0, False),
    "f16": CacheType(1, 2.0, False),
    "bf16": CacheType(30, 2.0, False),
    "q8_0": CacheType(8, 34 / 32, True),
    "q5_1": CacheType(7, 24 / 32, True),
    "q5_0": CacheType(6, 22 / 32, True),
    "q4_1": CacheType(3, 20 / 32, True),
    "q4_0": CacheType(2, 18 / 32, True),
    "iq4_nl": CacheType(20, 18 / 32, True),
}
