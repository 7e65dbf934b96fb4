"""Asking a web server for a file from some byte on: answers as values, faults as errors."""

from __future__ import annotations

import http.client
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import IO, Any

from streamsink.errors import FetchError
from streamsink.registry import headers, hub
from streamsink.registry.sources import shown

TIMEOUT = 30.0
"""Seconds to wait for a connection, and for each piece of the answer."""

_PASSING = (408, 425, 429, 500, 502, 503, 504)
"""Statuses after which the same request may succeed."""


class Interrupted(Exception):
    """The transfer broke off in a way that may pass; ``wait`` is what the server asks for, in s."""

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


@dataclass
class Answer:
    """A server's answer.

    Attributes
    ----------
    start : int
        The byte of the file at which the body begins; -1 where the server does not say.
    total : int or None
        The whole file's bytes, where the server says.
    validator : str or None
        What names this version of the file, fit for ``If-Range``.
    announced : str or None
        The whole file's SHA-256, where the Hub says.
    body : IO or None
        The bytes; None where the file has none beyond ``start``.
    """

    start: int
    total: int | None
    validator: str | None
    announced: str | None
    body: Any = None

    def read(self, limit: int) -> bytes:
        """Return what has arrived, at most ``limit`` bytes; empty at the end.

        Raises
        ------
        Interrupted
            The connection broke.
        """
        if self.body is None:
            return b""
        try:
            block: bytes = self.body.read1(limit)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Interrupted(_reason(error)) from error
        return block

    def close(self) -> None:
        """Let go of the connection."""
        if self.body is not None:
            self.body.close()


def ask(url: str, start: int, validator: str | None) -> Answer:
    """Ask for the file at ``url`` from byte ``start`` on.

    The answer may begin at 0 all the same: the server knows no ranges, or the file is no longer
    the one that ``validator`` names.

    Raises
    ------
    FetchError
        The server refuses for good.
    Interrupted
        It may answer another time.
    """
    redirects = _Redirects()
    opener = urllib.request.build_opener(redirects)
    try:
        response = opener.open(_request(url, start, validator), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and start:
                return _beyond_the_end(error, start, redirects.announced)
            raise _refusal(error, url) from None
    except urllib.error.URLError as error:
        raise _no_connection(error.reason, url) from error
    except (http.client.InvalidURL, ValueError) as error:
        raise FetchError(f"{shown(url)} is not an address: {headers.words(str(error))}") from None
    except (OSError, http.client.HTTPException) as error:
        raise Interrupted(_reason(error)) from error
    redirects.note(response.url, response.headers)
    try:
        return _answer(response, start, redirects.announced)
    except FetchError as error:
        response.close()
        raise FetchError(f"{shown(response.url)}: {error}") from None


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but takes no credentials to another server and no https to http."""

    def __init__(self) -> None:
        self.announced: str | None = None

    def note(self, url: str, said: Any) -> None:
        """Keep the checksum that the Hub states on the way to its storage."""
        if hub.is_hub(url):
            self.announced = headers.linked_sha256(said) or self.announced

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: Any,
        newurl: str,
    ) -> urllib.request.Request:
        newurl = newurl.replace(" ", "%20")
        before, after = hub.origin(req.full_url), hub.origin(newurl)
        if after[0] not in ("http", "https") or (before[0] == "https" and after[0] == "http"):
            raise FetchError(
                f"{shown(req.full_url)} redirects to {after[0]}://, which is not followed from "
                f"{before[0]}://"
            )
        self.note(req.full_url, headers)
        kept = dict(req.headers)
        # A proxy's password is put back by the proxy handler where it belongs.
        kept.pop("Proxy-authorization", None)
        if before != after:
            kept.pop("Authorization", None)
        return urllib.request.Request(
            newurl, headers=kept, origin_req_host=req.origin_req_host, unverifiable=True
        )

    http_error_308 = urllib.request.HTTPRedirectHandler.http_error_302  # Python 3.10 lacks it


def _request(url: str, start: int, validator: str | None) -> urllib.request.Request:
    # Without this a server may compress, and bytes on the wire would not be bytes of the file.
    said = {"User-Agent": "streamsink", "Accept-Encoding": "identity"}
    if start:
        said["Range"] = f"bytes={start}-"
        if validator:
            said["If-Range"] = validator
    if token := hub.token_for(url):
        said["Authorization"] = f"Bearer {token}"
    return urllib.request.Request(url, headers=said)


def _answer(response: Any, start: int, announced: str | None) -> Answer:
    said = response.headers
    if said.get("Content-Encoding", "identity") != "identity":
        raise FetchError("it is sent compressed, though that was not asked for")
    if response.status == 206:
        begin, total = headers.content_range(said)
    else:
        begin, total = 0, headers.length(said)
    return Answer(begin, total, headers.validator(said), announced, response)


def _beyond_the_end(error: urllib.error.HTTPError, start: int, announced: str | None) -> Answer:
    """Read a 416: either the part is the whole file already, or it is not of this file."""
    _, total = headers.content_range(error.headers)
    if total == start:
        return Answer(start, total, headers.validator(error.headers), announced)
    return Answer(0, total, None, announced)


def _refusal(error: urllib.error.HTTPError, url: str) -> Exception:
    said = f"{shown(url)}: HTTP {error.code} {headers.words(str(error.reason))}".rstrip()
    if error.code in _PASSING:
        return Interrupted(said, headers.retry_after(error.headers))
    if error.code in (401, 403) and hub.is_hub(url):
        return FetchError(
            f"{said}; the repository is gated, private or not there: accept its terms on its page "
            "and set HF_TOKEN"
        )
    if error.code in (401, 403):
        return FetchError(f"{said}; the server wants credentials: fetch it yourself, then --path")
    if error.code in (404, 410):
        return FetchError(f"{said}; check repository, file and revision, or the address")
    return FetchError(said)


def _no_connection(reason: Any, url: str) -> Exception:
    if isinstance(reason, ssl.SSLCertVerificationError):
        return FetchError(
            f"{shown(url)}: its certificate is not trusted ({reason.verify_message}); "
            "set SSL_CERT_FILE to your authority's certificate"
        )
    return Interrupted(_reason(reason))


def _reason(error: Any) -> str:
    """Return in a few words what broke."""
    if isinstance(error, TimeoutError):
        return "nothing came for too long"
    if isinstance(error, OSError) and error.strerror:
        return str(error.strerror)
    return headers.words(str(error)) or type(error).__name__
