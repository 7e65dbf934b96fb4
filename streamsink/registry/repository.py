"""A model of the Hub by its repository alone, as llama.cpp's ``-hf`` names it: REPO[:QUANT]."""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import quote

from streamsink.errors import FetchError, UsageError, setting
from streamsink.registry import hub
from streamsink.registry.catalog import load_registry
from streamsink.registry.edit import add
from streamsink.registry.sources import HfSource
from streamsink.registry.web import Interrupted, ask

QUANT = "Q4_K_M"
"""What is taken where none is asked for and there is this one (llama.cpp: common/arg.cpp)."""
LONGEST_LIST = 2**24
"""Bytes of a repository's list of files."""

_ASKED = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+?)(:(?P<quant>[\w.-]+))?", re.ASCII)
_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)


def named(asked: str) -> str:
    """Return the name of a model of the Hub; one without gets one in the user's registry.

    Parameters
    ----------
    asked : str
        ``REPO`` or ``REPO:QUANT``.

    Raises
    ------
    UsageError
        It is none, or the repository has no such file.
    FetchError
        The Hub does not answer.
    """
    found = _ASKED.fullmatch(asked)
    if not found:
        raise UsageError(
            f"{setting('hf_repo', asked)} is no repository: OWNER/NAME or OWNER/NAME:QUANT"
        )
    repo, wanted = found["repo"], found["quant"]
    name = _name(repo, wanted)
    known = load_registry().get(name)
    if known and isinstance(known.source, HfSource) and known.source.repo == repo:
        return name
    about = _about(repo)
    file = _choose(
        [one for one in about.get("siblings", ()) if isinstance(one, dict)], repo, wanted
    )
    lfs = file.get("lfs") or {}
    add(
        name,
        HfSource(repo, file["rfilename"], _text(about.get("sha")) or "main"),
        size=file.get("size"),
        sha256=_text(lfs.get("sha256")),
        licence=_text((about.get("cardData") or {}).get("license")),
        description=f"{repo}, {file['rfilename']}",
    )
    return name


def _name(repo: str, quant: str | None) -> str:
    """A name for a file of a repository: short, in lower case."""
    base = re.sub(r"-gguf$", "", repo.partition("/")[2], flags=re.IGNORECASE)
    words = base if quant is None else f"{base}-{quant}"
    return re.sub(r"[^a-z0-9._-]", "-", words.lower()).strip("-._")


def _about(repo: str) -> dict[str, Any]:
    """What the Hub says of a repository."""
    url = f"{hub.endpoint()}/api/models/{quote(repo)}?blobs=true"
    try:
        answer = ask(url, 0, None)
        try:
            text = b""
            while block := answer.read(2**20):
                text += block
                if len(text) > LONGEST_LIST:
                    raise FetchError(f"{repo}: its list of files is too long")
        finally:
            answer.close()
        about = json.loads(text)
    except Interrupted as error:
        raise FetchError(f"{repo}: the Hub does not answer: {error}") from None
    except (ValueError, RecursionError):
        raise FetchError(f"{repo}: what the Hub says is not JSON") from None
    if not isinstance(about, dict):
        raise FetchError(f"{repo}: what the Hub says is no description of a repository")
    return about


def _choose(files: list[dict[str, Any]], repo: str, quant: str | None) -> dict[str, Any]:
    """The file that is meant: of this quantisation, or of the usual one, or the only one."""
    models = [
        one
        for one in files
        if isinstance(name := one.get("rfilename"), str)
        and name.lower().endswith(".gguf")
        and "mmproj" not in name.lower()
    ]
    whole = [one for one in models if not _PART.search(one["rfilename"])]
    if not models:
        raise UsageError(f"the repository {repo} has no .gguf file")
    for wanted in [quant] if quant else [QUANT, ""]:
        pattern = re.compile(rf"(^|[^a-z0-9]){re.escape(wanted.lower())}([^a-z0-9_]|$)")
        fit = [one for one in whole if not wanted or pattern.search(one["rfilename"].lower())]
        if fit:
            return min(fit, key=lambda one: len(one["rfilename"]) if wanted else 0)
    there = ", ".join(sorted(one["rfilename"] for one in models)[:8])
    split = "; files in parts are not pulled" if len(whole) < len(models) else ""
    raise UsageError(f"the repository {repo} has no file for {quant or 'this'}: {there}{split}")


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
