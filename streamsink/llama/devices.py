"""Devices that llama.cpp sees, by ggml's own registry (ggml-backend.h)."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from llama_cpp import _ggml

KINDS = {0: "CPU", 1: "GPU", 2: "integrated GPU", 3: "accelerator"}
"""ggml-backend.h: enum ggml_backend_dev_type."""
GPU = 1

_registry = _ggml.libggml
_registry.ggml_backend_dev_count.restype = ctypes.c_size_t
_registry.ggml_backend_dev_get.restype = ctypes.c_void_p
_registry.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
# A look-up in a library goes on in those that it is linked against: here libggml-base.
for _name in ("ggml_backend_dev_name", "ggml_backend_dev_description"):
    getattr(_registry, _name).restype = ctypes.c_char_p
    getattr(_registry, _name).argtypes = [ctypes.c_void_p]
_registry.ggml_backend_dev_type.argtypes = [ctypes.c_void_p]
_registry.ggml_backend_dev_memory.restype = None
_registry.ggml_backend_dev_memory.argtypes = [
    ctypes.c_void_p,
    ctypes.POINTER(ctypes.c_size_t),
    ctypes.POINTER(ctypes.c_size_t),
]


@dataclass(frozen=True, slots=True)
class Device:
    """Something that llama.cpp can compute on.

    Attributes
    ----------
    name, description : str
        ggml's.
    kind : str
        CPU, GPU, integrated GPU or accelerator.
    free_bytes, total_bytes : int
        Its memory.
    """

    name: str
    description: str
    kind: str
    free_bytes: int
    total_bytes: int


def devices() -> list[Device]:
    """All devices of this build on this machine."""
    found = []
    for at in range(_registry.ggml_backend_dev_count()):
        device = _registry.ggml_backend_dev_get(at)
        kind = int(_registry.ggml_backend_dev_type(device))
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        _registry.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
        found.append(
            Device(
                _registry.ggml_backend_dev_name(device).decode("utf-8", "replace"),
                _registry.ggml_backend_dev_description(device).decode("utf-8", "replace"),
                KINDS.get(kind, f"type {kind}"),
                free.value,
                total.value,
            )
        )
    return found


def gpus() -> list[Device]:
    """Devices with memory of their own."""
    return [device for device in devices() if device.kind == KINDS[GPU]]


def used_bytes() -> int | None:
    """Bytes in use on all GPUs together, by whatever process; None without a GPU."""
    found = gpus()
    return sum(gpu.total_bytes - gpu.free_bytes for gpu in found) if found else None


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
