"""What fits together, and how large each decode and eviction is."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamsink.core.capabilities import Capabilities, Verdict
from streamsink.core.placement import choose
from streamsink.core.policy import (
    CYCLE,
    LARGEST,
    NEAR,
    OVERSHOOT,
    SHARE,
    SinkPolicy,
    default_slack,
    discard_size,
    move_cost,
    next_chunk,
)
from streamsink.errors import CapabilityError, UsageError


@pytest.mark.parametrize(
    "settings",
    [
        {"n_keep": -2},
        {"n_keep": True},
        {"n_keep": 1.0},
        {"n_keep": LARGEST + 1},
        {"n_keep": "sytem"},
        {"n_discard": -1},
        {"n_discard": "third"},
        {"placement": "shift"},
        {"slack": -1},
        {"slack": 0.5},
    ],
)
def test_values_that_no_context_could_satisfy(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(settings)).removeprefix("n_")):
        SinkPolicy(**settings)


@given(st.integers(-1, 200), st.integers(0, 200), st.integers(0, 200))
def test_check_refuses_what_leaves_no_window(n_keep: int, n_discard: int, n_ctx: int) -> None:
    fits = n_ctx >= 1 and n_keep < n_ctx and n_discard <= n_ctx - max(n_keep, 0)
    policy = SinkPolicy(n_keep, n_discard)
    if fits:
        policy.check(n_ctx)
    else:
        with pytest.raises(UsageError, match="="):
            policy.check(n_ctx)


@given(
    st.one_of(st.integers(0, 100), st.just("half")),
    st.integers(1, 100),
    st.data(),
)
def test_an_eviction_takes_some_of_the_window(n_discard: Any, n_ctx: int, data: Any) -> None:
    n_pinned = data.draw(st.integers(0, n_ctx - 1))
    size = discard_size(SinkPolicy(n_discard=n_discard), n_ctx, n_pinned)
    assert 1 <= size <= n_ctx - n_pinned
    if n_discard in (0, "half"):
        assert size == max(1, (n_ctx - n_pinned) // 2)
    else:
        assert size == min(n_discard, n_ctx - n_pinned)


@given(st.data())
def test_a_chunk_stays_within_every_bound(data: Any) -> None:
    def draw(least: int, most: int) -> int:
        return int(data.draw(st.integers(least, most)))

    n_waiting, room, n_window = draw(1, 300), draw(1, 50), draw(0, 100)
    n_discard, slack, n_batch = draw(1, 100), draw(0, 200), draw(1, 128)
    lag, n_lanes, n_spare = draw(0, slack), draw(1, 64), draw(0, 200)
    settings: dict[str, int] = {
        "n_window": n_window,
        "n_discard": n_discard,
        "sink_lag": lag,
        "slack": slack,
        "n_batch": n_batch,
        "n_lanes": n_lanes,
        "n_spare": n_spare,
    }
    n = next_chunk(n_waiting, room=room, **settings)
    assert 1 <= n <= min(n_waiting, n_batch)
    if room != n_discard:
        assert n == min(n_waiting, room, n_batch)
    # No eviction without a token that needs its room.
    n_evictions = max(0, -(-(n - room) // n_discard))
    assert n_evictions < n_lanes
    if n_evictions:
        # One decode cannot evict what it writes, and leaves a token to continue from.
        assert n_evictions * n_discard < n_window
        # The cells of tokens that leave during the decode are occupied until its end.
        assert n_evictions * n_discard <= n_spare
        # The sink moves before the decode or not at all.
        assert lag + n_evictions * n_discard <= slack


def test_a_long_queue_fills_whole_batches() -> None:
    settings = {
        "room": 1,
        "n_window": 1000,
        "n_discard": 1,
        "n_batch": 512,
        "n_lanes": 64,
        "n_spare": 63,
    }
    assert next_chunk(500, sink_lag=0, slack=63, **settings) == 64
    assert next_chunk(500, sink_lag=1, slack=63, **settings) == 63
    assert next_chunk(500, sink_lag=0, slack=0, **settings) == 1
    assert next_chunk(10, sink_lag=0, slack=63, **settings) == 10


costs = st.floats(1, 2500)


@given(costs, st.integers(1, 10_000), st.integers(1, 200_000))
def test_the_default_slack_goes_little_beyond_the_trained_context(
    cost: float, n_ctx: int, n_ctx_train: int
) -> None:
    slack = default_slack(cost, n_ctx, n_ctx_train)
    assert slack >= 0
    assert slack == 0 or n_ctx + slack <= n_ctx_train * (1 + OVERSHOOT)
    assert slack < max(n_ctx, NEAR)
    if min(n_ctx_train - n_ctx, max(n_ctx, NEAR)) > cost / SHARE + CYCLE:
        # Whole cycles, of two hundred times the cost of a move.
        assert (slack + 1) % CYCLE == 0
        assert slack + 1 >= 200 * cost


@given(costs, st.integers(1, 10_000), st.integers(1, 200_000))
def test_a_dearer_move_never_gets_less_slack(cost: float, n_ctx: int, n_ctx_train: int) -> None:
    assert default_slack(cost + 0.5, n_ctx, n_ctx_train) >= default_slack(cost, n_ctx, n_ctx_train)


def test_a_larger_sink_costs_more_to_evaluate_and_the_same_to_shift() -> None:
    assert move_cost("reanchor", 100) > 10 * move_cost("reanchor", 4)
    assert move_cost("rotate", 100) == move_cost("rotate", 4)


@pytest.mark.parametrize(("n_ctx", "slack"), [(512, 511), (2048, 639), (8192, 512)])
def test_a_small_sink_is_evaluated_again_and_hardly_ever(n_ctx: int, slack: int) -> None:
    choice = choose(SinkPolicy(4), Capabilities(n_ctx_train=8192), 4, n_ctx)
    assert (choice.placement, choice.slack) == ("reanchor", slack)


def test_a_large_sink_is_shifted_where_the_trained_context_leaves_little_room() -> None:
    able = Capabilities(n_ctx_train=8192)
    choice = choose(SinkPolicy(1000), able, 1000, 4096)
    assert (choice.placement, choice.slack) == ("rotate", 639)
    assert "would take 12% of the time" in choice.why
    # Nor does more room help: what is pinned would be too far away to be read.
    choice = choose(SinkPolicy(1000), Capabilities(131_072), 1000, 4096)
    assert (choice.placement, choice.slack) == ("rotate", 639)
    assert choose(SinkPolicy(1000), Capabilities(131_072), 1000, 65_536).placement == "reanchor"
    # Not where a shift is wrong, whatever it costs.
    yarn = Capabilities(8192, rotate=Verdict("approximate", "of YaRN"))
    assert choose(SinkPolicy(1000), yarn, 1000, 4096).placement == "reanchor"


def test_no_placement_is_right() -> None:
    neither = Capabilities(8192, Verdict("impossible", "of a"), Verdict("approximate", "of b"))
    with pytest.raises(CapabilityError, match="of a; of b"):
        choose(SinkPolicy(), neither, 4, 512)
    forced = choose(SinkPolicy(placement="reanchor", force=True), neither, 4, 512)
    assert forced.placement == "reanchor"
    with pytest.raises(CapabilityError, match="of a; use placement='auto'"):
        choose(SinkPolicy(placement="rotate", force=True), neither, 4, 512)
