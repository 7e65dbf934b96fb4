"""What a server's headers say of a file, where they say it as HTTP allows.

A header comes from anyone and may be anything: what is no number, range or version is told apart
here, before it reaches a file or another request.
"""

from __future__ import annotations

import re
from email.message import Message

from streamsink.errors import FetchError

LONGEST_WAIT = 30.0
"""Seconds that a server may ask to be left alone."""
_LONGEST_REASON = 200
"""Letters of a server's own words that are passed on."""

_COUNT = re.compile(r"[0-9]{1,18}")
"""A number of bytes or seconds; what is longer fits no disk."""
_RANGE = re.compile(rf"bytes (?:({_COUNT.pattern})-({_COUNT.pattern})|\*)/({_COUNT.pattern}|\*)")
_VALIDATOR = re.compile(r"[!-~](?:[ -~]{0,254}[!-~])?")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def length(headers: Message) -> int | None:
    """Return the bytes of a body, where they are stated.

    Raises
    ------
    FetchError
        What is stated is no number, or several (RFC 9112, 6.3).
    """
    if "chunked" in headers.get("Transfer-Encoding", "").lower():
        return None  # it overrides Content-Length
    stated = {
        one.strip() for line in headers.get_all("Content-Length", ()) for one in line.split(",")
    }
    if not stated:
        return None
    if len(stated) > 1 or not all(map(_COUNT.fullmatch, stated)):
        raise FetchError(
            f"the server states a Content-Length of {words(' and '.join(sorted(stated)))!r}, "
            "which is no number of bytes"
        )
    return int(stated.pop())


def content_range(headers: Message) -> tuple[int, int | None]:
    """Return at which byte a body begins, -1 if unknown, and the bytes of the whole file."""
    stated = set(headers.get_all("Content-Range", ()))
    found = _RANGE.fullmatch(stated.pop().strip()) if len(stated) == 1 else None
    if not found:
        return -1, None
    begin, end, total = (int(part) if part and part != "*" else None for part in found.groups())
    if begin is None or end is None:
        return -1, total
    return (begin, total) if begin <= end and (total is None or end < total) else (-1, None)


def validator(headers: Message) -> str | None:
    """Return what names this version of the file in an ``If-Range``, where there is such a thing.

    That takes a strong entity tag or a date (RFC 9110, 13.1.5).
    """
    etag = headers.get("ETag")
    if etag and not etag.startswith("W/") and is_validator(etag):
        return str(etag)
    modified = headers.get("Last-Modified")
    return modified if is_validator(modified) else None


def is_validator(text: object) -> bool:
    """Return whether ``text`` can be sent as an ``If-Range``; None stands for not sending one."""
    return text is None or (isinstance(text, str) and _VALIDATOR.fullmatch(text) is not None)


def linked_sha256(headers: Message) -> str | None:
    """Return the checksum of the file to which the Hub redirects, where it states one."""
    etag = headers.get("X-Linked-Etag", "").strip('"').lower()
    return etag if _SHA256.fullmatch(etag) else None


def retry_after(headers: Message) -> float:
    """Return for how many seconds the server wants to be left alone; 0 where it does not say."""
    wait = _COUNT.fullmatch(headers.get("Retry-After", ""))
    return min(float(wait[0]), LONGEST_WAIT) if wait else 0.0


def words(text: str) -> str:
    """Return a server's own words on one line, and not too many of them."""
    return " ".join(text.split())[:_LONGEST_REASON]
