"""Means and shares of rows that come in clusters (needles, subjects, prompts, texts): what is independent is a cluster.

The house rules are in `docs/methods/statistics.md`. n is the number of clusters; below five of them there is no
interval (NaN). Means have Student's t intervals of the cluster-robust variance. Shares, and whatever else lies between
0 and 1, have Wilson's interval at the effective number of rows, rows over the design effect, with a quantile between
the normal one (a row a cluster, whose variance is known from the share) and Student's; so a share of 0 or 1 has an
interval with a width. Coverage is held by a simulation in tests/stats/test_clusters.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from workbench.core.errors import InputError
from workbench.stats.intervals import Ends, Estimate, normal_quantile

FEWEST = 5  # clusters from which an interval is given


@dataclass(frozen=True)
class Clusters:
    """Rows sorted into clusters: ``index`` [rows] the cluster of a row (from 0), ``sizes`` [clusters] float64."""

    index: np.ndarray
    sizes: np.ndarray

    @property
    def n(self) -> int:
        return len(self.sizes)

    @property
    def rows(self) -> int:
        return len(self.index)

    @property
    def effective(self) -> float:
        """How many clusters of one size weigh as much: fewer than n where sizes differ."""
        return float(self.sizes.sum() ** 2 / (self.sizes**2).sum())

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sum of ``values`` [rows, ...] in every cluster, [clusters, ...]."""
        found = np.zeros((self.n, *values.shape[1:]))
        np.add.at(found, self.index, values)
        return found


def clusters_of(names: np.ndarray) -> Clusters:
    """The clusters that ``names`` [rows] say a row belongs to. InputError for no rows."""
    names = np.asarray(names)
    if not len(names):
        raise InputError("An interval needs at least 1 value; there are 0.")
    _, index = np.unique(names, return_inverse=True)
    return Clusters(index, np.bincount(index).astype(np.float64))


def cluster_mean(values: np.ndarray, names: np.ndarray, *, level: float = 0.95) -> Estimate:
    """The mean over rows of ``values`` [rows] in the clusters ``names`` [rows], with Student's t interval."""
    found = clusters_of(names)
    low, high = mean_interval(values, found, level=level)
    return Estimate(float(np.mean(values)), float(low), float(high), found.n, found.rows)


def cluster_share(values: np.ndarray, names: np.ndarray, *, level: float = 0.95) -> Estimate:
    """The same of values between 0 and 1 (true or false, recall), with Wilson's interval at the effective number of
    rows."""
    found = clusters_of(names)
    low, high = share_interval(values, found, level=level)
    return Estimate(float(np.mean(np.asarray(values, np.float64))), float(low), float(high), found.n, found.rows)


def mean_interval(values: np.ndarray, clusters: Clusters, *, level: float = 0.95) -> Ends:
    """Low and high, [...], of the means of ``values`` [rows, ...]: t with one degree of freedom less than there are
    clusters, of the variance between clusters (a ratio estimator where sizes differ)."""
    values, mean, variance = _moments(values, clusters)
    if clusters.n < FEWEST:
        return _none(mean)
    half = student_quantile(0.5 + level / 2, clusters.effective - 1) * np.sqrt(variance)
    return mean - half, mean + half


def share_interval(values: np.ndarray, clusters: Clusters, *, level: float = 0.95) -> Ends:
    """Low and high, [...], of the means of ``values`` [rows, ...], all between 0 and 1. InputError for others."""
    values, mean, variance = _moments(values, clusters)
    if np.nanmin(values, initial=0) < 0 or np.nanmax(values, initial=1) > 1:
        raise InputError("A share is of values between 0 and 1.")
    if clusters.n < FEWEST:
        return _none(mean)
    rows_each = float((clusters.sizes**2).sum() / clusters.sizes.sum())  # rows of the cluster that a row is in
    binomial = mean * (1 - mean) / clusters.rows
    with np.errstate(invalid="ignore", divide="ignore"):
        effect = np.where(binomial > 0, variance / binomial, rows_each)  # all 0 or all 1: nothing tells rows apart
    whole = bool(np.isin(values[~np.isnan(values)], (0.0, 1.0)).all())
    effect = np.clip(effect, 1.0 if whole else 1e-9, max(rows_each, 1.0))
    normal, student = (normal_quantile(0.5 + level / 2), student_quantile(0.5 + level / 2, clusters.effective - 1))
    known = 1.0 if not whole else 0.0 if rows_each <= 1 else (effect - 1) / (rows_each - 1)
    quantile = normal + (student - normal) * np.asarray(known) ** 0.125
    return _score_interval(mean, clusters.rows / effect, quantile)


