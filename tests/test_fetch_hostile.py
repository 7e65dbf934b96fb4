"""Servers that lie: every fault is a FetchError on one line, and bounded in its cost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from streamsink.errors import FetchError, UsageError
from streamsink.registry import fetch, files, transfer
from streamsink.registry.entries import Entry
from streamsink.registry.sources import HfSource, UrlSource
from tests.pulls import BODY, RawServer, left

pytestmark = pytest.mark.usefixtures("bare_home")

OK = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture
def server() -> Iterator[RawServer]:
    with RawServer() as raw:
        threading.Thread(target=raw.serve_forever, args=(0.02,), daemon=True).start()
        yield raw
        raw.shutdown()


def refused(entry: Entry) -> str:
    """What a pull says that cannot be: one line, and no longer than a screen."""
    with pytest.raises(FetchError) as caught:
        fetch.pull(entry)
    said = str(caught.value)
    assert "\n" not in said
    assert "\r" not in said
    assert len(said) < 1500
    return said


DIGITS = "9" * 4400


@pytest.mark.parametrize(
    "lengths",
    [
        "²",
        DIGITS,
        "-1",
        "+5",
        "1_000",
        "0x10",
        "1e3",
        "",
        "5, 6",
        "5\r\nContent-Length: 6",
        "\x1b[2J",
    ],
)
def test_a_length_that_is_none(server: RawServer, lengths: str) -> None:
    server.answers = [OK + f"Content-Length: {lengths}\r\n\r\n".encode("latin-1") + BODY]
    assert "Content-Length" in refused(server.entry)
    assert left() == []
    assert len(server.asked) == 1


def test_a_length_that_is_said_twice_is_one(server: RawServer) -> None:
    n = str(len(BODY)).encode()
    head = OK + b"Content-Length: " + n + b", " + n + b"\r\nContent-Length: " + n + b"\r\n\r\n"
    server.answers = [head + BODY]
    assert fetch.pull(server.entry).read_bytes() == BODY


@pytest.mark.parametrize(
    "stated",
    [
        "bytes ²-9/10",
        f"bytes {DIGITS}-{DIGITS}/{DIGITS}",
        "bytes 1000-5/3000004",
        "bytes 1000-3000003/9",
        "bytes 1000-3000003/3000004\r\nContent-Range: bytes 0-3000003/3000004",
        "bytes -5-9/10",
        "pages 1-2/3",
        "",
    ],
)
def test_a_range_that_is_none(server: RawServer, stated: str) -> None:
    n = len(BODY)
    broken = OK + f'ETag: "one"\r\nContent-Length: {n}\r\n\r\n'.encode() + BODY[:1000]
    ranged = f'HTTP/1.1 206 P\r\nETag: "one"\r\nContent-Range: {stated}\r\n\r\n'.encode("latin-1")
    server.answers = [broken, ranged + BODY[1000:]]
    assert "it sends another part than asked" in refused(server.entry)
    whole = OK + f"Content-Length: {n}\r\n\r\n".encode() + BODY
    server.answers = [broken, ranged, whole]
    assert fetch.pull(server.entry).read_bytes() == BODY


@pytest.mark.parametrize("wait", ["²", DIGITS, "-1", "soon", "Fri, 31 Dec 1999 23:59:59 GMT"])
def test_a_wait_that_is_none(server: RawServer, wait: str, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("streamsink.registry.download.time.sleep", waited.append)
    head = f"HTTP/1.1 503 Busy\r\nRetry-After: {wait}\r\nContent-Length: 0\r\n\r\n"
    server.answers = [head.encode("latin-1")]
    assert "HTTP 503 Busy, 5 times in a row" in refused(server.entry)
    assert max(waited) <= 30


def endless(head: bytes, piece: bytes) -> Callable[[], Iterator[bytes]]:
    def parts() -> Iterator[bytes]:
        yield head
        while True:
            yield piece

    return parts


MIB = b"GGUF" * 2**18
BODIES = {
    "no length": endless(OK + b"\r\n", MIB),
    "chunked": endless(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"100000\r\n" + MIB + b"\r\n"),
    "chunked, though a length is stated": endless(
        OK + b"Transfer-Encoding: chunked\r\nContent-Length: 9\r\n\r\n",
        b"100000\r\n" + MIB + b"\r\n",
    ),
    "a part without an end": endless(b"HTTP/1.1 206 P\r\nContent-Range: bytes 0-9/*\r\n\r\n", MIB),
}


@pytest.mark.parametrize("kind", BODIES)
def test_a_body_without_an_end(
    server: RawServer, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answers = [BODIES[kind]]
    told: list[int] = []
    monkeypatch.setattr(transfer, "MOST_UNKNOWN", 2**25)
    with pytest.raises(FetchError, match=r"no end within 33,554,432 bytes.*--size"):
        fetch.pull(server.entry, lambda done, _: told.append(done))
    assert max(told) <= 2**25 + 2**20
    known = Entry("m", server.entry.source, size=3_000_000)
    assert "more than the 3,000,000 bytes" in refused(known)
    assert left() == []


def test_a_body_without_an_end_leaves_room_on_the_disk(
    server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        def __init__(self, folder: Path) -> None:
            part = files.models_dir() / "m" / "m.gguf.part"
            self.free = transfer.SPARE + 2**25 - (part.stat().st_size if part.exists() else 0)

    monkeypatch.setattr("streamsink.registry.transfer.shutil.disk_usage", Usage)
    monkeypatch.setattr(transfer, "STEP", 2**22)
    server.answers = [BODIES["no length"]]
    assert "its disk has" in refused(server.entry)
    assert left() == []


@pytest.mark.parametrize(
    "chunks",
    [
        *(b"", b"5\r\nGGU", b"zz\r\nGGUF", b"-5\r\nGGUF1\r\n", b"\r\n"),
        *(b"f" * 5000 + b"\r\nGGUF", b"9" * 70_000),
    ],
)
def test_chunks_that_break_off(server: RawServer, chunks: bytes) -> None:
    server.answers = [OK + b"Transfer-Encoding: chunked\r\n\r\n" + chunks]
    assert "times in a row" in refused(server.entry)
    whole = b"%x\r\n" % len(BODY) + BODY + b"\r\n0\r\n\r\n"
    server.answers = [OK + b"Transfer-Encoding: chunked\r\n\r\n" + whole]
    assert fetch.pull(server.entry).read_bytes() == BODY


@pytest.mark.parametrize(
    "head",
    [
        OK + b"X-Long: " + b"a" * 2**20 + b"\r\n\r\n",
        OK + b"X-Many: a\r\n" * 10_000 + b"\r\n",
        b"HTTP/1.1 \xb200 OK\r\n\r\n",
        b"HTTP/1.1 " + b"9" * 5000 + b" OK\r\n\r\n",
        b"no protocol\r\n\r\n",
        b"\0" * 100,
        b"",
        b"HTTP/1.1 404 \x1b]0;title\x07\xc2\x9b31m" + b"x" * 60_000 + b"\r\n\r\n",
        b"HTTP/1.1 302 F\r\nLocation: /m.gguf\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 F\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 F\r\nLocation: http://h:\xb2/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 F\r\nLocation: http://[h/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 F\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 F\r\nLocation: http://h\x01/\x1b[2J\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 416 R\r\nContent-Range: bytes */\xb2\r\nContent-Length: 0\r\n\r\n",
        OK + b"Content-Encoding: \x1b[2J\r\n\r\n",
    ],
)
def test_heads_that_are_none(server: RawServer, head: bytes) -> None:
    server.answers = [head]
    refused(server.entry)
    assert left() == []


@pytest.mark.parametrize(
    "etag", [b'"\x1b[2J"', b'"a\r\n b"', b'"\xff"', b'"' + b"a" * 60_000 + b'"']
)
def test_what_names_a_version_is_sent_back_if_it_can_be(server: RawServer, etag: bytes) -> None:
    n = str(len(BODY)).encode()
    head = OK + b"ETag: " + etag + b"\r\nContent-Length: " + n + b"\r\n\r\n"
    server.answers = [head + BODY[:1000], head + BODY]
    assert fetch.pull(server.entry).read_bytes() == BODY
    assert len(server.asked) == 2
    assert b"If-Range" not in server.asked[1]


@pytest.mark.parametrize("validator", ["5", '"a\\nb: c"', '["x"]', "{}"])
def test_a_note_that_somebody_changed_proves_nothing(server: RawServer, validator: str) -> None:
    n = str(len(BODY)).encode()
    whole = OK + b"Content-Length: " + n + b"\r\n\r\n" + BODY
    server.answers = [whole]
    assert isinstance(server.entry.source, UrlSource)
    part = files.models_dir() / "m" / "m.gguf.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"GGUF of another")
    note = part.with_name(part.name + ".json")
    note.write_text(f'{{"url": "{server.entry.source.url}", "validator": {validator}}}')
    assert fetch.pull(server.entry).read_bytes() == BODY
    assert b"Range" not in server.asked[0]


@pytest.mark.parametrize("token", ["secret\nX-Other: 1", "secret key", "se\xe9cret", "\x1bsecret"])
def test_a_token_that_is_none_is_not_told(
    server: RawServer, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UsageError, match="HF_TOKEN is no token") as caught:
        fetch.pull(Entry("m", HfSource("a/b", "c.gguf")))
    assert "secret" not in str(caught.value)
    assert server.asked == []
