"""A registry file's text with one table added or taken out; all else stays as it is written."""

from __future__ import annotations

import itertools
from typing import Any

import tomlkit
from tomlkit import TOMLDocument
from tomlkit.items import AoT, Comment, Item, Table


def with_table(text: str, name: str, values: dict[str, Any]) -> str:
    """Return ``text`` with a table at its end; tables within it are written on one line each."""
    table = tomlkit.table()
    for key, value in values.items():
        if isinstance(value, dict):
            inline = tomlkit.inline_table()
            inline.update(value)
            table.add(key, inline)
        else:
            table.add(key, value)
    before = text.rstrip("\r\n")
    return (f"{before}\n\n" if before else "") + tomlkit.dumps({name: table})


def without(text: str, name: str) -> str:
    """Return ``text`` without a table, however it is spelt and in however many pieces.

    Raises
    ------
    tomlkit.exceptions.TOMLKitError
        tomlkit does not read the text.
    """
    document = tomlkit.parse(text)
    if name not in document:
        return text  # tomlkit would write some rare forms in another order
    _keep_comments_above_the_next(document, name)
    document.remove(name)
    return document.as_string()


def _keep_comments_above_the_next(document: TOMLDocument, name: str) -> None:
    """Move the comments that stand right above the next table to that table.

    To tomlkit they are the last lines of the table before it, and would be removed with that one.
    """
    for (key, item), (_, following) in itertools.pairwise(document.body):
        header = _first_table(following)
        if key is not None and key.key == name and header is not None:
            lines = reversed(_last_lines(item))
            comments = itertools.takewhile(lambda line: isinstance(line, Comment), lines)
            moved = "".join(reversed([comment.as_string() for comment in comments]))
            header.trivia.indent = moved + header.trivia.indent


def _last_lines(item: Item) -> list[Item]:
    """Return the lines of a table, or of the last table in it."""
    if isinstance(item, AoT):
        return _last_lines(item.body[-1])
    if not isinstance(item, Table) or not item.value.body:
        return []
    lines = [line for _, line in item.value.body]
    return _last_lines(lines[-1]) if isinstance(lines[-1], (AoT, Table)) else lines


def _first_table(item: Item) -> Table | None:
    """Return the table whose header is written first: that of ``[a.b]`` is no header of ``a``."""
    if isinstance(item, AoT):
        return item.body[0]
    if isinstance(item, Table) and item.is_super_table():
        return _first_table(item.value.body[0][1])
    return item if isinstance(item, Table) else None
