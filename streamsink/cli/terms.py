"""Settings in a message by the names of their options: Python's ``n_keep=70`` is ``--keep 70``."""

from __future__ import annotations

from streamsink.errors import told

OPTIONS = {
    "n_ctx": "--ctx",
    "n_keep": "--keep",
    "n_discard": "--discard",
    "n_batch": "--batch",
    "n_gpu_layers": "--gpu-layers",
    "n_streams": "--streams",
    "temperature": "--temp",
}
"""Options that are not called as the setting is."""


def in_options(message: str) -> str:
    """A message with its settings as options."""
    return told(message, _option)


def _option(name: str, value: str | None) -> str:
    option = OPTIONS.get(name, f"--{name.replace('_', '-')}")
    if value in (None, "True"):
        return option
    if value == "False":
        return f"--no-{option.removeprefix('--')}"
    quoted = value[:1] in "'\"" and value[-1:] == value[:1]
    return f"{option} {value[1:-1] if quoted else value}"
