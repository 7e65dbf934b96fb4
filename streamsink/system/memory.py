"""How much memory there is, and how much of it this process has."""

from __future__ import annotations


def available_bytes() -> int:
    """Return the bytes that can be taken without swapping."""
    import psutil

    return int(psutil.virtual_memory().available)


def resident_bytes() -> int:
    """Return the bytes of memory that this process occupies now."""
    import psutil

    return int(psutil.Process().memory_info().rss)
