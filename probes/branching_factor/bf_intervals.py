"""Intervals of branching factors by the house rules (docs/methods/statistics.md): what is independent is a prompt, and
within one prompt a sample.

A branching factor is exp of a rate, so its interval is Student's t on the log scale: of the log of a mean over prompts
by linearisation (each prompt brings its value over the mean), of one prompt by the jackknife over its samples. Below
five prompts (samples) there is none, and none where nothing varies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from probes.branching_factor.estimators import Profile, around, bounds, resampled, sample_parts
from workbench.stats.clusters import FEWEST, clusters_of, mean_interval, student_quantile
from workbench.stats.intervals import Ends, Estimate

if TYPE_CHECKING:
    from probes.branching_factor.config import Config

DRAWS = 1000  # resamples where an interval has no formula


def mean_ends(values: np.ndarray, prompts: Sequence[int], *, least: float = 1.0) -> Ends:
    """Low and high of the mean over prompts of positive ``values`` [rows], those that are not defined left out;
    ``prompts`` [rows] says which prompt a row is of. No end lies below ``least``: no branching factor is below 1."""
    values, names = _known(values, prompts)
    if not len(values):
        return np.nan, np.nan
    mean = values.mean()
    low, high = _around(np.log(mean) if mean > 0 else np.nan, _half(values / mean if mean > 0 else values * 0, names))
    return max(low, least), max(high, least)  # in this order NaN stays NaN


def curve_ends(curves: np.ndarray, prompts: Sequence[int]) -> Ends:
    """:func:`mean_ends` at every position of ``curves`` [rows, N], each over the prompts with a value there."""
    ends = np.array([mean_ends(column, prompts) for column in np.asarray(curves).T]).reshape(-1, 2)
    return ends[:, 0], ends[:, 1]


def ratio_of_means(a: np.ndarray, b: np.ndarray, prompts: Sequence[int]) -> Estimate:
    """Mean of ``a`` over mean of ``b`` [rows], the same prompts in both: t over prompts of what each brings to the log
    of the ratio. Undefined where the mean of b is 0."""
    both, names = _known(np.stack([a, b], 1), prompts)
    n, rows = len(np.unique(names)), len(both)
    if not rows or both[:, 1].mean() <= 0:
        return Estimate(np.nan, np.nan, np.nan, n, rows)
    means = both.mean(0)
    value = float(means[0] / means[1])
    if value <= 0:
        return Estimate(value, np.nan, np.nan, n, rows)
    low, high = _around(np.log(value), _half(both[:, 0] / means[0] - both[:, 1] / means[1], names))
    return Estimate(value, low, high, n, rows)


def paired_mean(values: np.ndarray, prompts: Sequence[int]) -> Estimate:
    """The mean of ``values`` [rows] (differences, slopes) with t over prompts, undefined rows left out."""
    values, names = _known(values, prompts)
    if not len(values):
        return Estimate(np.nan, np.nan, np.nan, 0, 0)
    mean, half = float(values.mean()), _half(values, names)
    return Estimate(mean, mean - half, mean + half, len(np.unique(names)), len(values))


def prompt_ends(profile: Profile, config: Config, bf: np.ndarray, rng: np.random.Generator) -> Ends:
    """Low and high [P] of the branching factors ``bf`` [P] of single prompts, over their samples. What the official
    code computes (compat) has no formula: a bootstrap of the samples."""
    if config.estimator != "compat":
        with np.errstate(divide="ignore", invalid="ignore"):
            return sample_ends(np.log(bf), *sample_parts(profile, config.estimator, config.pool))
    low, high = np.full(len(bf), np.nan), np.full(len(bf), np.nan)
    if profile.lengths.shape[1] >= FEWEST:
        drawn = resampled(profile, "compat", pool=config.pool, rng=rng, draws=DRAWS)
        for p in np.flatnonzero(np.isfinite(bf) & ((profile.lengths > 0).sum(1) >= FEWEST)):
            low[p], high[p] = bounds(around(bf[p], drawn[p]))
    return low, high


def sample_ends(log_bf: np.ndarray, sums: np.ndarray, sizes: np.ndarray) -> Ends:
    """Low and high [P] of exp of ``log_bf`` [P], rates of which each sample brings the numerator ``sums`` and the
    denominator ``sizes`` [P, M]: t of the jackknife over the samples that have tokens."""
    low, high = np.full(len(log_bf), np.nan), np.full(len(log_bf), np.nan)
    for p, value in enumerate(log_bf):
        there = sizes[p] > 0
        n = int(there.sum())
        if n < FEWEST or not np.isfinite(value):
            continue
        own, width = sums[p][there], sizes[p][there]
        without = (own.sum() - own) / (width.sum() - width)
        error = np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum())
        freedom = width.sum() ** 2 / (width**2).sum() - 1
        half = student_quantile(0.975, freedom) * error
        low[p], high[p] = _around(value, half if half > 0 else np.nan)
    return np.maximum(low, 1.0), np.maximum(high, 1.0)


def prompts_in(values: np.ndarray, prompts: Sequence[int]) -> np.ndarray:
    """How many different prompts have a value at each position of ``values`` [rows, N]."""
    known = np.isfinite(values)
    return np.array([len(np.unique(np.asarray(prompts)[column])) for column in known.T], dtype=np.int64)


def _known(values: np.ndarray, prompts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    values = np.asarray(values, np.float64)
    there = np.isfinite(values) if values.ndim == 1 else np.isfinite(values).all(1)
    return values[there], np.asarray(prompts)[there]


def _half(values: np.ndarray, names: np.ndarray) -> float:
    """Half the width of the interval of a mean; NaN below five prompts and where nothing varies."""
    low, high = mean_interval(values, clusters_of(names))
    half = float(high - low) / 2
    return half if half > 0 else np.nan


def _around(log_value: float, half: float) -> tuple[float, float]:
    return float(np.exp(log_value - half)), float(np.exp(log_value + half))
