"""Shares (recall, rates) in clusters of rows where random draws are a sample too, and what two of them differ by.

`workbench.stats.clusters` has the variance; here its interval is put on the scale of a share, so that it stays between
0 and 1 and has a width at 0 and at 1. Coverage is held by a simulation in tests/stats/test_crossed_shares.py.
"""

from __future__ import annotations

import numpy as np

from workbench.stats.clusters import FEWEST, Clusters, crossed_interval, share_interval, student_quantile
from workbench.stats.intervals import Ends


def steady_share_interval(values: np.ndarray, clusters: Clusters, *, level: float = 0.95) -> Ends:
    """Low and high, [...], of the means of ``values`` [rows, ...] between 0 and 1: `share_interval`, where at least
    five clusters differ from 0 or 1, whichever is nearer. Where fewer do, nothing says how much the rows of a
    cluster agree, and a cluster counts once, as it does where none differs: a share of 0.999 is not known better than
    one of 1."""
    values = np.asarray(values, np.float64)
    low, high = (np.asarray(end, np.float64) for end in share_interval(values, clusters, level=level))
    mean, few = values.mean(0), _few_differ(values, clusters)
    if clusters.n < FEWEST:
        return low, high
    centre, half = _score_ends(mean, _of_clusters(clusters, level))
    return np.where(few, np.where(mean == 0, 0.0, centre - half), low), np.where(
        few, np.where(mean == 1, 1.0, centre + half), high
    )


def crossed_share_interval(values: np.ndarray, clusters: Clusters, *, level: float = 0.95) -> Ends:
    """Low and high of the mean of ``values`` between 0 and 1: [rows], or [draws, rows] where the draws are a sample.

    Wilson's interval, as wide as that of `crossed_interval` where the share is ½ away from its ends; where draws and
    rows tell nothing apart, the clusters alone count."""
    values = np.asarray(values, np.float64)
    of_rows = values if values.ndim == 1 else values.mean(0)
    ends = steady_share_interval(of_rows, clusters, level=level)
    alone = float(ends[0]), float(ends[1])
    if values.ndim == 1:
        return alone
    mean = float(values.mean())
    low, high = (float(end) for end in crossed_interval(values, clusters, level=level))
    if np.isnan(low):
        return low, high
    if high == low or not 0 < mean < 1:
        return alone
    w = ((high - low) / 2) ** 2 / (mean * (1 - mean))  # z² over n, if the share were one of n independent rows
    centre, half = _score_ends(mean, max(w, _of_clusters(clusters, level)) if _few_differ(of_rows, clusters) else w)
    return float(centre - half), float(centre + half)


def share_difference_interval(
    first: np.ndarray, second: np.ndarray, clusters: Clusters, *, level: float = 0.95
) -> Ends:
    """Low and high of mean(first) − mean(second), two shares of the same rows: each [rows] or [draws, rows].

    The intervals of the two are put together as in Newcombe's hybrid score interval (MOVER), with the correlation of
    their cluster means, so that −1 and 1 have a width too. NaN where one of the two has no interval."""
    a, b = (np.asarray(values, np.float64) for values in (first, second))
    (low_a, high_a), (low_b, high_b) = (crossed_share_interval(v, clusters, level=level) for v in (a, b))
    rows = [v if v.ndim == 1 else v.mean(0) for v in (a, b)]
    r = _correlation(rows, clusters)
    for values, whole, low, high in zip((a, b), rows, (low_a, low_b), (high_a, high_b)):
        if values.ndim == 2:  # what the draws add to an interval goes with nothing in the other one
            alone = steady_share_interval(whole, clusters, level=level)
            r *= min(1.0, float(alone[1] - alone[0]) / max(high - low, 1e-12))
    p, q = (float(v.mean()) for v in rows)
    below = (p - low_a) ** 2 - 2 * r * (p - low_a) * (high_b - q) + (high_b - q) ** 2
    above = (high_a - p) ** 2 - 2 * r * (high_a - p) * (q - low_b) + (q - low_b) ** 2
    return p - q - float(np.sqrt(max(below, 0.0))), p - q + float(np.sqrt(max(above, 0.0)))


def _score_ends(mean: np.ndarray | float, w: float) -> tuple[np.ndarray, np.ndarray]:
    """Centre and half width of Wilson's interval of a share, w = z² / n."""
    mean = np.asarray(mean, np.float64)
    return (mean + w / 2) / (1 + w), np.sqrt(mean * (1 - mean) * w + w * w / 4) / (1 + w)


def _of_clusters(clusters: Clusters, level: float) -> float:
    """z² / n of clusters that count once, as in `share_interval` of what is all 0 or all 1."""
    rows_each = float((clusters.sizes**2).sum() / clusters.sizes.sum())
    student = student_quantile(0.5 + level / 2, clusters.effective - 1)
    return student**2 * max(rows_each, 1.0) / clusters.rows


def _few_differ(values: np.ndarray, clusters: Clusters) -> np.ndarray:
    """[...]: whether fewer than five clusters of ``values`` [rows, ...] differ from 0, or from 1 where the mean is
    nearer to that."""
    means = clusters.sums(values) / clusters.sizes.reshape(-1, *[1] * (values.ndim - 1))
    edge = np.round(values.mean(0))
    return (np.abs(means - edge) > 1e-12).sum(0) < FEWEST


def _correlation(rows: list[np.ndarray], clusters: Clusters) -> float:
    """Of the cluster means of two rows of values; 0 where one does not vary, or where it is negative."""
    means = [clusters.sums(v) / clusters.sizes for v in rows]
    return max(float(np.corrcoef(means[0], means[1])[0, 1]), 0.0) if all(np.ptp(m) > 0 for m in means) else 0.0


def p_above(values: np.ndarray, level: float, clusters: Clusters, *, interval=steady_share_interval) -> np.ndarray:
    """One-sided p [...] of means of ``values`` [rows, ...] that lie at or below ``level``: the smallest error at which
    the lower end of their ``interval`` is still above it, so that p and interval say the same. 1 where the mean is not
    above it; NaN below five clusters. Not finer than a grid of 60 errors down to 1e-9."""
    errors = np.geomspace(0.5, 1e-9, 60)
    p = np.ones(np.shape(values)[1:])
    for error in errors:
        low, _ = interval(values, clusters, level=1 - 2 * error) if error < 0.5 else (np.mean(values, 0), None)
        if np.isnan(low).all():
            return np.full(p.shape, np.nan)
        p = np.where(low > level, error, p)
    return p
