"""``streamsink``: the commands, and how errors leave them."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from streamsink import __version__
from streamsink.cli import terminal
from streamsink.cli.lazy import Place, lazy
from streamsink.errors import StreamsinkError

FAULT = 70
"""Exit code of what nobody foresaw (sysexits.h: EX_SOFTWARE)."""
TRACEBACK = "STREAMSINK_TRACEBACK"
"""The variable of the environment that asks for Python's own account of it."""

COMMANDS = {
    name: Place(f"streamsink.cli.{name}", says)
    for name, says in {
        "chat": "Chat with a model, without end.",
        "generate": "Continue a text of any length.",
        "models": "List, pull, add and remove models.",
        "sessions": "List, show, export and remove saved chats.",
        "doctor": "Check what a model allows and needs; alone, what is installed here.",
        "bench": "Measure what streaming costs, and what forgetting costs.",
    }.items()
}

ELSEWHERE = {
    "run": "streamsink chat MODEL",
    "pull": "streamsink models pull MODEL",
    "list": "streamsink models list",
    "ls": "streamsink models list",
    "rm": "streamsink models rm MODEL",
    "show": "streamsink doctor MODEL",
    "logs": "streamsink sessions show NAME",
    "prompt": "streamsink chat -p TEXT",
}
"""What the commands of ollama (run, pull, list, rm, show) and llm (logs, prompt) are here."""

app = typer.Typer(
    name="streamsink",
    help="Endless streams through a finite context, on any GGUF model.",
    cls=lazy(COMMANDS, ELSEWHERE),
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        terminal.say(f"streamsink {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            "-V",
            callback=_print_version,
            is_eager=True,
            help="Show the version and exit.",
        ),
    ] = False,
) -> None:
    """Endless streams through a finite context, on any GGUF model.

    A stream never remembers more than its context: what was evicted is forgotten.
    """


def main() -> None:
    """Run the command line; an error is one line on stderr and an exit code, never a traceback."""
    try:
        code = app(standalone_mode=False)
    except StreamsinkError as error:
        code = _fail(error, error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        if hasattr(error, "format_message"):
            # Typer's own usage errors; where its copy of click lives depends on its version.
            message = error.format_message()
            # Without a command, what Typer has to say is the help, which it has said already.
            code = _fail(message, getattr(error, "exit_code", 2)) if message else 0
        elif TRACEBACK in os.environ:
            raise
        else:
            what = f"{type(error).__name__}: {error}"
            code = _fail(f"{what} (a fault of streamsink; {TRACEBACK}=1 shows where)", FAULT)
    _drop_what_nobody_reads()
    sys.exit(code)


def _fail(message: str | StreamsinkError, code: int) -> int:
    terminal.tell(message)
    return code


def _drop_what_nobody_reads() -> None:
    """Send what a closed pipe has not taken nowhere, or Python complains of it at the end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
