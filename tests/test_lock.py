"""The lock: one holder, whatever becomes of its file."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamsink.errors import FetchError
from streamsink.system import lock


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
    with lock.Lock(path, FetchError("busy")):
        assert len(claims) == 2
        assert path.exists()
    assert not path.exists()


def test_one_holds_it_until_it_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with lock.Lock(path, FetchError("busy")) as held:
        with pytest.raises(FetchError, match="busy"):
            lock.Lock(path, FetchError("busy"))
        assert held.is_at(path)
    held.close()
    assert not held.is_at(path)
    assert not path.exists()
    lock.Lock(path, FetchError("busy")).close()


def test_who_lost_its_file_leaves_the_next_one_s_alone(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    lost = lock.Lock(path, FetchError("busy"))
    path.unlink()
    with lock.Lock(path, FetchError("busy")) as held:
        assert held.is_at(path)
        assert not lost.is_at(path)
        lost.close()
        assert held.is_at(path)
        with pytest.raises(FetchError, match="busy"):
            lock.Lock(path, FetchError("busy"))
