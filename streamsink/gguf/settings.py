"""Of what kind a stream's cache is and how it is computed: checked before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from streamsink.errors import UsageError, setting
from streamsink.gguf.cache_types import CACHE_TYPES
from streamsink.system.checked import impossible, real, truth, whole

Threads: TypeAlias = "int | Literal['auto'] | None"
"""A number of threads, or as many as there are cores that nobody else uses."""
ROPE_SCALINGS = ("none", "linear", "yarn")  # llama.h: enum llama_rope_scaling_type
MOST_BATCH = 2**16
MOST_ROPE_SCALE = 1024
MOST_THREADS = 512  # ggml.h: GGML_MAX_N_THREADS
MOST_LANES = 255  # llama.cpp has 256 sequences (llama-cparams.h: LLAMA_MAX_SEQ), one is the stream


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """Settings of a llama.cpp context that have nothing to do with what it forgets.

    Parameters
    ----------
    cache_type_k, cache_type_v : str, default "f16"
        Types of keys and values: f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0, iq4_nl.
    n_batch : int, default 512
        Most tokens in one decode.
    n_lanes : int, default 64
        Evictions that one decode may span while feeding (`streamsink.core.lanes`); each takes a
        spare cell, and 1 feeds token by token.
    threads : int or "auto", optional
        CPU threads. A number is kept. ``"auto"``, the default, and ``None`` mean the physical
        cores, less those that others use: the number changes from decode to decode
        (`streamsink.llama.governor`). Logits do not depend on it.
    threads_batch : int or "auto", optional
        CPU threads for batches of more than one token; ``None``, the default, means as ``threads``.
    flash_attn : bool, optional
        ``None`` leaves it to llama.cpp on a GPU and switches it off on a CPU, where it halves the
        speed of decoding (40 against 17.6 ms a token at 1,500 cells, SmolLM2-135M, 2 cores), but
        for quantised values, which need it.
    rope_scaling : {"none", "linear", "yarn"}, optional
        How RoPE is stretched to contexts beyond the trained one; ``None`` is the model's own way.
    rope_scale : float, default 1
        By how much, for ``linear`` and ``yarn``.

    Raises
    ------
    UsageError
        A value out of its range, or two that exclude one another.
    """

    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    n_batch: int = 512
    n_lanes: int = 64
    threads: Threads = "auto"
    threads_batch: Threads = None
    flash_attn: bool | None = None
    rope_scaling: str | None = None
    rope_scale: float = 1.0

    def __post_init__(self) -> None:
        for option in ("cache_type_k", "cache_type_v"):
            name = getattr(self, option)
            if not isinstance(name, str) or name not in CACHE_TYPES:
                raise impossible(option, name, f"one of {', '.join(CACHE_TYPES)}")
        checked: dict[str, object] = {
            "n_batch": whole("n_batch", self.n_batch, 1, MOST_BATCH),
            "n_lanes": whole("n_lanes", self.n_lanes, 1, MOST_LANES),
            "rope_scale": real("rope_scale", self.rope_scale, 1, MOST_ROPE_SCALE),
        }
        if self.threads is None:
            checked["threads"] = "auto"
        for name in ("threads", "threads_batch"):
            if getattr(self, name) not in ("auto", None):
                checked[name] = whole(
                    name, getattr(self, name), 1, MOST_THREADS, "'auto' or a whole number"
                )
        if self.flash_attn is not None:
            checked["flash_attn"] = truth("flash_attn", self.flash_attn)
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        self._check_rope()
        if self.needs_flash and self.flash_attn is False:
            raise UsageError(
                f"{setting('cache_type_v', self.cache_type_v)} needs flash attention: drop "
                f"{setting('flash_attn', False)}, or use {setting('cache_type_v', 'f16')}"
            )

    def _check_rope(self) -> None:
        if self.rope_scaling is not None and self.rope_scaling not in ROPE_SCALINGS:
            raise impossible(
                "rope_scaling", self.rope_scaling, f"one of {', '.join(ROPE_SCALINGS)}"
            )
        if (self.rope_scale > 1) != (self.rope_scaling in ("linear", "yarn")):
            raise UsageError(
                f"{setting('rope_scaling')} linear or yarn and a {setting('rope_scale')} above 1 "
                "go together: give both"
            )

    def n_threads(self, n_usable: int) -> tuple[int, int]:
        """Most threads for single tokens and for batches, where so many cores can be used."""
        single = self.threads if isinstance(self.threads, int) else n_usable
        if self.threads_batch is None:
            return single, single
        return single, n_usable if self.threads_batch == "auto" else self.threads_batch

    @property
    def governs(self) -> tuple[bool, bool]:
        """Whether the threads for single tokens and for batches change."""
        single = self.threads == "auto"
        return single, single if self.threads_batch is None else self.threads_batch == "auto"

    @property
    def needs_flash(self) -> bool:
        """Whether llama.cpp can read these values by flash attention only."""
        return CACHE_TYPES[self.cache_type_v].quantised


USUAL = CacheSettings()
