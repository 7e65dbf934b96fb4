"""The folders that are streamsink's on this machine.

They must not move when a dependency does, for models of many gigabytes lie there. ``platformdirs``
has changed them: since one of its minor versions it follows ``XDG_DATA_HOME`` on macOS, where the
models are in ``~/Library`` (docs/libraries.md).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path


def data_dir(environ: Mapping[str, str] = os.environ, platform: str = sys.platform) -> Path:
    """Return the folder of models, sessions and what else streamsink keeps.

    Returns
    -------
    Path
        ``$STREAMSINK_HOME``, or ``streamsink`` in the platform's folder for data. It need not
        exist.
    """
    return _folder(environ, platform, "LOCALAPPDATA", "XDG_DATA_HOME", ".local/share")


def config_dir(environ: Mapping[str, str] = os.environ, platform: str = sys.platform) -> Path:
    """Return the folder of settings: the same as `data_dir`, or the platform's for settings."""
    return _folder(environ, platform, "APPDATA", "XDG_CONFIG_HOME", ".config")


def _folder(
    environ: Mapping[str, str], platform: str, windows: str, xdg: str, fallback: str
) -> Path:
    if own := environ.get("STREAMSINK_HOME"):
        return Path(os.path.expanduser(own)).absolute()
    if platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    elif platform == "win32":
        base = Path(environ.get(windows) or Path.home() / "AppData" / "Local")
    else:
        # The XDG specification: a path that is not absolute is to be ignored.
        stated = Path(environ.get(xdg, ""))
        base = stated if stated.is_absolute() else Path.home() / fallback
    return base / "streamsink"
