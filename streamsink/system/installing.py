"""How a package comes into the environment that is in use."""

from __future__ import annotations

import os
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path


def how_to_install(package: str) -> str:
    """The command that installs a package where this Python would find it."""
    prefix = Path(sys.prefix)
    around = prefix.parent.parts[-2:]
    quoted = shlex.quote(package)
    if around == ("pipx", "venvs"):
        return f"pipx inject {prefix.name} {quoted}"
    if around == ("uv", "tools"):
        return f"uv tool install --with {quoted} {prefix.name}"
    python = shlex.quote(_shortened(sys.executable))
    if find_spec("pip") is None:
        return f"uv pip install --python {python} {quoted}"
    return f"{python} -m pip install {quoted}"


def _shortened(path: str) -> str:
    """A path as one types it: from here, or whole."""
    here = os.path.relpath(path)
    return here if not here.startswith(os.pardir) and len(here) < len(path) else path
