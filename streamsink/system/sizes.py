"""Numbers of bytes as people read them: memory by powers of two, files as shops and disks count."""

from __future__ import annotations


def gib(n_bytes: float) -> str:
    """Memory, in MiB or GiB."""
    return f"{n_bytes / 2**30:.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.0f} MiB"


def file_size(n_bytes: int) -> str:
    """A file, in the largest unit that leaves a whole number before the point: ``98.4 MB``."""
    value, unit = float(n_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
