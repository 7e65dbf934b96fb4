"""What two texts of tokens have in common, in the order of both."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Ids: TypeAlias = NDArray[np.int32]
Places: TypeAlias = NDArray[np.intp]

LEAST = 8
"""Tokens of a passage that is found again behind a difference. Fewer recur by chance, as a
template's markers do, and are evaluated sooner than a gap before them is closed."""
LONGEST = 512
"""Tokens of the longest sequence that is looked for."""
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_PIECE = 4096
"""Tokens that are compared at once: most texts differ soon."""


class Passage(NamedTuple):
    """Tokens that two texts have in common.

    Attributes
    ----------
    old, new : int
        Where they begin in the one and in the other.
    n : int
        How many they are.
    """

    old: int
    new: int
    n: int

    @property
    def end(self) -> Passage:
        """The empty passage behind it."""
        return Passage(self.old + self.n, self.new + self.n, 0)


def common(old: Ids, new: Ids, *, begin_alike: bool = True) -> list[Passage]:
    """What two texts have in common, in the order of both.

    How both begin counts however short it is, unless they do not ``begin_alike``; of the rest,
    passages of `LEAST` tokens and more. These are found by sequences of tokens that are there once
    in both texts: of them those are taken that stand in one order and are the most
    (patience diff), then, between each two passages, again so.
    """
    n = _n_alike(old, new) if begin_alike else 0
    found = [Passage(0, 0, n)] if n else []
    parts = [(Passage(0, 0, n), Passage(len(old), len(new), 0))]
    while parts:
        before, behind = parts.pop()
        start, stop = before.end, behind
        marked = _marked(old[start.old : stop.old], new[start.new : stop.new])
        here = [Passage(start.old + one.old, start.new + one.new, one.n) for one in marked]
        if here:
            found += here
            parts += pairwise((before, *here, behind))
    return sorted(found)


def _marked(old: Ids, new: Ids) -> Iterator[Passage]:
    """The passages around sequences of tokens that are there once in both texts.

    They are of `LEAST` tokens or, in texts that repeat themselves, of the fewest that are found.
    """
    olds = news = np.zeros(0, np.intp)
    n = LEAST
    while not len(olds) and n <= min(len(old), len(new), LONGEST):
        olds, news = _in_order(*_marks(old, new, n))
        n *= 8
    old_end = new_end = at = 0
    while at < len(news):
        here_old, here_new = int(olds[at]), int(news[at])
        if here_old >= old_end:
            n_back = _n_alike(old[old_end:here_old][::-1], new[new_end:here_new][::-1])
            n = n_back + _n_alike(old[here_old:], new[here_new:])
            yield Passage(here_old - n_back, here_new - n_back, n)
            old_end, new_end = here_old - n_back + n, here_new - n_back + n
            at = int(np.searchsorted(news, new_end))
        else:
            at += 1


def _marks(old: Ids, new: Ids, n: int) -> tuple[Places, Places]:
    """Where sequences of ``n`` tokens begin that are there once in both, in the new one's order."""
    (of_old, where_old), (of_new, where_new) = (_once(text, n) for text in (old, new))
    _, at_old, at_new = np.intersect1d(of_old, of_new, assume_unique=True, return_indices=True)
    olds, news = where_old[at_old], where_new[at_new]
    span = np.arange(n)
    alike = (old[olds[:, None] + span] == new[news[:, None] + span]).all(axis=1)
    order = np.argsort(news[alike])
    return olds[alike][order], news[alike][order]


def _once(text: Ids, n: int) -> tuple[NDArray[np.uint64], Places]:
    """Hashes of the sequences of ``n`` tokens that a text has once, and where they begin."""
    hashes = np.zeros(len(text) - n + 1, np.uint64)
    for at in range(n):
        hashes = hashes * _FACTOR + text[at : at + len(hashes)].astype(np.uint64)
    values, first, times = np.unique(hashes, return_index=True, return_counts=True)
    return values[times == 1], first[times == 1]


def _in_order(olds: Places, news: Places) -> tuple[Places, Places]:
    """Of places in two texts, in the order of the new one, the most that are in that of both."""
    if not len(olds):
        return olds, news
    breaks = np.flatnonzero(np.diff(olds) != np.diff(news)) + 1
    runs = [range(a, b) for a, b in pairwise((0, *breaks.tolist(), len(olds)))]
    # The heaviest chain that ends at a place: both lists grow, what is no better is struck.
    ends: list[int] = []
    chains: list[tuple[int, int]] = []  # how many marks, and the last run
    before: list[int] = []
    for this, run in enumerate(runs):
        first, last = int(olds[run[0]]), int(olds[run[-1]])
        at = bisect_left(ends, first)
        n, previous = chains[at - 1] if at else (0, -1)
        before.append(previous)
        n += len(run)
        at = bisect_left(ends, last)
        if at and chains[at - 1][0] >= n:
            continue
        stop = at
        while stop < len(chains) and chains[stop][0] <= n:
            stop += 1
        ends[at:stop], chains[at:stop] = [last], [(n, this)]
    chosen: list[range] = []
    this = chains[-1][1]
    while this >= 0:
        chosen.append(runs[this])
        this = before[this]
    marks = np.concatenate([np.arange(run.start, run.stop) for run in reversed(chosen)])
    return olds[marks], news[marks]


def _n_alike(a: Ids, b: Ids) -> int:
    """How many tokens two texts have in common at their beginnings."""
    n = min(len(a), len(b))
    for start in range(0, n, _PIECE):
        stop = min(start + _PIECE, n)
        differ = np.flatnonzero(a[start:stop] != b[start:stop])
        if differ.size:
            return start + int(differ[0])
    return n
