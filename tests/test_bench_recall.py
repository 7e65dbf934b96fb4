"""The instrument that asks for facts, on a model that knows nothing: distances, sight, chance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from streamsink.bench import recall
from streamsink.bench.asking import Sight, foresee, sight
from streamsink.bench.facts import Fact
from streamsink.bench.recall import measure
from streamsink.bench.recall_settings import RecallSettings
from streamsink.bench.statistics import wilson_interval
from streamsink.bench.task import Place
from streamsink.core.policy import SinkPolicy
from streamsink.engine.stream import Stream
from streamsink.errors import UsageError
from streamsink.model import Model

N_CTX = 640
SETTINGS = RecallSettings(
    n_ctx=N_CTX, n_choices=4, n_facts=12, distances=(200, 300, 500, 900, 1600)
)


def holds(stream: Stream, fact: Fact, seen: Sight) -> bool:
    """Whether a statement is among the tokens that a question would see."""
    tokens = stream.visible_tokens()
    del tokens[seen.n_pinned : seen.n_pinned + seen.n_forgotten]
    n = len(fact.statement)
    return any(tuple(tokens[at : at + n]) == fact.statement for at in range(len(tokens) - n + 1))


def ask(
    monkeypatch: pytest.MonkeyPatch, model: Model, where: Any, settings: RecallSettings
) -> dict[str, Any]:
    """Measure with somebody who knows exactly what can be seen."""

    def knows(stream: Stream, fact: Fact, seen: Sight) -> NDArray[np.float64]:
        scores = np.zeros(len(fact.choices))
        if holds(stream, fact, seen):
            scores[fact.correct] = -1
        return scores

    monkeypatch.setattr(recall, "foresee", knows)
    return measure(where, settings, Place(model, Path(), 0, lambda done: None))


@pytest.mark.parametrize("n_discard", [1, 32, "half"])
def test_who_sees_a_fact_is_right_and_who_does_not_is_so_by_chance(
    monkeypatch: pytest.MonkeyPatch, model: Model, n_discard: Any
) -> None:
    settings = RecallSettings(N_CTX, 4, n_discard, 4, 12, SETTINGS.distances)
    result = ask(monkeypatch, model, "stream", settings)
    assert result["chance"] == 0.25
    points = {point["distance"]: point for point in result["points"]}
    assert sorted(points) == list(SETTINGS.distances)
    assert points[200]["inside"]
    assert points[200]["accuracy"] == 1
    assert not points[1600]["inside"]
    assert points[1600]["n_gone"] == points[1600]["n"] == 12
    # Every fact of a group is asked about, so a fixed answer is right once in four times.
    assert points[1600]["accuracy"] == 0.25
    for point in points.values():
        unseen = point["n"] - point["n_inside"]
        assert point["n_inside"] <= point["correct"] <= point["n_inside"] + unseen
        assert point["inside"] == (point["n_inside"] == point["n"])
    edge = result["window_edge"]
    assert all(point["inside"] for d, point in points.items() if d < edge)
    assert edge < N_CTX


def test_pinned_facts_are_known_at_any_distance(
    monkeypatch: pytest.MonkeyPatch, model: Model
) -> None:
    result = ask(monkeypatch, model, "pinned", SETTINGS)
    assert [point["accuracy"] for point in result["points"]] == [1.0] * len(SETTINGS.distances)
    assert all(point["inside"] for point in result["points"])
    assert result["window_edge"] is None
    assert SETTINGS.n_keep < result["n_keep"] < N_CTX


def test_the_same_seed_gives_the_same_answers(model: Model) -> None:
    settings = RecallSettings(N_CTX, 4, 1, 4, 4, (200, 1000))
    runs = [
        measure("stream", settings, Place(model, Path(), seed, lambda done: None))
        for seed in (0, 0, 1)
    ]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


@pytest.mark.parametrize("n_fed", [100, N_CTX - 3, 3 * N_CTX])
def test_asking_leaves_the_stream_as_it_was(model: Model, n_fed: int) -> None:
    rng = np.random.default_rng(0)
    tokens = [int(token) for token in rng.integers(4, 300, n_fed + 50)]
    question = tuple(model.tokenize("\nThe password of the green mill is"))
    fact = Fact(0, question, question, (5, 6, 7), 0)
    rows = []
    for asked in (False, True):
        with model.stream(SinkPolicy(), N_CTX, "f32", "f32", threads=1) as stream:
            stream.feed(tokens[:n_fed])
            before = stream.visible_tokens(), stream.stats.index, stream.stats.evicted
            if asked:
                scores = foresee(stream, fact, sight(stream, len(question)))
                assert np.isfinite(scores).all()
                assert len(scores) == 3
            assert (stream.visible_tokens(), stream.stats.index, stream.stats.evicted) == before
            rows.append(np.concatenate([stream.score(tokens[n_fed:]), stream.logits()]))
    assert np.abs(rows[0] - rows[1]).max() < 1e-4


def test_a_branch_foresees_what_the_stream_would(model: Model) -> None:
    question = model.tokenize("\nThe password of the green mill is")
    fact = Fact(0, tuple(question), tuple(question), (5, 6, 7), 0)
    with model.stream(SinkPolicy(), N_CTX, "f32", "f32", threads=1) as stream:
        stream.feed([4 + at % 200 for at in range(100)])
        branch = foresee(stream, fact, sight(stream, len(question)))
        scores = [stream.score([*question, choice])[-1] for choice in fact.choices[:1]]
    assert branch[0] == pytest.approx(scores[0], abs=1e-4)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"n_keep": -1}, "--keep -1"),
        ({"n_keep": 600}, "n_keep=600"),
        ({"n_discard": 600}, "n_discard=600"),
        ({"n_choices": 1}, "--choices 1"),
        ({"n_facts": 2}, "--facts 2"),
        ({"n_facts": 10**6}, "--facts 1000000"),
        ({"distances": (-5,)}, "--distance -5"),
    ],
)
def test_settings_that_are_not_possible(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        RecallSettings(**settings)


def test_facts_that_do_not_fit(model: Model) -> None:
    with pytest.raises(UsageError, match="--ctx 128 is too small"):
        measure("stream", RecallSettings(128), Place(model, Path(), 0, lambda done: None))
    with pytest.raises(UsageError, match="--distance 5 is too near"):
        measure(
            "stream",
            RecallSettings(N_CTX, distances=(5,)),
            Place(model, Path(), 0, lambda done: None),
        )


@pytest.mark.parametrize(
    ("n_right", "n", "low", "high"),
    # Wilson 1927, as tabled by Newcombe 1998 (method 3).
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)],
)
def test_wilson_s_interval(n_right: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(n_right, n) == pytest.approx((low, high), abs=1e-4)
