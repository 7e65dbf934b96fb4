"""The Hugging Face Hub: addresses, and who gets the token."""

from __future__ import annotations

import os
import re
from urllib.parse import quote, urlsplit

from streamsink.errors import UsageError
from streamsink.registry.sources import HfSource


def endpoint() -> str:
    """Return the Hub's address: ``$HF_ENDPOINT`` or huggingface.co.

    Raises
    ------
    UsageError
        HF_ENDPOINT is not a web address.
    """
    stated = os.environ.get("HF_ENDPOINT", "").strip().rstrip("/") or "https://huggingface.co"
    try:
        usable = origin(stated)[0] in ("http", "https") and origin(stated)[1]
    except ValueError:
        usable = False
    if not usable:
        raise UsageError(f"HF_ENDPOINT is {stated!r}, but takes an http:// or https:// address")
    return stated


def address(source: HfSource) -> str:
    """Return the address at which the Hub serves a file."""
    revision = quote(source.revision, safe="")
    return f"{endpoint()}/{source.repo}/resolve/{revision}/{quote(source.file)}"


def token_for(url: str) -> str | None:
    """Return ``$HF_TOKEN`` for an address on the Hub itself, and for no other.

    Raises
    ------
    UsageError
        It cannot be sent. The message does not show it.
    """
    token = os.environ.get("HF_TOKEN", "").strip()
    if not token or not is_hub(url):
        return None
    if not re.fullmatch(r"[!-~]+", token):
        raise UsageError("HF_TOKEN is no token: it has blanks, controls or letters beyond ASCII")
    return token


def is_hub(url: str) -> bool:
    """Return whether ``url`` is on the Hub's own host."""
    return origin(url) == origin(endpoint())


def origin(url: str) -> tuple[str, str | None, int | None]:
    """Return scheme, host and port, which are the same for all addresses of one server."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
