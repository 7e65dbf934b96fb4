"""What was measured, in words: for bars, tables, plots and comparisons."""

from __future__ import annotations

from typing import Any

from streamsink.bench.ppl import slack_name
from streamsink.bench.rows import rope_name


def policy_name(settings: dict[str, Any]) -> str:
    """A policy as the paper writes it: sink and window, and what else tells it from others."""
    if settings["policy"] not in ("window", "sink"):
        return str(settings["policy"])
    n_keep = 0 if settings["policy"] == "window" else settings["n_keep"]
    name = f"{n_keep}+{settings['n_ctx'] - n_keep}, discard {settings['n_discard']}"
    if settings["placement"] != "auto":
        name += f", {settings['placement']}"
    if settings["slack"] is not None:
        name += f", slack {slack_name(settings['slack'])}"
    if settings["cache_type_k"] != "f16":
        name += f", {settings['cache_type_k']}"
    return name + rope_name(settings)


def title(kind: str, settings: dict[str, Any]) -> str:
    """What one measurement is about.

    Parameters
    ----------
    kind : str
        As `Task.kind`.
    settings : dict
        As `Task.settings`.
    """
    n_ctx = f"n_ctx {settings['n_ctx']:,}" if "n_ctx" in settings else ""
    if kind == "ppl":
        about = policy_name(settings)
        return f"perplexity, {about}" + ("" if "+" in about else f", {n_ctx}")
    if kind == "recall":
        is_pinned = settings.get("where") == "pinned"
        place = "in the pinned prefix" if is_pinned else "in the text"
        return f"recall, facts {place}, {n_ctx}"
    if kind == "streams":
        return f"speed of {settings['n_streams']} streams, {n_ctx}"
    if kind == "busy":
        return f"threads {settings['case']}, {n_ctx}"
    if kind == "speed":
        return f"speed, {settings.get('what', 'stream')}, {n_ctx}"
    return f"{kind}, {n_ctx}"
