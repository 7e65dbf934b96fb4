"""Where the registry's files live: pure functions of the environment and the platform."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def models_dir() -> Path:
    """Return the folder of pulled models.

    Returns
    -------
    Path
        ``$STREAMSINK_HOME/models``, or ``streamsink/models`` in the platform's data folder.
    """
    return data_dir(os.environ, sys.platform) / "models"


def user_registry() -> Path:
    """Return the user's own ``models.toml``, which need not exist."""
    return config_dir(os.environ, sys.platform) / "models.toml"


def builtin_registry() -> Path:
    """Return the ``models.toml`` that came with streamsink.

    A wheel carries it inside the package; a checkout has it at the top, beside the package.
    """
    inside = PACKAGE / "models.toml"
    return inside if inside.is_file() else PACKAGE.parent / "models.toml"


def data_dir(environ: Mapping[str, str], platform: str) -> Path:
    """Return streamsink's folder for data."""
    return _folder(environ, platform, "LOCALAPPDATA", "XDG_DATA_HOME", ".local/share")


def config_dir(environ: Mapping[str, str], platform: str) -> Path:
    """Return streamsink's folder for settings."""
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
