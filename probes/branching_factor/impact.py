"""How far the branching factor moves with a factor of the study (paper: max − min of the means of its levels).

The largest of several noisy means less the smallest lies above zero whatever the factor does. So it stands beside what
it is when the levels of every prompt are shuffled, and beside its size on prompts that did not pick the two levels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from probes.branching_factor.bf_intervals import paired_mean
from probes.branching_factor.branching_samples import frame
from workbench.stats.clusters import FEWEST
from workbench.stats.intervals import percentiles, resample_counts

DRAWS = 1000  # shuffles, and resamples of prompts behind the interval of a share


def impact_table(
    values: np.ndarray, levels: Mapping[str, Sequence[object]], prompts: Sequence[int], rng: np.random.Generator
) -> pl.DataFrame:
    """One row per factor of ``levels`` (factor -> the level of each condition), from the value of every condition and
    prompt [conditions, P]; ``prompts`` [P]: which prompt a column is of. Prompts without a value somewhere are left
    out."""
    known, names = np.isfinite(values).all(0), np.asarray(prompts)
    values, names = values[:, known], names[known]
    groups = {factor: _groups(values, own) for factor, own in levels.items()}
    impact = {factor: float(np.ptp(own.mean(1))) for factor, own in groups.items()}
    shares = _shares(groups, names, rng)
    total, rows = sum(impact.values()) or 1.0, []
    for factor, own in groups.items():
        apart, null = _held_out(own, names), _shuffled(own, names, rng)
        rows.append(
            {
                "factor": factor,
                "impact": impact[factor],
                "impact_held_out": apart.value,
                "impact_low": apart.low,
                "impact_high": apart.high,
                "impact_null": float(null.mean()),
                "p": float((1 + (null >= impact[factor] - 1e-12).sum()) / (1 + len(null))),
                "share": impact[factor] / total,
                "share_low": shares[factor][0],
                "share_high": shares[factor][1],
                "prompts": len(np.unique(names)),
            }
        )
    return frame({key: [row[key] for row in rows] for key in rows[0]})


def _groups(values: np.ndarray, levels: Sequence[object]) -> np.ndarray:
    """The mean of the conditions of every level, [levels, P]."""
    return np.stack([values[[one == level for one in levels]].mean(0) for level in dict.fromkeys(levels)])


def _held_out(groups: np.ndarray, names: np.ndarray):
    """The difference on each prompt of the two levels that are largest and smallest on all other prompts."""
    found = np.full(groups.shape[1], np.nan)
    for name in np.unique(names):
        own = names == name
        if not own.all():
            means = groups[:, ~own].mean(1)
            found[own] = groups[means.argmax()][own] - groups[means.argmin()][own]
    return paired_mean(found, names)


def _shuffled(groups: np.ndarray, names: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """max − min when the levels of every prompt are shuffled, [DRAWS]."""
    _, index = np.unique(names, return_inverse=True)
    order = rng.permuted(np.tile(np.arange(len(groups))[:, None], (DRAWS, 1, index.max() + 1)), axis=1)[..., index]
    return np.ptp(np.take_along_axis(groups[None], order, axis=1).mean(2), axis=1)


def _shares(
    groups: Mapping[str, np.ndarray], names: np.ndarray, rng: np.random.Generator
) -> dict[str, tuple[float, float]]:
    """Interval of each factor's share of the summed impacts: a bootstrap over prompts, none below five of them or for
    a single factor, whose share is 1."""
    nothing = (np.nan, np.nan)
    if len(groups) < 2 or len(np.unique(names)) < FEWEST:
        return dict.fromkeys(groups, nothing)
    times = resample_counts(len(names), DRAWS, rng, clusters=names)  # [draws, P]
    drawn = {f: np.ptp(times @ own.T / times.sum(1, keepdims=True), axis=1) for f, own in groups.items()}
    total = np.sum(list(drawn.values()), axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        ends = {factor: percentiles(own / total) for factor, own in drawn.items()}
    return {factor: (float(low), float(high)) for factor, (low, high) in ends.items()}
