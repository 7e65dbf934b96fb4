"""What a release changes, and when it is refused."""

from __future__ import annotations

import importlib.util
from datetime import date
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
TODAY = date(2026, 1, 2)
LOG = (
    "# Changelog\n\n## [Unreleased]\n\n### Added\n\n- Much.\n\n## [0.1.0] - 2025-01-01\n\n- All.\n"
)


@pytest.fixture(scope="module")
def release() -> ModuleType:
    spec = importlib.util.spec_from_file_location("release", ROOT / "scripts" / "release.py")
    assert spec
    assert spec.loader
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_version_and_changelog(release: ModuleType) -> None:
    text = (ROOT / release.VERSION_FILE).read_text("utf-8")
    assert '__version__ = "9.0.0"\n' in release.bumped(text, "9.0.0")
    changed = release.released(LOG, "0.2.0", TODAY)
    assert "## [Unreleased]\n\n## [0.2.0] - 2026-01-02\n\n### Added\n\n- Much.\n" in changed
    assert changed.endswith("## [0.1.0] - 2025-01-01\n\n- All.\n")
    with pytest.raises(release.Refused, match="nothing of what is new"):
        release.released(changed, "0.3.0", TODAY)


def test_this_changelog_can_be_released(release: ModuleType) -> None:
    log = (ROOT / release.CHANGELOG).read_text("utf-8")
    assert "## [9.0.0] - 2026-01-02" in release.released(log, "9.0.0", TODAY)


@pytest.mark.parametrize("version", ["0.0.9", "1.0", "v1.0.0", "1.0.0rc1", ""])
def test_a_version_that_is_none(release: ModuleType, version: str) -> None:
    with pytest.raises(release.Refused, match=r"version|newer"):
        release.bumped('__version__ = "0.1.0"\n', version)


def test_a_version_that_is_there_already(release: ModuleType) -> None:
    with pytest.raises(release.Refused, match="already"):
        release.released(LOG, "0.1.0", TODAY)
