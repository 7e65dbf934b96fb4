"""Pulls that break off: the next one goes on where the file is provably the same."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from streamsink.errors import FetchError
from streamsink.registry import download, fetch, files
from streamsink.registry.entries import Entry
from streamsink.registry.sources import UrlSource
from tests.pulls import BODY, FileServer, entry_at, left, sha256

pytestmark = pytest.mark.usefixtures("bare_home")

ROOT = Path(__file__).resolve().parents[1]
OTHER = b"GGUF" + random.Random(2).randbytes(2_000_000)
PARTIAL = [os.path.join("m", "m.gguf.part"), os.path.join("m", "m.gguf.part.json")]
WHOLE = [os.path.join("m", "m.gguf")]


def leave_a_part(server: FileServer, entry: Entry, size: int = 1_000_000) -> None:
    """Break a pull off for good after ``size`` bytes."""
    server.cuts = [size] + [0] * download.ATTEMPTS
    with pytest.raises(FetchError):
        fetch.pull(entry)
    assert files.kept_bytes(entry) == size
    server.requests.clear()


def test_a_broken_transfer_goes_on_where_it_stopped(server: FileServer) -> None:
    server.cuts = [1_000_000, 500_000]
    assert fetch.pull(entry_at(server, sha256=sha256(BODY))).read_bytes() == BODY
    assert server.starts == [None, "bytes=1000000-", "bytes=1500000-"]
    assert server.requests[1][1]["if-range"] == '"one"'
    assert left() == WHOLE


def test_an_interrupted_pull_leaves_a_part_for_the_next(server: FileServer) -> None:
    entry = entry_at(server)

    def interrupt(done: int, total: int | None) -> None:
        if done > 1_000_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch.pull(entry, interrupt)
    assert left() == PARTIAL
    kept = files.kept_bytes(entry)
    assert 1_000_000 < kept < len(BODY)
    told: list[int] = []
    assert fetch.pull(entry, lambda done, _: told.append(done)).read_bytes() == BODY
    assert server.starts == [None, f"bytes={kept}-"]
    assert told[0] == kept


def test_a_server_that_keeps_breaking_off_is_given_up(server: FileServer) -> None:
    server.cuts = [1_000_000] + [0] * 100
    with pytest.raises(FetchError, match=r"closed after 1,000,000 of 3,000,004.*5 times.*kept"):
        fetch.pull(entry_at(server))
    assert len(server.requests) == 1 + download.ATTEMPTS
    assert left() == PARTIAL


def test_slow_progress_is_still_progress(server: FileServer) -> None:
    server.cuts = [200_000] * 12
    assert fetch.pull(entry_at(server)).read_bytes() == BODY


def test_without_ranges_the_pull_begins_again(server: FileServer) -> None:
    server.ranges = False
    server.cuts = [1_000_000]
    assert fetch.pull(entry_at(server)).read_bytes() == BODY
    assert server.starts == [None, "bytes=1000000-"]


@pytest.mark.parametrize("if_range", [True, False], ids=["If-Range kept", "If-Range overlooked"])
def test_a_file_that_changes_in_mid_pull_is_never_mixed(server: FileServer, if_range: bool) -> None:
    server.if_range = if_range
    server.cuts = [1_000_000]
    server.after_cut = {"body": OTHER, "etag": '"two"'}
    assert fetch.pull(entry_at(server)).read_bytes() == OTHER


def test_a_range_that_was_not_asked_for_is_not_used(server: FileServer) -> None:
    server.cuts = [1_000_000]
    server.after_cut = {"shift": 7}
    assert fetch.pull(entry_at(server)).read_bytes() == BODY
    assert server.starts == [None, "bytes=1000000-", None]


def test_a_part_that_nothing_vouches_for_is_begun_again(server: FileServer) -> None:
    server.etag = 'W/"weak"'
    server.cuts = [1_000_000]
    assert fetch.pull(entry_at(server)).read_bytes() == BODY
    assert server.starts == [None, None]


def test_a_known_checksum_vouches_for_a_part(server: FileServer) -> None:
    server.etag = None
    server.cuts = [1_000_000]
    assert fetch.pull(entry_at(server, sha256=sha256(BODY))).read_bytes() == BODY
    assert server.starts == [None, "bytes=1000000-"]


def test_a_part_of_another_address_is_begun_again(server: FileServer) -> None:
    leave_a_part(server, entry_at(server))
    server.body = OTHER
    moved = Entry("m", UrlSource(f"{server.url}/other/m.gguf"))
    assert fetch.pull(moved).read_bytes() == OTHER
    assert server.starts == [None]


def test_a_part_without_its_note_is_begun_again(server: FileServer) -> None:
    entry = entry_at(server)
    leave_a_part(server, entry)
    (files.models_dir() / PARTIAL[1]).write_text("{")
    assert fetch.pull(entry).read_bytes() == BODY
    assert server.starts == [None]


def test_a_whole_part_needs_only_its_name(server: FileServer) -> None:
    entry = entry_at(server, sha256=sha256(BODY))
    leave_a_part(server, entry)
    (files.models_dir() / PARTIAL[0]).write_bytes(BODY)
    assert fetch.pull(entry).read_bytes() == BODY
    assert server.starts == [f"bytes={len(BODY)}-"]


def test_a_part_that_is_longer_than_the_file_is_begun_again(server: FileServer) -> None:
    entry = entry_at(server)
    leave_a_part(server, entry)
    (files.models_dir() / PARTIAL[0]).write_bytes(BODY + b"more")
    assert fetch.pull(entry).read_bytes() == BODY
    assert server.starts == [f"bytes={len(BODY) + 4}-", None]


@pytest.mark.skipif(os.name != "posix", reason="kill -9")
def test_a_killed_pull_is_gone_on_with(server: FileServer) -> None:
    server.pace = 0.002
    code = (
        "from streamsink.registry.entries import Entry;"
        "from streamsink.registry.fetch import pull;"
        "from streamsink.registry.sources import UrlSource;"
        f"pull(Entry('m', UrlSource('{server.url}/m.gguf')))"
    )
    entry = entry_at(server, sha256=sha256(BODY))
    for fraction in (random.uniform(0.05, 0.4), random.uniform(0.45, 0.9)):
        with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) as puller:
            while files.kept_bytes(entry) < fraction * len(BODY):
                assert puller.poll() is None, "the pull ended before it was killed"
                time.sleep(0.001)
            puller.send_signal(signal.SIGKILL)
        assert "m.gguf" not in [Path(name).name for name in left()]
    kept = files.kept_bytes(entry)
    assert fetch.pull(entry).read_bytes() == BODY
    assert server.starts[-1] == f"bytes={kept}-"
    assert left() == WHOLE


def test_a_part_that_was_tampered_with_fails_the_checksum(server: FileServer) -> None:
    entry = entry_at(server, sha256=sha256(BODY))
    leave_a_part(server, entry)
    (files.models_dir() / PARTIAL[0]).write_bytes(bytes(1_000_000))
    with pytest.raises(FetchError, match="SHA-256"):
        fetch.pull(entry)
    assert fetch.pull(entry).read_bytes() == BODY
