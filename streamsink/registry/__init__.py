"""Models by name: where each comes from, which are here, and how they get here.

``resolve`` turns what a user typed into a file, ``pull`` brings a file here, ``add`` writes a name
into the user's own registry. Nothing here prints, and no native library is loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streamsink.registry.edit import add, forget
from streamsink.registry.entries import DEFAULT_MODEL, Entry, Registry, near_names
from streamsink.registry.paths import models_dir, user_registry
from streamsink.registry.received import Progress
from streamsink.registry.sources import HfSource, PathSource, PypiSource, Source, UrlSource
from streamsink.registry.store import (
    entry_for,
    entry_named,
    is_here,
    kept_bytes,
    load_registry,
    location,
    resolve,
)

if TYPE_CHECKING:
    from streamsink.registry.fetch import pull, remove

__all__ = [
    "DEFAULT_MODEL",
    "Entry",
    "HfSource",
    "PathSource",
    "Progress",
    "PypiSource",
    "Registry",
    "Source",
    "UrlSource",
    "add",
    "entry_for",
    "entry_named",
    "forget",
    "is_here",
    "kept_bytes",
    "load_registry",
    "location",
    "models_dir",
    "near_names",
    "pull",
    "remove",
    "resolve",
    "user_registry",
]


def __getattr__(name: str) -> Any:
    """Import what fetches on first use: HTTP is a large part of a command's start."""
    if name in ("pull", "remove"):
        from streamsink.registry import fetch

        return getattr(fetch, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
