"""What a stream still knows of a fact, by the distance at which it is asked about it.

The idea is that of StreamingLLM's StreamEval (arXiv 2309.17453), which was never released: facts
are stated in a stream of other text, and asked about later. A small model cannot chat about them,
so a question repeats the beginning of a fact, and of several choices the one is taken that the
stream makes likelier than it was before.

Why a stream that has forgotten everything is right once in ``n_choices`` times:

* The choices are the values of facts that were stated side by side, so all of them have been seen
  equally often and, but for a few tokens, at the same distance. Which value belongs to which fact
  is drawn, and each fact of such a group is asked about: who does not know gains nothing by a
  liking for a word, or for the first or last of them.
* A choice counts by how much likelier it has become: from its negative log-likelihood that of the
  same choice, after the same question, in a stream without facts is subtracted (domain-conditional
  PMI: Holtzman et al. 2021, arXiv 2104.08315). Chance would be the same without; but a model that
  likes one word better than the others would show less of what it knows.
* A choice is scored by its first token, which no other choice shares. With a usual vocabulary that
  is the whole word. No choice is longer than another, so there is nothing to divide by, and one row
  of logits scores all of them.

A question is asked in a *branch*, a sequence that shares the stream's cells and is dropped
afterwards: the stream itself is never asked. So facts can be asked about at every distance in one
pass, and no question stands in the way of another.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, cycle, islice, pairwise
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from streamsink.bench import text
from streamsink.bench.facts import MOST_FACTS, VALUES, Fact, draw_asked, draw_facts
from streamsink.bench.statistics import wilson_interval
from streamsink.bench.task import Place, Progress, Task
from streamsink.core.plan import MAIN, SCRATCH
from streamsink.core.policy import Discard, SinkPolicy, discard_size
from streamsink.engine.scoring import nll
from streamsink.engine.stream import Stream
from streamsink.errors import CapabilityError, UsageError
from streamsink.model import Model

Where: TypeAlias = Literal["stream", "pinned"]

LADDER = (0.1, 0.25, 0.5, 0.75, 1.1, 1.5, 2.0, 4.0)
"""Distances in contexts, where no others are asked for."""
NEAREST = 48
"""Least distance of the ladder: by then all facts of a group have been stated."""
GAP = 4
"""Between two groups of facts lies a context's part of filler, one in so many."""
TOKENS_PER_FACT = 11
"""As the default model spells them; what a task weighs depends on it, and nothing else."""


@dataclass(frozen=True, slots=True)
class RecallSettings:
    """What is asked.

    Parameters
    ----------
    n_ctx : int
        Context of the stream.
    n_keep : int
        Tokens pinned at the head of the stream. Where the facts are pinned, as many as they take.
    n_discard : int or "half"
        Tokens evicted at once.
    n_choices : int
        Choices of each question: facts that are stated side by side.
    n_facts : int
        Questions at each distance.
    distances : tuple of int
        Tokens between the end of a fact and the question; none means a ladder from 0.1 to 4
        contexts, which then stands here.

    Raises
    ------
    UsageError
        Values out of range or that do not fit together.
    """

    n_ctx: int = 512
    n_keep: int = 4
    n_discard: Discard = 1
    n_choices: int = 4
    n_facts: int = 40
    distances: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.n_keep, int) or self.n_keep < 0:
            raise UsageError(f"--keep {self.n_keep} is not possible here: a number of tokens")
        SinkPolicy(self.n_keep, self.n_discard).check(self.n_ctx)
        if not 2 <= self.n_choices <= len(VALUES):
            raise UsageError(f"--choices {self.n_choices} is not possible: 2 to {len(VALUES)}")
        if not self.n_choices <= self.n_facts <= MOST_FACTS:
            raise UsageError(
                f"--facts {self.n_facts} is not possible: from as many as --choices "
                f"{self.n_choices} to {MOST_FACTS}"
            )
        for distance in self.distances:
            if distance < 0:
                raise UsageError(f"--distance {distance} is not possible: 0 or more tokens")
        found = self.distances or [max(NEAREST, round(part * self.n_ctx)) for part in LADDER]
        object.__setattr__(self, "distances", tuple(sorted(set(found))))


@dataclass(frozen=True, slots=True)
class Sight:
    """What a question sees.

    Attributes
    ----------
    n_pinned : int
        Pinned tokens, the first of the stream.
    oldest : int
        Index of the oldest token of the window.
    index : int
        Index of the first token that has not been fed: the question would stand there.
    n_forgotten : int
        Tokens of the window that the question has driven out.
    """

    n_pinned: int
    oldest: int
    index: int
    n_forgotten: int

    def holds(self, span: range) -> bool:
        """Whether all tokens of these indices are seen."""
        return span.stop <= self.n_pinned or span.start >= self.oldest

    def misses(self, span: range) -> bool:
        """Whether none of them is."""
        return self.n_pinned <= span.start and span.stop <= self.oldest


