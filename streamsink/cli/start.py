"""The program's first step: Ctrl-C is looked after before anything else is imported."""

from __future__ import annotations


def main() -> None:
    """Import the command line, and run it."""
    try:
        from streamsink.cli.main import main as run
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    run()
