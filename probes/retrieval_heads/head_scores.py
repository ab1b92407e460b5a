"""What a head scores: Eq. 1 in every trial and by chance, the mean over trials with its interval, and how many trials
find the same heads."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import polars as pl

from probes.retrieval_heads.config import Config
from workbench.core.context import Context
from workbench.models.needle_prompts import Trial
from workbench.stats.clusters import (
    FEWEST,
    Clusters,
    clusters_of,
    false_discovery,
    mean_interval,
    p_of_zero,
)
from workbench.stats.crossed_shares import p_above, steady_share_interval
from workbench.stats.intervals import Ends, wilson

SIZES = (1, 2, 3, 5, 8, 10, 20, 50, 100, 200, 500)  # numbers of clusters that are drawn from all of them
ENOUGH = {"needles": pl.Int64, "trials": pl.Float64, "top": pl.Int64} | dict.fromkeys(
    ("overlap", "ci_low", "ci_high"), pl.Float64
)
RATE = 0.05  # of the heads that are told apart, at most this share is wrong, in expectation
NUMBERS = ("score", "ci_low", "ci_high", "score_chance", "activation_frequency", "span_mass", "p_adjusted")
MARKS = ("is_retrieval", "told_apart")


def score(trial: Trial, steps: tuple[np.ndarray, np.ndarray], how: str) -> np.ndarray:
    """Eq. 1 for every head, [layers, H]; `steps`: emitted ids [steps] and attended positions [steps, layers, H].

    "set": |copied ∩ answer| / |answer| over distinct tokens; "count": copying steps / |span|."""
    emitted, attended = steps
    ids, (start, end) = np.array(trial.ids), trial.span
    inside = (attended >= start) & (attended < end)
    copies = inside & (ids[np.clip(attended, 0, len(ids) - 1)] == emitted[:, None, None])  # [steps, layers, H]
    if how == "count":
        return copies.sum(0) / (end - start)
    answer = np.unique(ids[start:end])
    return np.stack([copies[emitted == token].any(0) for token in answer]).sum(0) / len(answer)


def score_by_chance(trial: Trial, steps: tuple[np.ndarray, np.ndarray], how: str) -> np.ndarray:
    """What `score` would be, in expectation, of a head that looks into the answer at the same steps but at a random
    place of it: looking at the answer is not yet copying."""
    emitted, attended = steps
    (start, end), size = trial.span, trial.span[1] - trial.span[0]
    inside = (attended >= start) & (attended < end)
    answer, times = np.unique(np.array(trial.ids[start:end]), return_counts=True)
    share = dict(zip(answer.tolist(), (times / size).tolist()))
    hit = inside * np.array([share.get(int(token), 0.0) for token in emitted])[:, None, None]
    if how == "count":
        return hit.sum(0) / size
    return np.stack([1 - np.prod(1 - hit[emitted == token], axis=0) for token in answer]).sum(0) / len(answer)


def cluster_names(trials: Sequence[Trial], rows: np.ndarray, config: Config) -> np.ndarray:
    """What belongs together among the trials `rows` [trials] (bool), [rows]: the trials of one needle, unless the
    config takes every trial for independent."""
    needles = np.array([t.needle for t, wanted in zip(trials, rows) if wanted], int)
    return needles if config.resample == "needles" else np.arange(len(needles))


def warn_of_few(names: np.ndarray, config: Config, context: Context) -> None:
    """Say that there are no intervals where there are, and too few for one, clusters."""
    n = len(set(names.tolist()))
    if 0 < n < FEWEST:
        kind = config.resample[:-1] if n == 1 else config.resample
        context.warn(
            f"Only {n} {kind} count{'s' if n == 1 else ''} ({len(names)} trials), and an interval needs {FEWEST}: "
            f"there is none, and nothing is said of other {config.resample}; use more needles."
        )


def score_interval(values: np.ndarray, clusters: Clusters, *, how: str, level: float = 0.95) -> Ends:
    """Low and high, [heads], of the mean scores of `values` [trials, heads]: of a share for what lies between 0 and 1,
    of a mean for scores that went beyond it (counts of steps); `difference_interval` of attention."""
    if how == "attention":
        return difference_interval(values, clusters, level=level)
    low, high = mean_interval(values, clusters, level=level)
    share = values.max(0) <= 1
    if share.any():
        ends = steady_share_interval(values[:, share], clusters, level=level)
        low[share], high[share] = ends
    same = share & (np.ptp(clusters.sums(values) / clusters.sizes[:, None], axis=0) == 0)
    same &= (values.mean(0) > 0) & (values.mean(0) < 1)
    if same.any() and clusters.n >= FEWEST:  # nothing but the number of clusters says how well it is known
        low[same], high[same] = wilson(values[:, same].mean(0) * clusters.n, clusters.n, level)
    return np.maximum(low, 0), high


def difference_interval(values: np.ndarray, clusters: Clusters, *, level: float = 0.95) -> Ends:
    """Low and high, [heads], of the mean differences of two shares, `values` [trials, heads] between -1 and 1:
    Student's t. Where all clusters have the same mean, nothing but their number says how well it is known (Wilson's
    interval on the scale from 0 to 1, or from -1 where one is below 0)."""
    low, high = (np.array(end, np.float64) for end in mean_interval(values, clusters, level=level))
    same = np.ptp(clusters.sums(values) / clusters.sizes[:, None], axis=0) <= 1e-12
    if same.any() and clusters.n >= FEWEST:
        least = np.where(values[:, same].min(0) < 0, -1.0, 0.0)
        share = (values[:, same].mean(0) - least) / (1 - least)
        ends = wilson(np.clip(share, 0, 1) * clusters.n, clusters.n, level)
        low[same], high[same] = (least + (1 - least) * np.asarray(end) for end in ends)
    return low, high


def told_apart(values: np.ndarray, chance: np.ndarray, clusters: Clusters, config: Config) -> np.ndarray:
    """p [heads] of a true score at or below the threshold, or no higher than by chance (the larger of the two),
    adjusted over all heads; `values` and `chance` [trials, heads]. NaN where there is no interval."""
    if clusters.n < FEWEST:
        return np.full(values.shape[1], np.nan)
    p, above = np.ones(values.shape[1]), values.mean(0) > config.threshold
    if above.any():
        p[above] = p_above(
            values[:, above], config.threshold, clusters, interval=partial(score_interval, how=config.score)
        )
    more, either = values - chance, p_of_zero(values - chance, clusters)
    return false_discovery(np.maximum(p, np.where(more.mean(0) > 0, either / 2, 1.0)))


def head_table(
    model, scores: np.ndarray, chance: np.ndarray, mass: np.ndarray, names: np.ndarray, config: Config
) -> pl.DataFrame:
    """One row per head, from scores, scores by chance and span mass [trials, layers, H] and the clusters of the trials;
    without a trial the scores are null, not 0."""
    n, L, H = len(scores), model.n_layers, model.n_heads
    rows = {"layer": np.repeat(np.arange(L), H), "head": np.tile(np.arange(H), L)}
    rows["kv_group"] = np.array([model.kv_group(h) for h in rows["head"]])
    if n == 0:
        rows |= {name: pl.Series([None] * (L * H), dtype=pl.Float64) for name in NUMBERS}
        rows |= {"n_trials": [0] * (L * H), "n_needles": [0] * (L * H)}
        return pl.DataFrame(rows | {name: pl.Series([None] * (L * H), dtype=pl.Boolean) for name in MARKS})
    values, clusters = scores.reshape(n, L * H).astype(np.float64), clusters_of(names)
    mean, (low, high) = values.mean(0), score_interval(values, clusters, how=config.score)
    p = told_apart(values, chance.reshape(n, L * H), clusters, config)
    rows |= {
        "score": mean,
        "ci_low": low,
        "ci_high": high,
        "score_chance": chance.mean(0).ravel(),
        "activation_frequency": (values > 0).mean(0),
        "span_mass": _mean_mass(mass).ravel().astype(np.float64),
        "n_trials": [n] * (L * H),
        "n_needles": [clusters.n] * (L * H),
        "is_retrieval": mean > config.threshold,
        "p_adjusted": p,
        "told_apart": p < RATE,
    }
    return pl.DataFrame(rows)


def _mean_mass(mass: np.ndarray) -> np.ndarray:
    """Mean [layers, H] over the trials that have an answer; 0 where none has."""
    answered = mass[np.isfinite(mass).all((1, 2))]
    return answered.mean(0) if len(answered) else np.zeros(mass.shape[1:], mass.dtype)


def how_many_are_enough(
    scores: np.ndarray, names: np.ndarray, context: Context, *, top: int = 10, repeats: int = 200
) -> pl.DataFrame:
    """How well k random clusters (needles, with all their trials) find the top heads of all of them: expected overlap
    of the two top lists, the columns of ENOUGH. `scores` [trials, layers, H] and `names`, the cluster of each;
    `trials`: how many these have on average."""
    flat = scores.reshape(len(scores), scores.shape[1] * scores.shape[2]).astype(np.float64)
    top = min(top, int((flat.mean(0) > 0).sum())) if len(flat) else 0
    if top == 0:
        return pl.DataFrame(schema=ENOUGH)
    clusters = clusters_of(names)
    sums = clusters.sums(flat)

    def best(some: np.ndarray) -> set[int]:
        means = sums[some].sum(0) / clusters.sizes[some].sum()
        return set(np.argsort(-means, kind="stable")[:top].tolist())

    final, rng, rows = best(np.arange(clusters.n)), context.rng("enough"), []
    for k in (k for k in SIZES if k < clusters.n):
        drawn = [rng.choice(clusters.n, k, replace=False) for _ in range(repeats)]
        found = [len(final & best(some)) / top for some in drawn]
        trials = float(np.mean([clusters.sizes[some].sum() for some in drawn]))
        rows.append((k, trials, top, float(np.mean(found)), *np.quantile(found, [0.025, 0.975])))
    return pl.DataFrame(rows, schema=ENOUGH, orient="row")