def tasks(settings: RecallSettings) -> list[Task]:
    """One task for facts in the stream, and one for facts in the pinned prefix."""
    policy = f"ctx-{settings.n_ctx}_discard-{settings.n_discard}"
    keys: dict[Where, str] = {
        "stream": f"stream-{policy}_keep-{settings.n_keep}",
        "pinned": f"pinned-{policy}",
    }
    n_asked = settings.n_facts * len(settings.distances)
    return [
        Task(
            kind="recall",
            key=key,
            settings={"where": where, **asdict(settings), "distances": list(settings.distances)},
            weight=float(n_asked * TOKENS_PER_FACT + settings.n_ctx + settings.distances[-1]),
            run=partial(measure, where, settings),
        )
        for where, key in keys.items()
    ]


def measure(where: Where, settings: RecallSettings, place: Place) -> dict[str, Any]:
    """State facts, and ask about each at every distance.

    Returns
    -------
    dict
        ``chance``; ``n_ctx``, ``n_keep`` and ``n_discard`` in force; ``points``, one for each
        ``distance``, with ``n`` questions, ``correct`` ones, ``accuracy`` and its 95 % interval
        from ``low`` to ``high``; ``inside`` if every fact was still wholly visible when asked,
        ``n_inside`` how many were, and ``n_gone`` at how many questions nothing of any choice was
        left. Where a question is neither, some choices are left and others are not, and chance is
        no measure. ``window_edge`` is the distance at which the first fact begins to leave; None
        if none ever does.

    Raises
    ------
    UsageError
        The model's tokens take more room than there is.
    CapabilityError
        The model's tokens do not tell the choices apart, or there are no cells for a branch.
    """
    model = place.model
    draw = random.Random(place.seed)
    facts = draw_facts(model, settings.n_facts, settings.n_choices, draw)
    asked = draw_asked(facts, settings.n_facts, settings.n_choices, draw)
    filler = _filler(model, draw)
    scripts = _scripts(where, settings, facts, model.bos, filler)
    n_keep = settings.n_keep
    if where == "pinned":
        n_keep = max(stated.span.stop for script in scripts for stated in script.stated)
    steps = _Steps(place.progress, len(asked) * (1 + len(settings.distances)))
    with place.stream(SinkPolicy(n_keep, settings.n_discard), settings.n_ctx) as stream:
        _check_spare(stream, max(len(fact.question) for fact in facts))
        stream.feed([*_opening(model.bos), *islice(filler, settings.n_ctx)])
        before, edges = _before(stream, [fact for fact in facts if fact.number in asked], steps)
        answers: list[_Answer] = []
        for script in scripts:
            stream.reset()
            schedule = _schedule(script, asked, settings.distances)
            answers += _answers(stream, script.tokens, schedule, before, steps)
    edges += [answer.edge for answer in answers if answer.edge is not None]
    return {
        "chance": 1 / settings.n_choices,
        "n_ctx": settings.n_ctx,
        "n_keep": n_keep,
        "n_discard": settings.n_discard,
        "points": [_point(distance, answers) for distance in settings.distances],
        "window_edge": min(edges) if where == "stream" else None,
    }


# -- asking -------------------------------------------------------------------------------------


