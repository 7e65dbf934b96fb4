"""How much memory this machine has left."""

from __future__ import annotations


def available_bytes() -> int:
    """Bytes that can be taken without swapping."""
    import psutil

    return int(psutil.virtual_memory().available)


def resident_bytes() -> int:
    """Bytes that this process occupies now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def gib(n_bytes: float) -> str:
    """A size for people."""
    return f"{n_bytes / 2**30:.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.0f} MiB"
