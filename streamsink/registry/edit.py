"""Writing the user's own registry, without disturbing what else is in it."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamsink.errors import UsageError
from streamsink.registry.catalog import load_registry, read_text, user_registry
from streamsink.registry.entries import Entry
from streamsink.registry.sources import HfSource, PathSource, PypiSource, Source, UrlSource
from streamsink.registry.tables import Table, parse_entry, read_tables
from streamsink.system.atomic import write_text

if TYPE_CHECKING:  # tomlkit is imported where it is used: it takes longer than a command's start
    from tomlkit import TOMLDocument
    from tomlkit.items import Item
    from tomlkit.items import Table as TomlTable

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
    text = read_text(user_registry()) or ""
    kept = _without(text, name).rstrip() or _TITLE
    _write(text, f"{kept}\n\n{_written(name, values)}", name, values)
    return entry


def forget(name: str) -> None:
    """Take a model out of the user's own registry; its file, if any, stays.

    Raises
    ------
    UsageError
        The user's registry does not state it, or the file cannot be edited.
    """
    text = read_text(user_registry()) or ""
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


def _written(name: str, values: dict[str, Any]) -> str:
    """Return a model's table as TOML, its source on one line."""
    import tomlkit

    table = tomlkit.table()
    for key, value in values.items():
        if isinstance(value, dict):
            source = tomlkit.inline_table()
            source.update(value)
            table.add(key, source)
        else:
            table.add(key, value)
    return tomlkit.dumps({name: table})


def _without(text: str, name: str) -> str:
    """Return a registry's text without one model; all else stays as it is written."""
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    try:
        document = tomlkit.parse(text)
        if name not in document:
            return text
        _keep_comments_above_the_next(document, name)
        document.remove(name)
        return document.as_string()
    except (TOMLKitError, ValueError) as error:
        raise _not_editable(str(error)) from None


def _keep_comments_above_the_next(document: TOMLDocument, name: str) -> None:
    """Move the comments that stand right above the next table to that table.

    To tomlkit they are the last lines of the table before it, and would be removed with that one.
    """
    from tomlkit.items import Comment

    for (key, item), (_, following) in itertools.pairwise(document.body):
        header = _first_table(following)
        if key is not None and key.key == name and header is not None:
            lines = reversed(_last_lines(item))
            comments = itertools.takewhile(lambda line: isinstance(line, Comment), lines)
            moved = "".join(reversed([comment.as_string() for comment in comments]))
            header.trivia.indent = moved + header.trivia.indent


def _last_lines(item: Item) -> list[Item]:
    """Return the lines of a table, or of the last table in it."""
    from tomlkit.items import AoT, Table

    if isinstance(item, AoT):
        return _last_lines(item.body[-1])
    if not isinstance(item, Table) or not item.value.body:
        return []
    lines = [line for _, line in item.value.body]
    return _last_lines(lines[-1]) if isinstance(lines[-1], (AoT, Table)) else lines


def _first_table(item: Item) -> TomlTable | None:
    """Return the table whose header is written first: that of ``[a.b]`` is no header of ``a``."""
    from tomlkit.items import AoT, Table

    if isinstance(item, AoT):
        return item.body[0]
    if isinstance(item, Table) and item.is_super_table():
        return _first_table(item.value.body[0][1])
    return item if isinstance(item, Table) else None


def _write(before: str, after: str, name: str, values: dict[str, Any] | None) -> None:
    """Write the new text, if it says what it should of ``name``, and of all others as before."""
    path = user_registry()
    try:
        wanted = {k: table.values for k, table in read_tables(before, str(path)).items()}
        written = {k: table.values for k, table in read_tables(after, str(path)).items()}
    except UsageError as error:
        raise _not_editable(str(error)) from None
    wanted.pop(name, None)
    if written != {**wanted, **({name: values} if values else {})}:
        raise _not_editable("it would not mean the same")
    try:
        write_text(path, after)
    except (OSError, UnicodeEncodeError) as error:
        raise UsageError(f"cannot write {path}: {error}") from None


def _not_editable(why: str) -> UsageError:
    return UsageError(f"cannot edit {user_registry()} safely: change it by hand ({why})")
