"""Writing the user's own registry, without disturbing what else is in it."""

from __future__ import annotations

import itertools
import json
import os
import re
from pathlib import Path
from typing import Any

from streamsink.errors import UsageError
from streamsink.registry.entries import Entry
from streamsink.registry.paths import user_registry
from streamsink.registry.sources import HfSource, PathSource, PypiSource, Source, UrlSource
from streamsink.registry.store import load_registry
from streamsink.registry.tables import Table, parse_entry, read_tables
from streamsink.system.atomic import write_text

_TITLE = "# Your own models, laid over streamsink's: its models.toml describes the form.\n"


def add(
    name: str,
    source: Source,
    *,
    size: int | None = None,
    sha256: str | None = None,
    parameters: str | None = None,
    licence: str | None = None,
    description: str | None = None,
    n_ctx: int | None = None,
    keep: int | str | None = None,
    discard: int | str | None = None,
    chat: bool | None = None,
    force: bool = False,
) -> Entry:
    """Write a model into the user's own registry.

    Parameters
    ----------
    name : str
        Its name.
    source : Source
        Where its file comes from.
    size, sha256, parameters, licence, description, n_ctx, keep, discard, chat
        What else is known; see ``Entry``.
    force : bool
        Replace an entry of that name, or override a built-in one.

    Returns
    -------
    Entry
        What was written.

    Raises
    ------
    UsageError
        The name is bad or taken, a value is out of range, or the file cannot be edited.
    """
    stated = {
        **_source_values(source),
        "size": size,
        "sha256": sha256,
        "parameters": parameters,
        "licence": licence,
        "description": description,
        "n_ctx": n_ctx,
        "keep": keep,
        "discard": discard,
        "chat": chat,
    }
    values = {key: value for key, value in stated.items() if value is not None}
    if isinstance(source, PathSource) and not os.path.isfile(os.path.expanduser(source.path)):
        raise UsageError(f"no such file: {source.path}")
    entry = parse_entry(Table(name, values, "models add", own=True))
    known = load_registry()
    taken = None if name in known.faults else known.get(name)  # one that cannot be is mended so
    if taken and not force:
        kind = "one of your own models" if taken.own else "one of streamsink's models"
        raise UsageError(f"{name} is {kind} already: choose another name, or --force")
    text = _read()
    kept = _without(text, name)
    block = f"[{_key(name)}]\n" + "".join(f"{k} = {_toml(v)}\n" for k, v in values.items())
    edited = f"{kept.rstrip()}\n\n{block}" if kept.strip() else f"{_TITLE}\n{block}"
    _write(text, edited, name, values)
    return entry


def forget(name: str) -> None:
    """Take a model out of the user's own registry; its file, if any, stays.

    Raises
    ------
    UsageError
        The user's registry does not state it, or the file cannot be edited.
    """
    text = _read()
    if name not in read_tables(text, str(user_registry())):
        raise UsageError(f"{user_registry()} has no {name}: only your own models can be forgotten")
    _write(text, _without(text, name), name, None)


def _source_values(source: Source) -> dict[str, Any]:
    if isinstance(source, HfSource):
        table = {"repo": source.repo, "file": source.file}
        return {
            "hf": table if source.revision == "main" else {**table, "revision": source.revision}
        }
    if isinstance(source, PypiSource):
        return {"pypi": {k: getattr(source, k) for k in ("package", "version", "member")}}
    if isinstance(source, UrlSource):
        return {"url": source.url}
    return {"path": str(Path(os.path.expanduser(source.path)).absolute())}


def _read() -> str:
    try:
        return user_registry().read_text("utf-8-sig")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the registry {user_registry()}: {error}") from None


def _without(text: str, name: str) -> str:
    """Cut a table out of the text: from its header, and those of its sub-tables, to the next."""
    ours = re.compile(rf"""[ \t]*\[\[?[ \t]*["']?{re.escape(name)}["']?[ \t]*[].]""")
    kept: list[str] = []
    cut: list[str] = []
    inside = False
    for line in text.splitlines(keepends=True):
        if line.lstrip().startswith("["):
            inside = ours.match(line) is not None
            kept += [] if inside else _comments_at_the_end(cut)
            cut = []
        (cut if inside else kept).append(line)
    return "".join(kept)


def _comments_at_the_end(lines: list[str]) -> list[str]:
    """Return the comments that stand right above the next table, and so belong to it."""
    found = list(itertools.takewhile(lambda line: line.startswith("#"), reversed(lines)))
    return found[::-1]


def _write(before: str, after: str, name: str, values: dict[str, Any] | None) -> None:
    """Write the new text, if it says what it should of ``name``, and of all others as before."""
    path = user_registry()
    by_hand = f"cannot edit {path} safely: change it by hand"
    try:
        wanted = {k: table.values for k, table in read_tables(before, str(path)).items()}
        written = {k: table.values for k, table in read_tables(after, str(path)).items()}
    except UsageError as error:
        raise UsageError(f"{by_hand} ({error})") from None
    wanted.pop(name, None)
    if written != {**wanted, **({name: values} if values else {})}:
        raise UsageError(by_hand)
    try:
        write_text(path, after)
    except (OSError, UnicodeEncodeError) as error:
        raise UsageError(f"cannot write {path}: {error}") from None


def _key(name: str) -> str:
    return _toml(name) if "." in name else name


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(part)}" for key, part in value.items()) + " }"
    # A JSON string is a TOML string but for DEL, which TOML wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
