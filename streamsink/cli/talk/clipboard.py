"""Text for the clipboard of whoever sits at the terminal."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from streamsink.cli import terminal

# Where what is needed for it is there; else the terminal is asked, which may be far away.
_TOOLS = (
    ("pbcopy", "", ()),
    ("wl-copy", "WAYLAND_DISPLAY", ()),
    ("xclip", "DISPLAY", ("-selection", "clipboard")),
    ("xsel", "DISPLAY", ("--clipboard", "--input")),
    ("clip.exe", "WSL_DISTRO_NAME", ()),
)
SECONDS = 5.0


def copy(text: str) -> None:
    """Put a text into the clipboard: by the system's tool, or by the terminal (OSC 52)."""
    if "SSH_TTY" not in os.environ:
        for name, needs, options in _TOOLS:
            tool = shutil.which(name)
            if tool and (not needs or needs in os.environ) and _by(tool, options, text):
                return
    terminal.to_clipboard(text)


def _by(tool: str, options: tuple[str, ...], text: str) -> bool:
    try:
        done = subprocess.run(
            [tool, *options],
            input=text.encode("utf-16-le" if tool.endswith(".exe") else "utf-8", "replace"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=SECONDS,
            check=False,
            start_new_session=sys.platform != "win32",  # Ctrl-C is not for it
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0
