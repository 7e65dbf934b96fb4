"""Means of per-token negative log-likelihoods, and how far they can be trusted.

A score is the negative log-likelihood of a token in nat, NaN where the token had no prediction.
Such tokens keep their place: distances are counted in tokens, scored or not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK_FACTOR = 20
"""Block length by the cube root of the number of tokens; see `default_block`."""
DRAWS = 2**20
"""Blocks drawn at once, which bounds the memory of a bootstrap."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A confidence interval; both ends are NaN where there is too little to tell.

    Attributes
    ----------
    low, high : float
        Its ends, in the unit of what it is of.
    """

    low: float
    high: float


NO_INTERVAL = Interval(math.nan, math.nan)


def mean_nll(scores: NDArray[np.floating]) -> float:
    """Mean over the scored tokens.

    Parameters
    ----------
    scores : ndarray, shape (n,)
        In nat.

    Returns
    -------
    float
        In nat; NaN if no token is scored.
    """
    scored = scores[~np.isnan(scores)]
    return float(scored.mean(dtype=np.float64)) if scored.size else math.nan


def perplexity(mean: float) -> float:
    """``exp(mean)`` of a mean in nat; infinite where it is too large for a float."""
    try:
        return math.exp(mean)
    except OverflowError:
        return math.inf


def default_block(n: int) -> int:
    """Block length for a stream of n tokens: ``20 n^(1/3)``, so 200 for 1 000, 2 000 for 1 000 000.

    ``n^(1/3)`` is the growth that gives the variance of a mean its least mean squared error
    (Künsch 1989; Hall, Horowitz & Jing 1995, doi 10.1093/biomet/82.3.561). The factor depends on
    the text. Any two scores are correlated by less than 0.1, but the correlation goes on for
    hundreds of tokens, perhaps as long as a topic does, and adds up. So a mean over a block
    varies more than one over as many independent tokens. By how many times its variance is larger,
    for SmolLM2-135M on two stretches of Moby Dick (7 168 tokens from the first, 10 240 from number
    60 000; 4 sink tokens, context 512, half of it discarded), and for the difference to the same
    without sink:

    ==============  ===========  ===========
    tokens a block  scores       difference
    ==============  ===========  ===========
    64              1.4 and 1.8  2.2 and 2.9
    192             2.1 and 2.8  3.9 and 4.8
    384             2.7 and 4.0  5.1 and 5.6
    768             3.3 and 6.2  5.0 and 4.5
    ==============  ===========  ===========

    20 makes blocks of 386 and 434 tokens there. Longer ones would leave too few of them. A factor
    that is read off the correlations of the data (Politis & White 2004, doi
    10.1081/ETC-120028836) fails, because each of them alone is lost in noise: of the six series
    (with sink, without, and the difference, twice) it asked for 2 to 8 tokens in five, and for 84
    in one.
    """
    return max(1, round(BLOCK_FACTOR * math.pow(n, 1 / 3)))


def bootstrap_interval(
    scores: NDArray[np.floating],
    *,
    seed: int,
    block: int | None = None,
    n_resamples: int = 1000,
    level: float = 0.95,
) -> Interval:
    """Confidence interval of the mean over the scored tokens, by a circular block bootstrap.

    Neighbouring tokens are not independent, so blocks of them are drawn (Künsch 1989,
    doi 10.1214/aos/1176347265), from a stream bent to a circle, so that all tokens are drawn
    equally often (Politis & Romano 1992, "A circular block-resampling procedure for stationary
    data"). The ends are percentiles of the resampled means. It takes time ``O(n + n_resamples * n /
    block)``.

    What is estimated is the mean over all text of the kind that was read. Drifts longer than a
    block are not in the interval, and with fewer than some 20 blocks (8 000 tokens by the default)
    it is too narrow: about 0.9 instead of 0.95 for an AR(1) of 2 000 tokens.

    Parameters
    ----------
    scores : ndarray, shape (n,)
        In nat.
    seed : int
        Seed of the draws.
    block : int, optional
        Tokens of a block, scored or not; `default_block` without.
    n_resamples : int
        Streams drawn.
    level : float
        How often the interval is to cover the mean, between 0 and 1.

    Returns
    -------
    Interval
        In nat. NaN if fewer than two blocks lie between the first scored token and the last, or if
        so few tokens are scored there that a resample had none, or if a score is infinite.
    """
    scored = ~np.isnan(scores)
    if not scored.any():
        return NO_INTERVAL
    whole = slice(scored.argmax(), len(scored) - scored[::-1].argmax())
    span, scored = scores[whole], scored[whole]
    n = len(span)
    block = default_block(n) if block is None else block
    if n < 2 * block:
        return NO_INTERVAL
    # Sum and number of the scored tokens before each place on the circle: shape (n + block + 1, 2).
    before = np.zeros((n + block + 1, 2))
    before[1 : n + 1, 0][scored] = span[scored]
    before[1 : n + 1, 1] = scored
    before[n + 1 :] = before[1 : block + 1]
    np.cumsum(before, axis=0, out=before)
    mean = before[n, 0] / before[n, 1]

    lengths = np.diff([*range(0, n, block), n])  # the last is cut, so that n tokens are drawn
    rng = np.random.default_rng(seed)
    means = np.empty(n_resamples)
    step = max(1, DRAWS // len(lengths))
    with np.errstate(invalid="ignore"):  # 0 / 0, inf - inf: NaN, as promised
        for first in range(0, n_resamples, step):
            part = means[first : first + step]
            start = rng.integers(n, size=(len(part), len(lengths)))
            total = (before[start + lengths] - before[start]).sum(axis=1)
            np.divide(total[:, 0], total[:, 1], out=part)
        # Even for independent tokens the variance of these means is short by block / n, because
        # blocks are compared to the mean of the very tokens that they consist of.
        means = mean + (means - mean) * math.sqrt(n / (n - block))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def paired_interval(
    a: NDArray[np.floating],
    b: NDArray[np.floating],
    *,
    seed: int,
    block: int | None = None,
    n_resamples: int = 1000,
    level: float = 0.95,
) -> tuple[float, Interval]:
    """Mean of ``a - b`` over the tokens scored in both, and its confidence interval.

    What makes a token hard for every policy cancels, so this is far narrower than a comparison of
    two intervals.

    Parameters
    ----------
    a, b : ndarray, shapes (n,) and (m,)
        Scores of the same stream in nat, from its first token on; the longer one's rest is left
        out.
    seed, block, n_resamples, level
        As in `bootstrap_interval`, which is applied to the differences.

    Returns
    -------
    float
        In nat; NaN if no token is scored in both.
    Interval
        In nat; NaN as in `bootstrap_interval`.
    """
    n = min(len(a), len(b))
    difference = a[:n].astype(np.float64) - b[:n]
    interval = bootstrap_interval(
        difference, seed=seed, block=block, n_resamples=n_resamples, level=level
    )
    return mean_nll(difference), interval


def curve(
    scores: NDArray[np.floating], n_buckets: int = 100
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """How the mean goes along the stream.

    Parameters
    ----------
    scores : ndarray, shape (n,)
        In nat.
    n_buckets : int
        Most buckets. All are of one size, the smallest that is enough, but for the last, which may
        be shorter; so there can be fewer.

    Returns
    -------
    first : ndarray of int64, shape (k,)
        Index of the first token of each bucket.
    mean : ndarray of float64, shape (k,)
        Mean over its scored tokens in nat; NaN if it has none.
    """
    size = max(1, -(-len(scores) // n_buckets))
    first = np.arange(0, len(scores), size, dtype=np.int64)
    scored = ~np.isnan(scores)
    total = np.add.reduceat(np.where(scored, scores, 0.0), first, dtype=np.float64)
    count = np.add.reduceat(scored, first, dtype=np.int64)
    return first, np.divide(total, count, out=np.full(len(first), np.nan), where=count > 0)


def wilson_interval(n_right: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's interval of a proportion, by default that of 95 %.

    Parameters
    ----------
    n_right, n : int
        Successes and trials, at least one.
    z : float
        Quantile of the normal distribution.

    Returns
    -------
    low, high : float
        From 0 to 1.
    """
    share = n_right / n
    middle = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    width = 1 + z * z / n
    return max(0.0, (middle - half) / width), min(1.0, (middle + half) / width)
