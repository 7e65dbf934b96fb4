"""Where facts are stated: spread over a stream, or over the pinned heads of several."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from typing import NamedTuple

from streamsink.bench.facts import Fact
from streamsink.bench.recall_settings import RecallSettings, Where
from streamsink.errors import UsageError

GAP = 4
"""Between two groups of facts lies a context's part of filler, one in so many."""


class Stated(NamedTuple):
    """A fact with the indices of its tokens, and of those of its group."""

    fact: Fact
    span: range
    group: range


class Script(NamedTuple):
    """All that one stream takes in."""

    tokens: list[int]
    stated: list[Stated]


def opening(bos: int | None) -> list[int]:
    """The token that opens a stream, where the model expects one."""
    return [] if bos is None else [bos]


def scripts(
    where: Where,
    settings: RecallSettings,
    facts: Sequence[Fact],
    bos: int | None,
    filler: Iterator[int],
) -> list[Script]:
    """Spread the facts over one stream, or over the heads of as many as it takes."""
    n = settings.n_choices
    groups = [facts[at : at + n] for at in range(0, len(facts), n)]
    n_group = max(sum(len(fact.statement) for fact in group) for group in groups)
    n_prefix = _prefix_room(settings, n_group, max(len(fact.question) for fact in facts))
    farthest = settings.distances[-1]
    if where == "stream":
        lead = [*opening(bos), *islice(filler, settings.n_keep)]
        return [_script(lead, groups, settings.n_ctx // GAP, farthest, filler)]
    # Values must not repeat within what is seen at once.
    n_words = len({token for fact in facts for token in fact.choices})
    fit = min((n_prefix - 1) // n_group, n_words // n)
    n_scripts = -(-len(groups) // fit)
    cuts = [round(at * len(groups) / n_scripts) for at in range(n_scripts + 1)]
    return [
        _script(opening(bos), groups[start:stop], 0, farthest, filler)
        for start, stop in pairwise(cuts)
    ]


def _prefix_room(settings: RecallSettings, n_group: int, n_question: int) -> int:
    """Tokens that a pinned prefix may take.

    Raises
    ------
    UsageError
        A group of facts does not fit in there, or not in the window after an eviction.
    """
    n_ctx, n_keep = settings.n_ctx, max(settings.n_keep, 1)
    if settings.n_discard in ("half", 0):
        room, least = n_ctx // 2, n_keep + 2 * (n_group + n_question)
    else:
        assert isinstance(settings.n_discard, int)
        room = min(n_ctx // 2, n_ctx - settings.n_discard - n_question)
        least = n_keep + settings.n_discard + n_group + n_question
    least = max(least, 2 * (n_group + 1))
    if n_ctx < least:
        raise UsageError(
            f"--ctx {n_ctx} is too small for --keep {settings.n_keep}, --discard "
            f"{settings.n_discard} and {settings.n_choices} facts of this model's tokens: at least "
            f"{least}, or fewer --choices"
        )
    return room


def _script(
    lead: list[int],
    groups: Sequence[Sequence[Fact]],
    gap: int,
    farthest: int,
    filler: Iterator[int],
) -> Script:
    """Write groups of facts with filler between them, and as much after the last as is needed."""
    tokens = lead
    stated: list[Stated] = []
    for group in groups:
        start = len(tokens)
        whole = range(start, start + sum(len(fact.statement) for fact in group))
        for fact in group:
            span = range(len(tokens), len(tokens) + len(fact.statement))
            stated.append(Stated(fact, span, whole))
            tokens.extend(fact.statement)
        tokens.extend(islice(filler, gap))
    tokens.extend(islice(filler, farthest))
    return Script(tokens, stated)


def schedule(script: Script, asked: set[int], distances: Sequence[int]) -> list[tuple[int, Stated]]:
    """At which index to ask about which fact, in order.

    Raises
    ------
    UsageError
        Not all choices have been stated by then.
    """
    least = max(stated.group.stop - stated.span.stop for stated in script.stated)
    if distances[0] < least:
        raise UsageError(
            f"--distance {distances[0]} is too near: the other choices are stated up to {least} "
            f"tokens after a fact"
        )
    schedule = [
        (stated.span.stop + distance, stated)
        for stated in script.stated
        if stated.fact.number in asked
        for distance in distances
    ]
    return sorted(schedule, key=lambda item: item[0])
