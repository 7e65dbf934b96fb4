"""What tests of pulling share: servers that misbehave as they are told, and what a pull leaves."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeAlias

import pytest

from streamsink.registry import download, files
from streamsink.registry.entries import Entry
from streamsink.registry.sources import UrlSource

BODY = b"GGUF" + random.Random(1).randbytes(3_000_000)

Answers: TypeAlias = "list[bytes | Callable[[], Iterator[bytes]]]"


def without_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the machine's own settings of proxies, indexes and the Hub; wait for nothing."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith(("PIP_", "HF_")):
            monkeypatch.delenv(name)
    monkeypatch.setattr(download, "FIRST_WAIT", 0.0)


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def left() -> list[str]:
    """Every file in the models folder."""
    root = files.models_dir()
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())


def entry_at(server: FileServer, **known: Any) -> Entry:
    return Entry("m", UrlSource(f"{server.url}/m.gguf"), **known)


class FileServer(ThreadingHTTPServer):
    """One file on 127.0.0.1, and every way in which a server can misbehave.

    Attributes are read at each request, so a test changes them in mid-pull.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.body = BODY
        self.bodies: dict[str, bytes] = {}  # what is at other paths
        self.etag: str | None = '"one"'
        self.ranges = True
        self.if_range = True
        self.shift = 0  # by how much the byte it begins at differs from the one asked for
        self.cuts: list[int] = []  # after how many bytes the next answers break off
        self.after_cut: dict[str, Any] = {}  # what changes on the server then
        self.says: list[tuple[int, dict[str, str]]] = []  # the next answers, in place of the file
        self.headers: dict[str, str] = {}
        self.length = True
        self.pace = 0.0  # s after each 32 KiB
        self.requests: list[tuple[str, dict[str, str]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def starts(self) -> list[str | None]:
        """What each request so far said for its Range."""
        return [headers.get("range") for _, headers in self.requests]

    def __enter__(self) -> FileServer:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        files = self.server
        asked = {key.lower(): value for key, value in self.headers.items()}
        files.requests.append((self.path, asked))
        if files.says:
            status, headers = files.says.pop(0)
            self._head(status, {"Content-Length": "0", **headers})
            return
        body = files.bodies.get(self.path.partition("?")[0], files.body)
        start, status = 0, 200
        current = not files.if_range or asked.get("if-range", files.etag) == files.etag
        if files.ranges and "range" in asked and current:
            start, status = int(asked["range"].removeprefix("bytes=").rstrip("-")), 206
        if start >= len(body):
            self._head(416, {"Content-Range": f"bytes */{len(body)}", "Content-Length": "0"})
            return
        start += files.shift if status == 206 else 0
        headers = {"Content-Length": str(len(body) - start)} if files.length else {}
        if status == 206:
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        if files.etag:
            headers["ETag"] = files.etag
        self._head(status, {**headers, **files.headers})
        cut = files.cuts.pop(0) if files.cuts else None
        self._send(body[start:] if cut is None else body[start : start + cut])
        if cut is not None:
            for name, value in files.after_cut.items():
                setattr(files, name, value)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, body: bytes) -> None:
        with contextlib.suppress(ConnectionError):  # the test killed the other side
            for at in range(0, len(body), 1 << 15):
                self.wfile.write(body[at : at + (1 << 15)])
                if self.server.pace:
                    time.sleep(self.server.pace)

    def log_message(self, format: str, *args: object) -> None:
        pass


class RawServer(socketserver.ThreadingTCPServer):
    """Answers each request with the next bytes, whatever was asked; the last ones for ever."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Raw)
        self.answers: Answers = []
        self.asked: list[bytes] = []

    @property
    def entry(self) -> Entry:
        return Entry("m", UrlSource(f"http://127.0.0.1:{self.server_address[1]}/m.gguf"))


class _Raw(socketserver.StreamRequestHandler):
    server: RawServer

    def handle(self) -> None:
        asked = b""
        while (line := self.rfile.readline()).strip():
            asked += line
        self.server.asked.append(asked)
        answers = self.server.answers
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        with contextlib.suppress(OSError):
            for part in [answer] if isinstance(answer, bytes) else answer():
                self.wfile.write(part)
