"""Where a model's file comes from: the Hub, a package index, a web server, or the user's disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass(frozen=True)
class HfSource:
    """One file of a repository on the Hugging Face Hub."""

    repo: str
    file: str
    revision: str = "main"

    @property
    def filename(self) -> str:
        """The file's own name, without folders."""
        return self.file.rpartition("/")[2]

    @property
    def place(self) -> str:
        """Who published it."""
        return f"hf:{self.repo.partition('/')[0]}"

    def __str__(self) -> str:
        at = "" if self.revision == "main" else f"@{self.revision[:12]}"
        return f"hf:{self.repo}{at}/{self.file}"


@dataclass(frozen=True)
class PypiSource:
    """One member of a wheel on the user's Python package index."""

    package: str
    version: str
    member: str

    @property
    def filename(self) -> str:
        """The member's own name, without folders."""
        return self.member.rpartition("/")[2]

    @property
    def place(self) -> str:
        """The package."""
        return f"pypi:{self.package}"

    def __str__(self) -> str:
        return f"pypi:{self.package}=={self.version}/{self.member}"


@dataclass(frozen=True)
class UrlSource:
    """A file on a web server."""

    url: str

    @property
    def filename(self) -> str:
        """The last segment of the address's path; may be empty."""
        return unquote(urlsplit(self.url).path).rpartition("/")[2]

    @property
    def place(self) -> str:
        """The server."""
        return urlsplit(self.url).hostname or ""

    def __str__(self) -> str:
        return shown(self.url)


@dataclass(frozen=True)
class PathSource:
    """A file that is here already, and is the user's, not ours."""

    path: Path

    @property
    def filename(self) -> str:
        """The file's own name."""
        return self.path.name

    @property
    def place(self) -> str:
        """The folder."""
        return str(self.path.parent)

    def __str__(self) -> str:
        return str(self.path)


Remote = HfSource | PypiSource | UrlSource
Source = Remote | PathSource


def shown(url: str) -> str:
    """Return ``url`` as it may be shown: without password and query, which can hold secrets."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
