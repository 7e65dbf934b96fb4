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
