"""Intervals and correlations, in numpy.

Bootstrap resamples are drawn as *counts* (how often each of the n items is in a resample), so that a resampled mean is
one matrix product and a resampled correlation a few; draws come in chunks, so that memory stays bounded whatever n is.
All intervals are percentile intervals. The same generator state gives the same interval whatever the chunk size.

A NaN in the data gives NaN out, never a number computed from the rest: drop missing rows first, and report how many.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import numpy as np

from workbench.core.errors import InputError

CHUNK_ELEMENTS = 2_000_000  # numbers held at once by one chunk of resamples (16 MB in float64)
Ends = tuple[float, float] | tuple[np.ndarray, np.ndarray]  # low and high: numbers, or arrays of one shape


@dataclass(frozen=True)
class Estimate:
    """A number with its interval; ``n`` independent items went into it (clusters), where they hold more ``rows``."""

    value: float
    low: float
    high: float
    n: int
    rows: int | None = None

    def as_dict(self) -> dict[str, float | int]:
        """The form that ``summary.json`` uses."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def bootstrap_mean(values: np.ndarray, *, draws: int = 1000, level: float = 0.95, rng: np.random.Generator) -> Ends:
    """Percentile interval of the mean over the first axis.

    ``values`` [n, ...] (columns are resampled together). Returns (low, high), each of shape [...]; floats for 1-D
    values. One item gives an interval of width zero; none is an InputError.
    """
    values = np.asarray(values, dtype=np.float64)
    _need(values.shape[0] if values.ndim else 0, 1)
    n = len(values)
    flat = values.reshape(n, -1)
    seed = _seed(rng)
    low, high = np.empty(flat.shape[1]), np.empty(flat.shape[1])
    width = max(1, CHUNK_ELEMENTS // draws)  # columns whose resampled means are held at once
    for start in range(0, flat.shape[1], width):
        block = flat[:, start : start + width]
        means = np.concatenate([counts @ block for counts in resamples(n, draws, seed)]) / n
        low[start : start + width], high[start : start + width] = percentiles(means, level)
    if values.ndim == 1:
        return float(low[0]), float(high[0])
    return low.reshape(values.shape[1:]), high.reshape(values.shape[1:])


def cluster_bootstrap_mean(
    values: np.ndarray, clusters: np.ndarray, *, draws: int = 1000, level: float = 0.95, rng: np.random.Generator
) -> tuple[float, float]:
    """Percentile interval of the mean of ``values`` [n] when whole clusters (prompts, needles) are resampled, not
    items.

    ``clusters`` [n]: which cluster an item belongs to. Every cluster brings all its items, so clusters weigh as they
    are large; give one value per cluster to :func:`bootstrap_mean` for equal weights.
    """
    values = np.asarray(values, dtype=np.float64)
    _same_length(values, clusters)
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    _need(len(values), 1)
    groups = int(index.max()) + 1
    sums = np.bincount(index, weights=values, minlength=groups)
    sizes = np.bincount(index, minlength=groups).astype(np.float64)
    means = np.concatenate([(c @ sums) / (c @ sizes) for c in resamples(groups, draws, _seed(rng))])
    low, high = percentiles(means, level)
    return float(low), float(high)


def clustered_draws(
    values: np.ndarray, clusters: np.ndarray, *, draws: int = 1000, rng: np.random.Generator
) -> np.ndarray:
    """Resampled means [draws, columns] of ``values`` [n, columns], whole ``clusters`` [n] resampled; columns go
    together."""
    values = np.asarray(values, dtype=np.float64)
    _same_length(values, clusters)
    _need(len(values), 1)
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.zeros((int(index.max()) + 1, values.shape[1]))
    np.add.at(sums, index, values)
    sizes = np.bincount(index).astype(np.float64)
    return np.concatenate([(c @ sums) / (c @ sizes)[:, None] for c in resamples(len(sizes), draws, _seed(rng))])


def percentiles(
    values: np.ndarray, level: float = 0.95, *, of_the_values: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval over the first axis of ``values`` [draws, ...]: low and high, each [...]. ``of_the_values``:
    the ends are values that were drawn, not interpolated between two. InputError for a level outside 0..1."""
    if not 0 < level < 1:
        raise InputError(f"The level of an interval is between 0 and 1, not {level}.")
    how = "nearest" if of_the_values else "linear"
    low, high = np.quantile(values, [0.5 - level / 2, 0.5 + level / 2], axis=0, method=how)
    return low, high


def wilson(successes, n, level: float = 0.95) -> Ends:
    """Wilson score interval of a rate; works on arrays. n = 0 gives (NaN, NaN)."""
    successes, n = np.asarray(successes, dtype=np.float64), np.asarray(n, dtype=np.float64)
    if np.any(successes < 0) or np.any(successes > n):
        raise InputError("A rate needs between 0 and n successes.")
    z = normal_quantile(0.5 + level / 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        p = successes / n
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        # the bound is exactly 0 (or 1) when no trial (or every trial) succeeds; rounding must not say otherwise
        low = np.where(successes == 0, np.where(n > 0, 0.0, np.nan), centre - half)
        high = np.where(successes == n, np.where(n > 0, 1.0, np.nan), centre + half)
    return (float(low), float(high)) if low.ndim == 0 else (low, high)


def rate_difference(successes_a: int, n_a: int, successes_b: int, n_b: int, level: float = 0.95) -> Estimate:
    """p_a - p_b of two independent samples with Newcombe's hybrid score interval (his method 10)."""
    if n_a < 1 or n_b < 1:
        return Estimate(math.nan, math.nan, math.nan, int(n_a + n_b))
    a, b = successes_a / n_a, successes_b / n_b
    (low_a, high_a), (low_b, high_b) = wilson(successes_a, n_a, level), wilson(successes_b, n_b, level)
    return Estimate(
        a - b,
        a - b - math.hypot(a - low_a, high_b - b),
        a - b + math.hypot(high_a - a, b - low_b),
        int(n_a + n_b),
    )


def pearson(
    x: np.ndarray, y: np.ndarray, *, draws: int = 1000, level: float = 0.95, rng: np.random.Generator
) -> Estimate:
    """Pearson's r of x and y [n] with its bootstrap interval; NaN where one of them does not vary."""
    x, y = _pair(x, y)
    return _correlation(x, y, lambda counts: (x, y), draws=draws, level=level, rng=rng)


def spearman(
    x: np.ndarray, y: np.ndarray, *, draws: int = 1000, level: float = 0.95, rng: np.random.Generator
) -> Estimate:
    """Spearman's rho of x and y [n] (ties at their mean rank) with its bootstrap interval; ranks are those of the
    resample."""
    x, y = _pair(x, y)
    rank_x, rank_y = _ranker(x), _ranker(y)
    return _correlation(x, y, lambda c: (rank_x(c), rank_y(c)), draws=draws, level=level, rng=rng)


def resampled_spearman(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Spearman's rho of x and y [n] in each resample, ``counts`` [draws, n] → [draws]; ranks are those of the resample.
    NaN where one of the two does not vary in it."""
    x, y = _pair(x, y)
    with np.errstate(invalid="ignore", divide="ignore"):  # a resample may have none of these rows
        return _weighted_pearson(_ranker(x)(counts), _ranker(y)(counts), counts)


def resamples(n: int, draws: int, seed: int) -> Iterator[np.ndarray]:
    """Chunks [c, n] of :func:`resample_counts`, ``draws`` rows in all."""
    rng = np.random.default_rng(seed)
    per_chunk = max(1, CHUNK_ELEMENTS // max(n, 1))
    for start in range(0, draws, per_chunk):
        yield resample_counts(n, min(per_chunk, draws - start), rng)


def resample_counts(n: int, draws: int, rng: np.random.Generator, *, clusters: np.ndarray | None = None) -> np.ndarray:
    """How often each of n items is in each of ``draws`` resamples, [draws, n] (float64, rows sum to n). With
    ``clusters`` [n] whole clusters are resampled, as many as there are."""
    if clusters is not None:
        _, index = np.unique(np.asarray(clusters), return_inverse=True)
        return resample_counts(int(index.max()) + 1, draws, rng)[:, index]
    index = rng.integers(0, n, (draws, n)) + np.arange(draws)[:, None] * n
    return np.bincount(index.ravel(), minlength=draws * n).reshape(draws, n).astype(np.float64)


def multinomial_counts(n: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """What :func:`resample_counts` gives, of the same distribution but from other numbers of the generator."""
    return rng.multinomial(n, np.full(n, 1 / n), size=draws).astype(np.float64)


def normal_quantile(p: float) -> float:
    """The p-quantile of the standard normal distribution."""
    from statistics import NormalDist

    return NormalDist().inv_cdf(p)


def _correlation(x, y, columns, *, draws, level, rng) -> Estimate:
    n = len(x)
    if np.isnan(x).any() or np.isnan(y).any():
        return Estimate(math.nan, math.nan, math.nan, n)
    once = np.ones((1, n))
    a, b = columns(once)
    value = float(_weighted_pearson(a, b, once)[0])
    values = []
    for counts in resamples(n, draws, _seed(rng)):
        a, b = columns(counts)
        values.append(_weighted_pearson(a, b, counts))
    values = np.concatenate(values)
    values = values[~np.isnan(values)]  # a resample of one repeated item has no correlation
    if math.isnan(value) or len(values) < draws / 2:
        return Estimate(value, math.nan, math.nan, n)
    low, high = percentiles(values, level)
    return Estimate(value, float(low), float(high), n)


def _weighted_pearson(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Pearson's r per row of ``counts`` [c, n]; x and y are [n] or [c, n]."""
    total = counts.sum(1)
    x, y = np.broadcast_to(x, counts.shape), np.broadcast_to(y, counts.shape)
    x = _centred(x, counts, total)
    y = _centred(y, counts, total)
    xy, xx, yy = (counts * x * y).sum(1), (counts * x * x).sum(1), (counts * y * y).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        r = xy / np.sqrt(xx * yy)
    return np.clip(r, -1, 1)


def _centred(x: np.ndarray, counts: np.ndarray, total: np.ndarray) -> np.ndarray:
    """x minus its mean in each resample; exactly zero where the resample holds one value only (rounding would leave
    more)."""
    inside = counts > 0
    constant = np.where(inside, x, -np.inf).max(1) == np.where(inside, x, np.inf).min(1)
    return np.where(constant[:, None], 0.0, x - ((counts * x).sum(1) / total)[:, None])


def _ranker(x: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """counts [c, n] -> the mean ranks [c, n] of x among the resampled items."""
    _, group = np.unique(x, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))

    def rank(counts: np.ndarray) -> np.ndarray:
        size = np.add.reduceat(counts[:, order], starts, axis=1)
        return (np.cumsum(size, axis=1) - (size - 1) / 2)[:, group]

    return rank


def _pair(x, y) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x, dtype=np.float64).ravel(), np.asarray(y, dtype=np.float64).ravel()
    _same_length(x, y)
    _need(len(x), 2)
    return x, y


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(0, 2**63))


def _same_length(a, b) -> None:
    if len(a) != len(b):
        raise InputError(f"The two samples must have one value per item each; they have {len(a)} and {len(b)}.")


def _need(n: int, least: int) -> None:
    if n < least:
        raise InputError(f"An interval needs at least {least} value{'s' if least > 1 else ''}; there are {n}.")