def sight(stream: Stream, n_tokens: int) -> Sight:
    """What the last of ``n_tokens`` would see of a stream that took them in now."""
    stats = stream.stats
    step = discard_size(stream.policy, stream.n_ctx, stats.pinned)
    n_over = stats.pinned + stats.window + n_tokens - stream.n_ctx
    n_forgotten = max(0, -(-n_over // step) * step)
    return Sight(stats.pinned, stats.index - stats.window + n_forgotten, stats.index, n_forgotten)


def foresee(stream: Stream, fact: Fact, seen: Sight) -> NDArray[np.float64]:
    """Ask in a branch of the stream; the stream itself stays as it is.

    What the question drives out is out of the branch before its first token: fed token by token,
    its first tokens would see a few more of the oldest ones, its last token, which answers, none.

    Returns
    -------
    ndarray of float64, shape (n_choices,)
        Negative log-likelihood of each choice, in nat.
    """
    context, controller = stream._context, stream._controller
    ledger = controller.ledger
    # The logits will be those of the question; whoever wants the stream's has to ask anew.
    controller.settle_on(controller.state.but(has_logits=False))
    context.copy(MAIN, SCRATCH, 0, -1)
    try:
        for part in ledger.leaving(seen.n_forgotten):
            context.remove(SCRATCH, part.pos, part.end)
        context.decode(fact.question, ledger.next_pos, SCRATCH, "last")
        row = context.logits()[-1]
        return nll(np.broadcast_to(row, (len(fact.choices), len(row))), fact.choices)
    finally:
        context.remove(SCRATCH, 0, -1)


def _before(
    stream: Stream, facts: Sequence[Fact], steps: _Steps
) -> tuple[dict[int, NDArray[np.float64]], list[int]]:
    """Ask a full stream that holds no facts: what each choice starts from, and `_edge` of each."""
    before: dict[int, NDArray[np.float64]] = {}
    edges: list[int] = []
    for fact in facts:
        seen = sight(stream, len(fact.question))
        before[fact.number] = foresee(stream, fact, seen)
        edges.append(_edge(fact, seen))
        steps.step()
    return before, edges


def _answers(
    stream: Stream,
    tokens: Sequence[int],
    schedule: Sequence[tuple[int, _Stated]],
    before: Mapping[int, NDArray[np.float64]],
    steps: _Steps,
) -> Iterator[_Answer]:
    """Feed a stream, and ask on the way."""
    for at, stated in schedule:
        stream.feed(tokens[stream.stats.index : at])
        fact = stated.fact
        seen = sight(stream, len(fact.question))
        likelier = before[fact.number] - foresee(stream, fact, seen)
        has_evicted = stream.stats.evicted > 0 or seen.n_forgotten > 0
        yield _Answer(
            distance=seen.index - stated.span.stop,
            right=int(likelier.argmax()) == fact.correct,
            inside=seen.holds(stated.span),
            gone=seen.misses(stated.group),
            edge=_edge(fact, seen) if has_evicted else None,
        )
        steps.step()


def _check_spare(stream: Stream, n_question: int) -> None:
    n_spare = stream.n_cells - stream.n_ctx
    if n_spare < n_question:
        raise CapabilityError(
            f"a question takes {n_question} cells beside --ctx {stream.n_ctx}, and this model's "
            f"cache has {n_spare}: lower --ctx by {n_question - n_spare}"
        )


def _filler(model: Model, draw: random.Random) -> Iterator[int]:
    """The built-in text for ever, from somewhere on."""
    parts = list(text.pieces(()))
    first = draw.randrange(len(parts))
    return chain.from_iterable(map(model.tokenize, cycle(parts[first:] + parts[:first])))


# -- where it is stated -------------------------------------------------------------------------


class _Stated(NamedTuple):
    """A fact with the indices of its tokens, and of those of its group."""

    fact: Fact
    span: range
    group: range


class _Script(NamedTuple):
    """All that one stream takes in."""

    tokens: list[int]
    stated: list[_Stated]


def _opening(bos: int | None) -> list[int]:
    return [] if bos is None else [bos]


def _scripts(
    where: Where,
    settings: RecallSettings,
    facts: Sequence[Fact],
    bos: int | None,
    filler: Iterator[int],
) -> list[_Script]:
    """Spread the facts over one stream, or over the heads of as many as it takes."""
    n = settings.n_choices
    groups = [facts[at : at + n] for at in range(0, len(facts), n)]
    n_group = max(sum(len(fact.statement) for fact in group) for group in groups)
    n_prefix = _prefix_room(settings, n_group, max(len(fact.question) for fact in facts))
    farthest = settings.distances[-1]
    if where == "stream":
        lead = [*_opening(bos), *islice(filler, settings.n_keep)]
        return [_script(lead, groups, settings.n_ctx // GAP, farthest, filler)]
    # Values must not repeat within what is seen at once.
    n_words = len({token for fact in facts for token in fact.choices})
    fit = min((n_prefix - 1) // n_group, n_words // n)
    n_scripts = -(-len(groups) // fit)
    cuts = [round(at * len(groups) / n_scripts) for at in range(n_scripts + 1)]
    return [
        _script(_opening(bos), groups[start:stop], 0, farthest, filler)
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
) -> _Script:
    """Write groups of facts with filler between them, and as much after the last as is needed."""
    tokens = lead
    stated: list[_Stated] = []
    for group in groups:
        start = len(tokens)
        whole = range(start, start + sum(len(fact.statement) for fact in group))
        for fact in group:
            span = range(len(tokens), len(tokens) + len(fact.statement))
            stated.append(_Stated(fact, span, whole))
            tokens.extend(fact.statement)
        tokens.extend(islice(filler, gap))
    tokens.extend(islice(filler, farthest))
    return _Script(tokens, stated)


def _schedule(
    script: _Script, asked: set[int], distances: Sequence[int]
) -> list[tuple[int, _Stated]]:
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


# -- what comes out -----------------------------------------------------------------------------


class _Answer(NamedTuple):
    """One question's outcome; ``edge`` only where something has been evicted."""

    distance: int
    right: bool
    inside: bool
    gone: bool
    edge: int | None


class _Steps:
    """Tells the progress once in a hundred parts."""

    def __init__(self, progress: Progress, n: int) -> None:
        self._progress = progress
        self._n = n
        self._done = 0

    def step(self) -> None:
        self._done += 1
        if self._done * 100 // self._n > (self._done - 1) * 100 // self._n:
            self._progress(self._done / self._n)


def _edge(fact: Fact, seen: Sight) -> int:
    """The distance at which a fact would just not be wholly visible any more."""
    return seen.index - seen.oldest - len(fact.statement) + 1


def _point(distance: int, answers: Sequence[_Answer]) -> dict[str, Any]:
    here = [answer for answer in answers if answer.distance == distance]
    n, n_right = len(here), sum(answer.right for answer in here)
    n_inside = sum(answer.inside for answer in here)
    low, high = wilson_interval(n_right, n)
    return {
        "distance": distance,
        "n": n,
        "correct": n_right,
        "accuracy": n_right / n,
        "low": low,
        "high": high,
        "inside": n_inside == n,
        "n_inside": n_inside,
        "n_gone": sum(answer.gone for answer in here),
    }
