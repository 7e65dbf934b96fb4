"""The CPU time that a container is granted: the quota of its cgroup, of version 2 or 1."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

MOUNT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


def quota(mount: Path = MOUNT, own: Path = OWN) -> float | None:
    """The CPU time that this process may take, in cores; ``None`` without a limit.

    A limit holds for all groups below, so the smallest on the way up counts. Within a container the
    path may be the host's; its own group is then the mount itself.

    Parameters
    ----------
    mount : Path
        Where cgroups are mounted.
    own : Path
        The list of the groups that this process is in.
    """
    return min((limit for folder in _groups(mount, own) for limit in _limits(folder)), default=None)


def _groups(mount: Path, own: Path) -> Iterator[Path]:
    """Folders of the groups that may limit CPU time."""
    for line in _read(own).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            roots = (mount, mount / "unified")
        elif "cpu" in controllers.split(","):
            roots = (mount / "cpu", mount / controllers)
        else:
            continue
        for root in roots:
            parts = Path(path.strip("/")).parts
            for n_parts in range(len(parts) + 1):
                yield root.joinpath(*parts[:n_parts])


def _limits(folder: Path) -> Iterator[float]:
    """The limits that a group states; "max" and -1 say that there is none."""
    whole = _read(folder / "cpu.max").split()
    parts = [_read(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
    for given in (whole, parts):
        with contextlib.suppress(ValueError):
            limit, period = map(int, given)
            if limit > 0 and period > 0:
                yield limit / period


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError:
        return ""
