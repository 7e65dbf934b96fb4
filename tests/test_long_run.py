"""A million tokens through a tiny model: constant memory, no drift, positions within bounds."""

from __future__ import annotations

from typing import Any

import pytest

from streamsink.core.policy import SinkPolicy
from streamsink.model import Model
from tests.long_run import POINTS, Cells, Record, drift_of, run, told

MIB = 2**20
N_CTX = 64


@pytest.mark.slow
@pytest.mark.timeout(1800)  # of a machine that has other work too
@pytest.mark.parametrize(
    ("policy", "n_tokens"),
    [
        (SinkPolicy(4, 1, "reanchor"), 1_000_000),
        (SinkPolicy(4, "half", "rotate"), 200_000),
    ],
)
def test_nothing_grows_and_nothing_drifts(model: Model, policy: SinkPolicy, n_tokens: int) -> None:
    # One thread: two of them wait for one another where the machine has other work.
    with model.stream(policy, N_CTX, threads=1) as stream:
        report = run(stream, model.n_vocab, n_tokens)
    print(told(report))
    assert report.drift == []
    assert len(report.points) >= POINTS
    assert report.growth_bytes < 2 * MIB
    assert report.most_position <= 65_536 + N_CTX
    assert report.stats
    assert report.stats.index >= n_tokens
    assert report.stats.evicted >= n_tokens - N_CTX
    moves = {"rotate": report.stats.shifts, "reanchor": report.stats.reanchors}
    assert moves[report.stats.placement] > n_tokens / 1000
    if policy.placement == "reanchor":
        assert report.stats.rebases == n_tokens // 65_536


def shift(stream: Any, delta: int) -> None:
    """Change the positions of the ledger alone."""
    state = stream._controller.state
    stream._controller.settle_on(state.but(ledger=state.ledger.shifted(delta)))


DAMAGE: dict[str, Any] = {
    "a visible token is another": lambda stream: stream._controller.state.tape.write(1, [49]),
    "the ends of ledger and cache differ": lambda stream: shift(stream, 1),
    "positions of ledger and cache differ": lambda stream: stream._context.remove(0, 9, 10),
    "a token is not in the stream": lambda stream: stream._controller.take([5]),
    "a position is out of bounds": lambda stream: shift(stream, 10_000),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_drift_would_be_seen(model: Model, what: str) -> None:
    tokens = list(range(50))
    with model.stream(SinkPolicy(4), N_CTX, threads=1) as stream:
        stream.feed(tokens)
        record = Record(4, N_CTX)
        record.add(tokens)
        cells = Cells(stream._context)  # type: ignore[arg-type]
        assert drift_of(stream, record, cells, 1000) == []
        DAMAGE[what](stream)
        assert any(what in line for line in drift_of(stream, record, cells, 1000))
