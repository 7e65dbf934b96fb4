"""Pulling: whatever the network or the disk does, a file is whole or not there."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest

from streamsink.errors import FetchError, UsageError
from streamsink.registry import fetch, files
from streamsink.registry.entries import Entry
from streamsink.registry.sources import PathSource, UrlSource
from tests.pulls import BODY, FileServer, entry_at, left, sha256

pytestmark = pytest.mark.usefixtures("bare_home")

OTHER = b"GGUF" + random.Random(2).randbytes(2_000_000)
PARTIAL = [os.path.join("m", "m.gguf.part"), os.path.join("m", "m.gguf.part.json")]
WHOLE = [os.path.join("m", "m.gguf")]


# The plain case


def test_a_pull_brings_the_file_and_leaves_nothing_else(server: FileServer) -> None:
    told: list[tuple[int, int | None]] = []
    path = fetch.pull(
        entry_at(server, size=len(BODY), sha256=sha256(BODY)), lambda *at: told.append(at)
    )
    assert path.read_bytes() == BODY
    assert left() == WHOLE
    assert told[0] == (0, len(BODY))
    assert told[-1] == (len(BODY), len(BODY))
    assert told == sorted(told)


def test_what_is_here_is_not_pulled_again_unless_forced(server: FileServer) -> None:
    entry = entry_at(server)
    fetch.pull(entry)
    server.body = OTHER
    assert fetch.pull(entry).read_bytes() == BODY
    assert len(server.requests) == 1
    assert fetch.pull(entry, force=True).read_bytes() == OTHER


def test_a_file_of_the_wrong_size_is_pulled_anew(server: FileServer) -> None:
    entry = entry_at(server, size=len(BODY))
    files.location(entry).parent.mkdir(parents=True)
    files.location(entry).write_bytes(b"GGUF")
    assert fetch.pull(entry).read_bytes() == BODY


def test_a_path_is_pulled_by_looking(tmp_path: Path) -> None:
    file = tmp_path / "own.gguf"
    entry = Entry("own", PathSource(file))
    with pytest.raises(UsageError, match="is not there"):
        fetch.pull(entry)
    file.write_bytes(b"GGUF")
    assert fetch.pull(entry) == file


# What comes is not what was expected


def test_a_wrong_checksum_is_told_and_the_part_removed(server: FileServer) -> None:
    wrong = "0" * 64
    with pytest.raises(FetchError) as caught:
        fetch.pull(entry_at(server, sha256=wrong))
    assert wrong in str(caught.value)
    assert sha256(BODY) in str(caught.value)
    assert left() == []
    assert not (files.models_dir() / "m").exists()


def test_a_file_of_another_size_is_refused_before_it_comes(server: FileServer) -> None:
    told: list[int] = []
    with pytest.raises(FetchError, match=r"has 3,000,004 bytes, the registry says 7"):
        fetch.pull(entry_at(server, size=7), lambda done, _: told.append(done))
    assert told == []


def test_a_body_of_unknown_length_must_have_the_known_size(server: FileServer) -> None:
    server.length = False
    with pytest.raises(FetchError, match=r"has more than the 7 bytes"):
        fetch.pull(entry_at(server, size=7))
    assert left() == []
    server.cuts = [1_000_000]
    assert fetch.pull(entry_at(server, size=len(BODY))).read_bytes() == BODY
    assert server.starts[1:] == [None, "bytes=1000000-"]


def test_a_web_page_is_no_model(server: FileServer) -> None:
    server.body = b"<!DOCTYPE html> please log in"
    with pytest.raises(FetchError, match=r"no GGUF file: it begins with b'<!DO'"):
        fetch.pull(entry_at(server))
    assert left() == []


def test_a_compressed_body_is_refused(server: FileServer) -> None:
    server.headers = {"Content-Encoding": "gzip"}
    with pytest.raises(FetchError, match="compressed"):
        fetch.pull(entry_at(server))
    assert server.requests[0][1]["accept-encoding"] == "identity"


@pytest.mark.parametrize(
    ("status", "said"),
    [(404, "check repo"), (403, "credentials"), (401, "credentials"), (400, "Bad Request")],
)
def test_a_refusal_is_final(server: FileServer, status: int, said: str) -> None:
    server.says = [(status, {})]
    with pytest.raises(FetchError, match=f"HTTP {status}.*{said}"):
        fetch.pull(entry_at(server))
    assert len(server.requests) == 1
    assert left() == []


def test_a_passing_fault_is_waited_out(server: FileServer) -> None:
    server.says = [(503, {"Retry-After": "0"}), (429, {}), (500, {})]
    assert fetch.pull(entry_at(server)).read_bytes() == BODY
    assert len(server.requests) == 4


def test_nobody_listening_is_one_line() -> None:
    with FileServer() as gone:
        entry = entry_at(gone)
    with pytest.raises(FetchError, match=r"127\.0\.0\.1.*refused.*5 times in a row") as caught:
        fetch.pull(entry)
    assert "\n" not in str(caught.value)


def test_secrets_in_an_address_are_not_shown(server: FileServer) -> None:
    server.says = [(404, {})]
    with pytest.raises(FetchError) as caught:
        fetch.pull(Entry("m", UrlSource(f"{server.url}/m.gguf?token=secret")))
    assert "secret" not in str(caught.value)
    assert server.requests[0][0] == "/m.gguf?token=secret"


# Locks and disks


def test_two_pulls_at_once_do_not_meet(server: FileServer) -> None:
    entry = entry_at(server)
    refused: list[str] = []

    def meddle(done: int, total: int | None) -> None:
        if not refused:
            with pytest.raises(FetchError) as caught:
                fetch.pull(entry)
            refused.append(str(caught.value))
            with pytest.raises(FetchError, match="another process"):
                fetch.remove(entry)

    assert fetch.pull(entry, meddle).read_bytes() == BODY
    assert refused == ["m is being pulled by another process: wait for it, or end it"]
    assert len(server.requests) == 1
    assert left() == WHOLE


def test_a_lock_whose_holder_died_holds_nobody_up(server: FileServer) -> None:
    files.models_dir().mkdir()
    (files.models_dir() / ".m.lock").touch()
    assert fetch.pull(entry_at(server)).read_bytes() == BODY
    assert left() == WHOLE


def test_a_disk_that_is_too_small_is_told_before_the_pull(
    server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 1_000_000

    told: list[int] = []
    monkeypatch.setattr("streamsink.registry.transfer.shutil.disk_usage", lambda folder: Usage)
    with pytest.raises(FetchError, match=r"needs 3\.0 MB more.*1\.0 MB free.*STREAMSINK_HOME"):
        fetch.pull(entry_at(server), lambda done, _: told.append(done))
    assert told == []


def test_a_disk_that_fills_up_keeps_what_came(
    server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(done: int, total: int | None) -> None:
        if done > 1_000_000:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(FetchError, match="No space left on device"):
        fetch.pull(entry_at(server), full)
    assert left() == PARTIAL
    assert fetch.pull(entry_at(server)).read_bytes() == BODY


def test_a_models_folder_that_is_a_file_is_one_line(server: FileServer, bare_home: Path) -> None:
    (bare_home / "models").write_text("")
    with pytest.raises(FetchError, match=r"m: .*models.*STREAMSINK_HOME"):
        fetch.pull(entry_at(server))


def test_remove_deletes_what_was_pulled_and_nothing_else(
    server: FileServer, tmp_path: Path
) -> None:
    entry = entry_at(server)
    with pytest.raises(UsageError, match="is not here"):
        fetch.remove(entry)
    fetch.pull(entry)
    assert fetch.remove(entry) == files.location(entry)
    assert list(files.models_dir().iterdir()) == []
    own = tmp_path / "own.gguf"
    own.write_bytes(b"GGUF")
    with pytest.raises(UsageError, match="your own file"):
        fetch.remove(Entry("own", PathSource(own)))
    assert own.exists()
