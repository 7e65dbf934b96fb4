"""The user's own registry: models are added to it and taken out, and all else in it stays."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tomlkit.exceptions import TOMLKitError

from streamsink.errors import UsageError
from streamsink.registry.catalog import load_registry, read_text, user_registry
from streamsink.registry.entries import Entry
from streamsink.registry.rewrite import with_table, without
from streamsink.registry.sources import HfSource, PathSource, PypiSource, Source, UrlSource
from streamsink.registry.tables import Table, parse_entry, read_tables
from streamsink.system.atomic import write_text

_TITLE = "# Your own models, laid over streamsink's: its models.toml describes the form."


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
    taken = None if name in known.faults else known.get(name)  # a faulty entry may be replaced
    if taken and not force:
        kind = "one of your own models" if taken.own else "one of streamsink's models"
        raise UsageError(f"{name} is {kind} already: choose another name, or --force")
    _write(name, values)
    return entry


def forget(name: str) -> None:
    """Take a model out of the user's own registry; its file, if any, stays.

    Raises
    ------
    UsageError
        The user's registry does not state it, or the file cannot be edited.
    """
    if name not in _stated(read_text(user_registry()) or ""):
        raise UsageError(f"{user_registry()} has no {name}: only your own models can be forgotten")
    _write(name, None)


def _source_values(source: Source) -> dict[str, Any]:
    if isinstance(source, HfSource):
        stated = asdict(source)
        if source.revision == "main":
            del stated["revision"]
        return {"hf": stated}
    if isinstance(source, PypiSource):
        return {"pypi": asdict(source)}
    if isinstance(source, UrlSource):
        return {"url": source.url}
    return {"path": str(Path(os.path.expanduser(source.path)).absolute())}


def _write(name: str, values: dict[str, Any] | None) -> None:
    """Replace what is stated of a model, or take it out; only if nothing else changes with it."""
    path = user_registry()
    before = read_text(path) or ""
    expected = {**_stated(before), name: values}
    if values is None:
        del expected[name]
    try:
        after = without(before, name)
        if values is not None:
            after = with_table(after if after.strip() else _TITLE, name, values)
        is_as_expected = _stated(after) == expected
    except (TOMLKitError, UsageError) as error:
        raise UsageError(f"cannot edit {path} safely: change it by hand ({error})") from None
    if not is_as_expected:
        raise UsageError(f"cannot edit {path} safely: change it by hand")
    try:
        write_text(path, after)
    except (OSError, UnicodeEncodeError) as error:
        raise UsageError(f"cannot write {path}: {error}") from None


def _stated(text: str) -> dict[str, Any]:
    return {name: table.values for name, table in read_tables(text, str(user_registry())).items()}
