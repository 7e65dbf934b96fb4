"""A release made ready: version and changelog changed, packages built and tried."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERSION_FILE = Path("streamsink/__init__.py")
CHANGELOG = Path("CHANGELOG.md")

_VERSION = re.compile(r'^__version__ = "(.*)"$', re.M)
_NUMBERS = re.compile(r"\d+\.\d+\.\d+")
_UNRELEASED = "## [Unreleased]\n"


class Refused(Exception):
    """The release cannot be made; the text says why."""


def bumped(text: str, version: str) -> str:
    """The text of the file that has the version, with another one.

    Raises
    ------
    Refused
        It is no newer one.
    """
    found = _VERSION.search(text)
    if not found:
        raise Refused(f"{VERSION_FILE} has no version")
    if not _NUMBERS.fullmatch(version):
        raise Refused(f"{version} is no version: three numbers, 0.2.0")
    if _order(version) <= _order(found[1]) and version != found[1]:
        raise Refused(f"{version} is not newer than {found[1]}")
    return _VERSION.sub(f'__version__ = "{version}"', text, count=1)


def released(text: str, version: str, day: date) -> str:
    """A changelog whose unreleased part is that of a version, with a new one above.

    Raises
    ------
    Refused
        There is no such part, it is empty, or the version is there already.
    """
    before, found, rest = text.partition(_UNRELEASED)
    if not found:
        raise Refused(f"{CHANGELOG} has no part {_UNRELEASED.strip()}")
    if f"## [{version}]" in rest:
        raise Refused(f"{CHANGELOG} has {version} already")
    if not re.search(r"^- ", rest.partition("\n## [")[0], re.M):
        raise Refused(f"{CHANGELOG} says nothing of what is new")
    return f"{before}{_UNRELEASED}\n## [{version}] - {day.isoformat()}\n{rest}"


def _order(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))


def _run(*command: str, cwd: Path = ROOT) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-8:]
        raise Refused(f"{' '.join(command[:4])} failed:\n" + "\n".join(said))
    return done.stdout


def build(source: Path) -> list[Path]:
    """Both packages of a tree, checked as an index checks them."""
    _run(sys.executable, "-m", "build", "--outdir", str(source / "dist"), cwd=source)
    packages = sorted((source / "dist").iterdir())
    _run(sys.executable, "-m", "twine", "check", "--strict", *map(str, packages))
    return packages


def try_out(package: Path, version: str, folder: Path) -> None:
    """Install a package where nothing else is, and run what it brings."""
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    _run(python, "-m", "pip", "install", "--quiet", f"{package}[bench]")
    command = str(folder / "bin" / "streamsink")
    told = _run(command, "--version", cwd=folder)
    if told.split() != ["streamsink", version]:
        raise Refused(f"the package says {told.strip()!r}, not {version}")
    for words in (["--help"], ["chat", "--help"], ["models", "list"], ["sessions"], ["doctor"]):
        _run(command, *words, cwd=folder)


def main() -> None:
    """Make a release ready, or say why not."""
    parser = argparse.ArgumentParser(prog="scripts/release", description=__doc__)
    parser.add_argument("version")
    parser.add_argument("--dry-run", action="store_true", help="leave everything as it was")
    asked = parser.parse_args()
    if changed := _run("git", "status", "--porcelain"):
        raise Refused(f"there are changes that are not committed:\n{changed.rstrip()}")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "streamsink"
        _run("git", "clone", "--quiet", str(ROOT), str(copy))
        edits = {
            VERSION_FILE: bumped((ROOT / VERSION_FILE).read_text("utf-8"), asked.version),
            CHANGELOG: released((ROOT / CHANGELOG).read_text("utf-8"), asked.version, date.today()),
        }
        for path, text in edits.items():
            (copy / path).write_text(text, "utf-8")
        packages = build(copy)
        (wheel,) = (one for one in packages if one.suffix == ".whl")
        try_out(wheel, asked.version, Path(folder) / "fresh")
        if asked.dry_run:
            print(f"{asked.version} can be released: {', '.join(one.name for one in packages)}")
            return
        for path, text in edits.items():
            (ROOT / path).write_text(text, "utf-8")
        (ROOT / "dist").mkdir(exist_ok=True)
        for package in packages:
            shutil.copy2(package, ROOT / "dist")
    print(
        f"dist/ has {', '.join(one.name for one in packages)}. What is left:\n"
        f"  git commit -am 'streamsink {asked.version}' && git tag v{asked.version}\n"
        "  git push --follow-tags && twine upload dist/*"
    )


if __name__ == "__main__":
    try:
        main()
    except Refused as why:
        sys.exit(f"scripts/release: {why}")
