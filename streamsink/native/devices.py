"""Accelerators that llama.cpp sees, by ggml's own registry (ggml-backend.h)."""

from __future__ import annotations

import ctypes

from llama_cpp import _ggml

GPU = 1  # ggml-backend.h: enum ggml_backend_dev_type

_registry = _ggml.libggml
_registry.ggml_backend_dev_count.restype = ctypes.c_size_t
_registry.ggml_backend_dev_get.restype = ctypes.c_void_p
_registry.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
# A look-up in a library goes on in those that it is linked against: here libggml-base.
_registry.ggml_backend_dev_type.argtypes = [ctypes.c_void_p]
_registry.ggml_backend_dev_memory.restype = None
_registry.ggml_backend_dev_memory.argtypes = [
    ctypes.c_void_p,
    ctypes.POINTER(ctypes.c_size_t),
    ctypes.POINTER(ctypes.c_size_t),
]


def used_bytes() -> int | None:
    """Bytes in use on all GPUs together, by whatever process; None without a GPU."""
    used: int | None = None
    for at in range(_registry.ggml_backend_dev_count()):
        device = _registry.ggml_backend_dev_get(at)
        if _registry.ggml_backend_dev_type(device) == GPU:
            free, total = ctypes.c_size_t(), ctypes.c_size_t()
            _registry.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
            used = (used or 0) + total.value - free.value
    return used


def build() -> str:
    """Ggml's version and the commit of llama.cpp that it was built from; '' where not told."""
    try:
        for name in ("ggml_version", "ggml_commit"):
            getattr(_registry, name).restype = ctypes.c_char_p
        return (
            f"ggml {_registry.ggml_version().decode()}, commit {_registry.ggml_commit().decode()}"
        )
    except AttributeError:  # before ggml 0.9
        return ""
