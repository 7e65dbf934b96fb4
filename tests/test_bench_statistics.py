"""Means, intervals and curves on series whose mean is known, and the files of scores."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from streamsink.bench import statistics
from streamsink.bench.scores import ScoreFile, read_scores
from streamsink.bench.statistics import (
    Interval,
    bootstrap_interval,
    curve,
    default_block,
    mean_nll,
    paired_interval,
    perplexity,
)
from streamsink.errors import StreamsinkError

Floats = NDArray[np.float64]
LEVEL = 0.95
MEAN = 1.0


def draw(seed: int, n_series: int, n: int, correlation: float) -> Floats:
    """Series of an AR(1) with skewed steps and mean `MEAN`; (n_series, n). 0 is i.i.d."""
    warm_up = 200
    series = np.random.default_rng(seed).exponential(MEAN, (warm_up + n, n_series))
    for at in range(1, len(series)):
        series[at] = correlation * series[at - 1] + (1 - correlation) * series[at]
    return np.ascontiguousarray(series[warm_up:].T)


def covers(interval: Interval, value: float) -> bool:
    return interval.low <= value <= interval.high


def coverage(series: Floats, n_resamples: int, block: int | None = None) -> float:
    """Part of the series whose interval covers the mean."""
    return sum(
        covers(bootstrap_interval(one, seed=seed, block=block, n_resamples=n_resamples), MEAN)
        for seed, one in enumerate(series)
    ) / len(series)


def is_none(interval: Interval) -> bool:
    return math.isnan(interval.low) and math.isnan(interval.high)


@pytest.mark.parametrize("every", [1, 16])
@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_intervals_cover_the_mean_as_often_as_they_say(correlation: float, every: int) -> None:
    series = draw(1, 300, 16384, correlation)
    series[:, np.arange(series.shape[1]) % every != 0] = np.nan
    assert 0.90 <= coverage(series, n_resamples=300) <= 0.985


def test_single_tokens_instead_of_blocks_cover_too_seldom() -> None:
    series = draw(2, 200, 2048, 0.9)
    assert coverage(series, n_resamples=50, block=1) < 0.6
    assert coverage(series, n_resamples=300) > 0.85


def test_few_blocks_of_independent_tokens_are_not_too_narrow() -> None:
    """Two blocks and a tenth: 0.55 without the correction, 0.7 were the third block not cut."""
    n, block = 210, 100
    series = np.random.default_rng(3).normal(size=(400, n))
    found = [
        bootstrap_interval(one, seed=seed, block=block, n_resamples=300)
        for seed, one in enumerate(series)
    ]
    variance = np.mean([((i.high - i.low) / 2 / 1.96) ** 2 for i in found])
    assert 0.85 < variance * n < 1.2


def test_the_interval_is_that_of_all_blocks_on_the_circle() -> None:
    n, block, n_blocks = 400, 20, 20
    rng = np.random.default_rng(4)
    scores = rng.normal(5, 1, n)
    scores[[0, 1, -2, -1]] += 10  # rare in blocks that do not cross the end
    sums = np.array([sum(scores[(start + i) % n] for i in range(block)) for start in range(n)])
    means = rng.choice(sums, (20_000, n_blocks)).sum(axis=1) / n
    wider = scores.mean() + (means - scores.mean()) * math.sqrt(n / (n - block))
    low, high = np.quantile(wider, [0.025, 0.975])
    interval = bootstrap_interval(scores, seed=0, block=block, n_resamples=20_000)
    assert interval.low == pytest.approx(low, abs=0.03 * (high - low))
    assert interval.high == pytest.approx(high, abs=0.03 * (high - low))


def test_a_seed_repeats_however_many_blocks_are_drawn_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scores = draw(5, 1, 3000, 0.5)[0]
    first = bootstrap_interval(scores, seed=7)
    assert bootstrap_interval(scores, seed=8) != first
    monkeypatch.setattr(statistics, "DRAWS", 50)
    assert bootstrap_interval(scores, seed=7) == first


def test_a_higher_level_is_wider() -> None:
    scores = draw(6, 1, 3000, 0.5)[0]
    narrow, wide = (bootstrap_interval(scores, seed=0, level=level) for level in (0.5, 0.99))
    assert wide.low < narrow.low < scores.mean() < narrow.high < wide.high


def test_unscored_tokens_at_the_ends_change_nothing() -> None:
    scores = draw(7, 1, 3000, 0.5)[0]
    around = np.concatenate([np.full(5000, np.nan), scores, [np.nan]])
    assert bootstrap_interval(around, seed=0) == bootstrap_interval(scores, seed=0)


def test_the_single_precision_of_a_file_is_enough() -> None:
    scores = draw(8, 1, 3000, 0.5)[0]
    single = bootstrap_interval(scores.astype(np.float32), seed=0)
    double = bootstrap_interval(scores, seed=0)
    assert single.low == pytest.approx(double.low, rel=1e-6)
    assert single.high == pytest.approx(double.high, rel=1e-6)


def test_too_little_gives_no_interval() -> None:
    scores = np.ones(200)
    assert bootstrap_interval(scores, seed=0, block=100) == Interval(1.0, 1.0)
    assert is_none(bootstrap_interval(scores, seed=0, block=101))
    assert is_none(bootstrap_interval(scores, seed=0))
    assert is_none(bootstrap_interval(np.empty(0), seed=0))
    assert is_none(bootstrap_interval(np.full(10, np.nan), seed=0))
    scores[1:-1] = np.nan
    assert is_none(bootstrap_interval(scores, seed=0, block=10))


def test_an_infinite_score_gives_no_interval() -> None:
    scores = np.ones(200)
    scores[100] = np.inf
    assert mean_nll(scores) == math.inf
    assert is_none(bootstrap_interval(scores, seed=0, block=10))


def test_blocks_grow_with_the_cube_root() -> None:
    assert [default_block(n) for n in (1000, 8000, 1_000_000)] == [200, 400, 2000]
    assert default_block(1) >= 1


def test_a_planted_shift_is_found_and_none_is_not() -> None:
    text = draw(9, 60, 8192, 0.9)  # what makes a token hard for both
    one, other = (text + draw(seed, 60, 8192, 0.5) / 4 for seed in (10, 11))
    missed = 0
    for seed, (a, b) in enumerate(zip(one, other, strict=True)):
        mean, interval = paired_interval(a, b, seed=seed)
        missed += not covers(interval, 0.0)
        shifted, moved = paired_interval(a + 0.04, b, seed=seed)
        assert shifted == pytest.approx(mean + 0.04)
        assert moved.low > 0
        alone = bootstrap_interval(a, seed=seed)
        assert interval.high - interval.low < alone.high - alone.low
    assert missed <= 6


def test_pairs_are_tokens_scored_in_both() -> None:
    a = np.array([np.nan, 3.0, 4.0, np.nan, 6.0, 100.0, 100.0])
    b = np.array([1.0, 2.0, np.nan, np.nan, 3.0])
    for sign, pair in ((1, (a, b)), (-1, (b, a))):
        mean, _ = paired_interval(*pair, seed=0)
        assert mean == sign * 2.0
    mean, interval = paired_interval(a, np.full(7, np.nan), seed=0)
    assert math.isnan(mean)
    assert is_none(interval)


def test_the_mean_leaves_out_tokens_without_a_prediction() -> None:
    assert mean_nll(np.array([np.nan, 1.0, 3.0, np.nan])) == 2.0
    assert math.isnan(mean_nll(np.array([np.nan])))
    assert math.isnan(mean_nll(np.empty(0)))


def test_the_mean_of_single_precision_is_summed_in_double() -> None:
    scores = np.full(2**20, 4.1, np.float32)
    assert mean_nll(scores) == pytest.approx(float(np.float32(4.1)), rel=1e-12)


def test_perplexity() -> None:
    assert perplexity(math.log(20.0)) == pytest.approx(20.0)
    assert perplexity(709.0) < math.inf
    assert perplexity(710.0) == math.inf
    assert perplexity(math.inf) == math.inf
    assert math.isnan(perplexity(math.nan))


@settings(deadline=None)
@given(
    scores=st.lists(st.one_of(st.just(math.nan), st.floats(0, 50, width=32)), max_size=250),
    n_buckets=st.integers(1, 40),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_a_curve_is_a_plain_loop(
    scores: list[float], n_buckets: int, dtype: type[np.floating]
) -> None:
    first, mean = curve(np.array(scores, dtype), n_buckets)
    size = max(1, math.ceil(len(scores) / n_buckets))
    assert first.tolist() == list(range(0, len(scores), size))
    assert len(first) <= n_buckets
    for start, found in zip(first.tolist(), mean.tolist(), strict=True):
        bucket = [x for x in scores[start : start + size] if not math.isnan(x)]
        expected = math.fsum(bucket) / len(bucket) if bucket else math.nan
        assert found == pytest.approx(expected, rel=1e-12, abs=1e-12, nan_ok=True)


def test_scores_come_back_as_they_were_appended(tmp_path: Path) -> None:
    path = tmp_path / "scores.f32"
    path.write_bytes(b"what was there before")
    pieces = [np.array([np.nan, 1 / 3]), np.empty(0), np.arange(5000) / 7]
    with ScoreFile(path) as file:
        for done, piece in enumerate(pieces, start=1):
            file.append(piece)
            expected = np.concatenate(pieces[:done]).astype(np.float32)
            np.testing.assert_array_equal(read_scores(path), expected)
        file.close()
    file.close()
    scores = read_scores(path)
    assert scores.dtype == np.float32
    assert isinstance(scores, np.memmap)
    assert not scores.flags.writeable
    assert path.read_bytes()[4:8] == bytes.fromhex("abaaaa3e")


@pytest.mark.parametrize("torn", range(1, 4))
def test_a_torn_last_score_is_left_out(tmp_path: Path, torn: int) -> None:
    path = tmp_path / "scores.f32"
    with ScoreFile(path) as file:
        file.append(np.array([1.0, 2.0]))
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:torn])
    assert read_scores(path).tolist() == [1.0, 2.0]
    path.write_bytes(whole[:torn])
    assert read_scores(path).tolist() == []


def test_a_file_without_scores_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "scores.f32"
    ScoreFile(path).close()
    assert read_scores(path).shape == (0,)


def test_files_that_cannot_be_opened_are_named(tmp_path: Path) -> None:
    with pytest.raises(StreamsinkError, match=r"none\.f32 cannot be read: No such file"):
        read_scores(tmp_path / "none.f32")
    with pytest.raises(StreamsinkError, match=r"scores\.f32 cannot be written: No such file"):
        ScoreFile(tmp_path / "none" / "scores.f32")
