"""On what a figure was measured."""

from __future__ import annotations

import hashlib
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from streamsink import __version__
from streamsink.llama import devices, library
from streamsink.model import Model


def environment() -> dict[str, Any]:
    """Versions and machine, as plain JSON data."""
    return {
        "streamsink": __version__,
        "llama_cpp_python": _version("llama-cpp-python"),
        "llama_cpp": devices.build(),
        "llama_cpp_features": library.features(),
        "numpy": _version("numpy"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu(),
        "cores": psutil.cpu_count(logical=False),
        "threads_allowed": threads_allowed(),
        "memory_bytes": psutil.virtual_memory().total,
    }


def identity(model: Model) -> dict[str, Any]:
    """Which file was measured, as plain JSON data."""
    return {
        "file": model.path.name,
        "description": model.description,
        "bytes": model.path.stat().st_size,
        "sha256": _sha256(model.path),
        "n_ctx_train": model.n_ctx_train,
    }


def cpu() -> str:
    """Name of the processor, as far as the system tells."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                key, _, value = line.partition(":")
                if key.strip() == "model name":
                    return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def threads_allowed() -> int | None:
    """Hardware threads that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(2**20):
            digest.update(data)
    return digest.hexdigest()
