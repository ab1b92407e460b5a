"""How well numbers are read from held-out rows: R² and Spearman's correlation, with their intervals.

R² is 1 − Σ (y − read)² / Σ (y − guess)², where the guess is the mean of the rows that were fitted on: 0 is what that
mean says, below 0 is worse. 1 − R² is a ratio of two means over rows; its logarithm has Student's t interval of
the linearisation over clusters. Spearman's correlation is the mean of the folds' (the probes of different folds are
different ones) and has a bootstrap interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from workbench.stats.clusters import FEWEST, Clusters, clusters_of, mean_interval
from workbench.stats.intervals import percentiles, resample_counts, resampled_spearman

NUMBERS = {
    "dataset": pl.String,
    "condition": pl.String,
    "layer": pl.Int64,
    **dict.fromkeys(("depth", "r2", "r2_low", "r2_high", "spearman", "spearman_low", "spearman_high"), pl.Float64),
    **dict.fromkeys(("control_r2", "control_low", "control_high", "control_spearman", "above_shuffled"), pl.Float64),
    **dict.fromkeys(("p", "p_adjusted"), pl.Float64),
    "above_chance": pl.Boolean,
    "alpha": pl.Float64,
    **dict.fromkeys(("n_train", "n", "n_test"), pl.Int64),
}


@dataclass(frozen=True, eq=False)
class NumberCurve:
    """Measures of the layers [L] each with the ends of their intervals (NaN where there are none), and R² in every
    resample [draws, L] (None below five clusters). `errors` [L, rows] and `spread` [rows] are what R² is made of."""

    r2: np.ndarray
    r2_low: np.ndarray
    r2_high: np.ndarray
    spearman: np.ndarray
    spearman_low: np.ndarray
    spearman_high: np.ndarray
    errors: np.ndarray
    spread: np.ndarray
    resampled: np.ndarray | None


def r_squared(errors: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """R² [...] of squared errors [..., rows] where those of the guess are spread [..., rows]."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return 1 - errors.mean(-1) / spread.mean(-1)


def r_squared_interval(errors: np.ndarray, spread: np.ndarray, clusters: Clusters) -> tuple[np.ndarray, np.ndarray]:
    """Low and high [...] of R², of squared errors [..., rows] and spread [rows]: NaN below five clusters, and where
    nothing is left of the errors.

    Of the logarithm of 1 − R², so that no end is above 1; of R² itself it would hold 0.89 with eight clusters."""
    ratio = 1 - r_squared(errors, spread)
    with np.errstate(invalid="ignore", divide="ignore"):
        off = errors / (ratio * spread.mean())[..., None] - spread / spread.mean()  # 0 on average: what a row adds
        low, high = mean_interval(np.moveaxis(off, -1, 0), clusters)
    return 1 - ratio * np.exp(high), 1 - ratio * np.exp(low)


def spearman_of_folds(
    read: np.ndarray, truth: np.ndarray, tests: Sequence[np.ndarray], counts: np.ndarray
) -> np.ndarray:
    """Mean over folds of Spearman's correlation in each resample [draws, L], of numbers read [L, rows] fold after fold.
    A fold in which one of the two does not vary says nothing and does not count; NaN where none does."""
    cuts = np.cumsum([0, *(len(test) for test in tests)])
    found = np.array(
        [[resampled_spearman(own[a:b], truth[a:b], counts[:, a:b]) for own in read] for a, b in zip(cuts, cuts[1:])]
    )  # [folds, L, draws]
    there = np.isfinite(found)
    with np.errstate(invalid="ignore"):
        return (np.where(there, found, 0).sum(0) / there.sum(0)).T


def measured_numbers(
    read: np.ndarray,
    truth: np.ndarray,
    guess: np.ndarray,
    names: np.ndarray,
    tests: Sequence[np.ndarray],
    *,
    draws: int,
    rng: np.random.Generator,
) -> NumberCurve:
    """R² and Spearman of numbers read [L, rows] fold after fold, for truth [rows] and the guess [rows], with intervals
    over the clusters `names` [rows]. Nothing has an interval below five clusters."""
    errors, spread, found = (truth - read) ** 2, (truth - guess) ** 2, clusters_of(names)
    low, high = r_squared_interval(errors, spread, found)
    spearman = spearman_of_folds(read, truth, tests, np.ones((1, len(truth))))[0]
    none = np.full(len(read), np.nan)
    if found.n < FEWEST:
        return NumberCurve(r_squared(errors, spread), none, none, spearman, none, none, errors, spread, None)
    counts = resample_counts(len(truth), draws, rng, clusters=names)
    ends = percentiles(np.nan_to_num(spearman_of_folds(read, truth, tests, counts)))
    with np.errstate(invalid="ignore", divide="ignore"):
        resampled = 1 - (counts @ errors.T) / (counts @ spread)[:, None]
    return NumberCurve(r_squared(errors, spread), low, high, spearman, *ends, errors, spread, resampled)