def crossed_interval(values: np.ndarray, clusters: Clusters, *, level: float = 0.95) -> Ends:
    """Low and high of the mean of ``values`` [draws, rows] where the draws (of random heads, directions) are a sample
    too: the variance of both (two-way, without their interaction counted twice), with the smaller of the two degrees of
    freedom. NaN below five clusters or two draws."""
    mean, variance, freedom = _crossed_moments(np.asarray(values, np.float64), clusters)
    if np.isnan(variance):
        return math.nan, math.nan
    half = student_quantile(0.5 + level / 2, freedom) * np.sqrt(variance)
    return float(mean - half), float(mean + half)


def crossed_p_above(values: np.ndarray, clusters: Clusters) -> float:
    """One-sided p of the mean of ``values`` [draws, rows] being at or below 0, by the same variance and degrees of
    freedom as `crossed_interval`: below 0.025 where the interval lies above 0. NaN where there is no interval."""
    from scipy import stats

    mean, variance, freedom = _crossed_moments(np.asarray(values, np.float64), clusters)
    if np.isnan(variance):
        return math.nan
    if variance == 0:
        return 0.0 if mean > 0 else 1.0
    return float(stats.t.sf(mean / np.sqrt(variance), freedom))


def _crossed_moments(values: np.ndarray, clusters: Clusters) -> tuple[float, float, float]:
    """Mean of values [draws, rows], its variance over both and the degrees of freedom; NaN below five clusters or two
    draws."""
    draws = values.shape[0]
    of_rows, of_draws = values.mean(0), values.mean(1)
    _, mean, between = _moments(of_rows, clusters)
    if clusters.n < FEWEST or draws < 2:
        return float(mean), math.nan, math.nan
    chosen = of_draws.var(ddof=1) / draws
    rest = values - of_rows - of_draws[:, None] + values.mean()
    both = (clusters.sums(rest.T) ** 2).sum() / ((draws - 1) * (clusters.n - 1)) * clusters.n / clusters.rows**2 / draws
    variance = max(between + chosen - both, between, chosen)
    freedom = variance**2 / (between**2 / (clusters.effective - 1) + chosen**2 / (draws - 1)) if variance else 1.0
    return float(mean), float(variance), float(freedom)


def p_of_zero(values: np.ndarray, clusters: Clusters) -> np.ndarray:
    """Two-sided p [...] of a mean of zero, for ``values`` [rows, ...]: Student's t of the variance between clusters.
    NaN below five clusters; 1 for values that are all zero."""
    from scipy import stats

    _, mean, variance = _moments(values, clusters)
    if clusters.n < FEWEST:
        return np.full(np.shape(mean), np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        t = np.where(mean == 0, 0.0, np.abs(mean) / np.sqrt(variance))
    return 2 * stats.t.sf(t, clusters.effective - 1)


def false_discovery(p: np.ndarray, *, dependent: bool = False) -> np.ndarray:
    """p adjusted for how many were looked at (Benjamini and Hochberg 1995; ``dependent``: Benjamini and Yekutieli
    2001): of those below q, in expectation, a share of at most q is wrong. The shape stays; NaN stays NaN and does
    not count."""
    from scipy import stats

    p = np.asarray(p, np.float64)
    out = np.full(p.shape, np.nan)
    there = ~np.isnan(p)
    if there.any():
        out[there] = stats.false_discovery_control(p[there], method="by" if dependent else "bh")
    return out


def student_quantile(p: float, freedom: float) -> float:
    """The p-quantile of Student's t distribution."""
    from scipy import stats

    return float(stats.t.ppf(p, freedom))


def _moments(values: np.ndarray, clusters: Clusters) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``values`` as float64 [rows, ...], their mean, and the variance of that mean between clusters."""
    values = np.asarray(values, np.float64)
    if len(values) != clusters.rows:
        raise InputError(f"There are {len(values)} values and {clusters.rows} cluster names; every value needs one.")
    mean = values.mean(0)
    if clusters.n < 2:
        return values, mean, np.full(np.shape(mean), np.nan)
    off = clusters.sums(values - mean)
    return values, mean, (off**2).sum(0) * clusters.n / (clusters.n - 1) / clusters.rows**2


def _score_interval(mean: np.ndarray, n: np.ndarray, z: np.ndarray) -> Ends:
    """Wilson's interval of a share of n (not whole) with quantile z."""
    centre = (mean + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
    high = centre + half
    with np.errstate(invalid="ignore", divide="ignore"):
        low = mean * (mean / (high * (1 + z * z / n)))  # centre − half, without its rounding
    # exactly 0 (or 1) where nothing (or everything) succeeded; rounding must not say otherwise
    return np.where(mean == 0, 0.0, low), np.where(mean == 1, 1.0, np.minimum(high, 1.0))


def _none(mean: np.ndarray) -> Ends:
    return np.full(np.shape(mean), np.nan), np.full(np.shape(mean), np.nan)
