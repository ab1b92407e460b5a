"""Pearson's r of the head scores of two runs, with an interval over needles where both runs say which trial is of
which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from workbench.core.errors import InputError
from workbench.stats.clusters import FEWEST, clusters_of
from workbench.stats.jackknife import deletions, jackknife_interval


class ScoredTrials(NamedTuple):
    """The scores of the trials of a run that count, [trials, layers, H], and the needle of each."""

    scores: np.ndarray
    needles: np.ndarray


class RunCorrelation(NamedTuple):
    """`over`: what the interval is over ("needles"), or why there is none."""

    value: float
    low: float
    high: float
    over: str


def scored_trials(run: Any) -> ScoredTrials | None:
    """The trials of a run that count; None for a run (an imported one) that does not say which trial is of which
    needle."""
    try:
        scores, trials = run.array("trial_scores"), run.table("trials")
    except (InputError, AttributeError, KeyError):
        return None
    if not {"needle", "kept"} <= set(trials.columns) or len(scores) != trials.height:
        return None
    kept = trials["kept"].fill_null(False).to_numpy()
    return ScoredTrials(scores[kept].astype(np.float64), trials["needle"].to_numpy()[kept])


def correlation_of_runs(
    first: ScoredTrials | None, second: ScoredTrials | None, *, same_needles: bool, rng: np.random.Generator
) -> RunCorrelation | None:
    """r over the heads that both have, between their mean scores, as `correlation` gives it. None where a run does not
    say its needles, or where there is no r."""
    if first is None or second is None or not len(first.scores) or not len(second.scores):
        return None
    layers, heads = (min(first.scores.shape[axis], second.scores.shape[axis]) for axis in (1, 2))
    flat = [own.scores[:, :layers, :heads].reshape(len(own.scores), layers * heads) for own in (first, second)]
    names = [first.needles, second.needles]
    if same_needles:
        shared = np.intersect1d(*names)
        flat = [values[np.isin(own, shared)] for values, own in zip(flat, names)]
        names = [own[np.isin(own, shared)] for own in names]
        if not len(shared):
            return None
    return correlation(flat, names, same_needles=same_needles, rng=rng)


def correlation(
    flat: Sequence[np.ndarray], names: Sequence[np.ndarray], *, same_needles: bool, rng: np.random.Generator
) -> RunCorrelation | None:
    """r over heads between two means of scores [rows, heads] whose needles are `names` [rows]. The interval leaves
    needles out in turn (a jackknife, on the scale of Fisher's z): those of both together where they are the
    `same_needles`, else each side's own. A bootstrap would not do: needles that stand there twice make a mean noisier,
    and r smaller than the one that was measured. None where a mean does not vary over heads."""
    value = float(_r(*(values.mean(0)[None] for values in flat))[0])
    if np.isnan(value):
        return None
    clusters = [clusters_of(own) for own in names]
    if min(own.n for own in clusters) < FEWEST:
        return RunCorrelation(value, np.nan, np.nan, f"no interval: it needs {FEWEST} needles")
    sizes = [own.n for own in clusters]
    left_out = deletions(np.zeros(sizes[0]) if same_needles else np.repeat([0, 1], sizes), rng)
    kept = [left_out.kept] * 2 if same_needles else np.split(left_out.kept, sizes[:1], axis=1)
    means = [
        counts @ own.sums(values) / (counts @ own.sizes)[:, None] for counts, own, values in zip(kept, clusters, flat)
    ]
    low, high = jackknife_interval(_z(np.array([value])), _z(_r(*means))[None], left_out)
    if np.isnan(low[0]):
        return RunCorrelation(value, np.nan, np.nan, "no interval: no needle changes it")
    return RunCorrelation(value, float(np.tanh(low[0])), float(np.tanh(high[0])), "needles")


def _z(r: np.ndarray) -> np.ndarray:
    return np.arctanh(np.clip(r, -1 + 1e-9, 1 - 1e-9))


def _r(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson's r of the rows of a and b [rows, heads]; NaN where one does not vary."""
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
