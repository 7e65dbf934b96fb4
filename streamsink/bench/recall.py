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
from dataclasses import asdict
from functools import partial
from itertools import chain, cycle, islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamsink.bench import text
from streamsink.bench.asking import edge, foresee, sight
from streamsink.bench.facts import Fact, draw_asked, draw_facts
from streamsink.bench.recall_settings import TOKENS_PER_FACT, RecallSettings, Where
from streamsink.bench.statements import Stated, opening, schedule, scripts
from streamsink.bench.statistics import wilson_interval
from streamsink.bench.task import Place, Progress, Task
from streamsink.core.policy import SinkPolicy
from streamsink.engine.stream import Stream
from streamsink.errors import CapabilityError
from streamsink.model import Model


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
    written = scripts(where, settings, facts, model.bos, filler)
    n_keep = settings.n_keep
    if where == "pinned":
        n_keep = max(stated.span.stop for script in written for stated in script.stated)
    steps = _Steps(place.progress, len(asked) * (1 + len(settings.distances)))
    with place.stream(SinkPolicy(n_keep, settings.n_discard), settings.n_ctx) as stream:
        _check_spare(stream, max(len(fact.question) for fact in facts))
        stream.feed([*opening(model.bos), *islice(filler, settings.n_ctx)])
        before, edges = _before(stream, [fact for fact in facts if fact.number in asked], steps)
        answers: list[_Answer] = []
        for script in written:
            stream.reset()
            questions = schedule(script, asked, settings.distances)
            answers += _answers(stream, script.tokens, questions, before, steps)
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


def _before(
    stream: Stream, facts: Sequence[Fact], steps: _Steps
) -> tuple[dict[int, NDArray[np.float64]], list[int]]:
    """Ask a full stream that holds no facts: what each choice starts from, and `edge` of each."""
    before: dict[int, NDArray[np.float64]] = {}
    edges: list[int] = []
    for fact in facts:
        seen = sight(stream, len(fact.question))
        before[fact.number] = foresee(stream, fact, seen)
        edges.append(edge(fact, seen))
        steps.step()
    return before, edges


def _answers(
    stream: Stream,
    tokens: Sequence[int],
    schedule: Sequence[tuple[int, Stated]],
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
            edge=edge(fact, seen) if has_evicted else None,
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
