"""What is installed here, and what it can do: ``streamsink doctor`` alone."""

from __future__ import annotations

from dataclasses import asdict

from streamsink.cli import terminal
from streamsink.cli.table import show
from streamsink.system.memory import available_bytes
from streamsink.system.sizes import gib


def show_installation(as_json: bool) -> None:
    """Show versions, devices, and what is wrong with the build."""
    from streamsink.bench.environment import environment
    from streamsink.llama import amx
    from streamsink.llama.devices import devices

    about = environment()
    found = devices()
    notes = []
    if amx.is_broken():
        notes.append(
            "this build's AMX code was spoiled by its compiler, and weights are not packed for "
            "it: rebuild with GCC 15, or by scripts/run of streamsink's sources"
        )
    if as_json:
        terminal.say_json(
            {**about, "devices": [asdict(device) for device in found], "warnings": notes}
        )
        return
    used = about["llama_cpp_features"].replace(" = 1", "").replace(" | ", ", ")
    rows = [
        ["streamsink", about["streamsink"]],
        ["llama-cpp-python", f"{about['llama_cpp_python']} ({about['llama_cpp']})"],
        ["built with", used],
        ["Python", f"{about['python']}, NumPy {about['numpy']}"],
        ["machine", f"{about['cpu']}, {about['system']}"],
        ["threads", f"{about['cores']} cores, {about['threads_allowed']} threads allowed"],
        ["memory", f"{gib(about['memory_bytes'])}, {gib(available_bytes())} free"],
    ]
    show(("installation", ""), rows)
    terminal.say()
    show(
        ("device", "kind", "memory", "free", "description"),
        [[d.name, d.kind, gib(d.total_bytes), gib(d.free_bytes), d.description] for d in found],
    )
    for note in notes:
        terminal.say(f"warning: {note}")
