"""Which measurement of one run belongs to which of another, and in what they differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

Record: TypeAlias = dict[str, Any]
"""As in a run's folder: ``kind``, ``key``, ``settings``, ``result``."""

SUBJECT = ("what", "where", "case")
"""Settings that are not chosen but measured: with others, it is another measurement."""
ASIDE = ("samples", "every")
"""Settings that say how often, not what."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two measurements, or one without its like.

    Attributes
    ----------
    a, b : dict or None
        The records of both runs.
    differs : tuple of (str, value, value)
        Settings that differ, and both values.
    """

    a: Record | None
    b: Record | None
    differs: tuple[tuple[str, Any, Any], ...] = ()


def pairs(mine: Sequence[Record], theirs: Sequence[Record]) -> Iterator[Pair]:
    """Pair the records of two runs.

    Those of equal settings belong together. Of the others two do that are each other's nearest,
    and nothing else is as near: then it is plain what was changed. The rest stays alone.
    """
    left = list(theirs)
    alone: list[Record] = []
    found: dict[int, Pair] = {}
    for record in mine:
        same = next((other for other in left if differences(record, other) == ()), None)
        if same is None:
            alone.append(record)
        else:
            left.remove(same)
            found[id(record)] = Pair(record, same)
    for record in alone:
        other = _nearest(record, left)
        if other is not None and _nearest(other, alone) is record:
            found[id(record)] = Pair(record, other, differences(record, other) or ())
    yield from (found.get(id(record), Pair(record, None)) for record in mine)
    taken = {id(pair.b) for pair in found.values()}
    yield from (Pair(None, other) for other in theirs if id(other) not in taken)


def differences(x: Record, y: Record) -> tuple[tuple[str, Any, Any], ...] | None:
    """Settings in which two measurements differ; None where they measure different things."""
    mine, theirs = _subject(x), _subject(y)
    if (x["kind"], mine) != (y["kind"], theirs):
        return None
    a, b = x["settings"], y["settings"]
    return tuple(
        (name, a.get(name), b.get(name))
        for name in dict.fromkeys([*a, *b])
        if name not in (*SUBJECT, *ASIDE) and a.get(name) != b.get(name)
    )


def _subject(record: Record) -> list[Any]:
    settings = record["settings"]
    # The variants of a speed are named by the very settings that may be changed.
    if record["kind"] == "speed" and "n_discard" in settings:
        return []
    return [settings.get(name) for name in SUBJECT]


def _nearest(record: Record, others: Sequence[Record]) -> Record | None:
    """The one that differs least; None where there is none, or not one alone."""
    apart = [
        (len(found), other) for other in others if (found := differences(record, other)) is not None
    ]
    least = min((n for n, _ in apart), default=0)
    nearest = [other for n, other in apart if n == least]
    return nearest[0] if len(nearest) == 1 else None
