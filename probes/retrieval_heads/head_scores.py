"""What a head scores: Eq. 1 in every trial, the mean over trials with its interval, and how many trials find the same
heads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from probes.retrieval_heads.config import Config
from probes.retrieval_heads.needles import Trial
from workbench.core.context import Context
from workbench.stats.intervals import clustered_draws

SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500)  # numbers of trials that are drawn from all of them
MEASURES = ("score", "ci_low", "ci_high", "activation_frequency", "span_mass")


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


def clusters(trials: Sequence[Trial], rows: np.ndarray, config: Config, context: Context) -> np.ndarray:
    """What an interval over the trials `rows` [trials] (bool) resamples together, [rows]: those of one needle, unless
    they are all of one."""
    needles = np.array([t.needle for t, wanted in zip(trials, rows) if wanted], int)
    if config.resample == "needles" and len(set(needles.tolist())) > 1:
        return needles
    if len(needles) == 1:
        context.warn("Only one trial counts, so the intervals have no width; they say nothing about other trials.")
    elif len(needles) and config.resample == "needles":
        context.warn(
            "Only one needle counts, so the intervals resample its trials; they say nothing about other needles."
        )
    return np.arange(len(needles))


def head_table(
    model, scores: np.ndarray, mass: np.ndarray, groups: np.ndarray, config: Config, context: Context
) -> pl.DataFrame:
    """One row per head, from scores and span mass [trials, layers, H] and the clusters of the trials; without a trial
    the scores are null, not 0."""
    n, L, H = len(scores), model.n_layers, model.n_heads
    rows = {"layer": np.repeat(np.arange(L), H), "head": np.tile(np.arange(H), L)}
    rows["kv_group"] = np.array([model.kv_group(h) for h in rows["head"]])
    if n == 0:
        rows |= {name: pl.Series([None] * (L * H), dtype=pl.Float64) for name in MEASURES}
        rows |= {"n_trials": [0] * (L * H), "is_retrieval": pl.Series([None] * (L * H), dtype=pl.Boolean)}
        return pl.DataFrame(rows)
    means = clustered_draws(scores.reshape(n, L * H), groups, draws=config.draws, rng=context.rng("heads"))
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    mean = scores.mean(0)
    rows |= {
        "score": mean.ravel(),
        "ci_low": low,
        "ci_high": high,
        "activation_frequency": (scores > 0).mean(0).ravel(),
        "span_mass": _mean_mass(mass).ravel().astype(np.float64),
        "n_trials": [n] * (L * H),
        "is_retrieval": (mean > config.threshold).ravel(),
    }
    return pl.DataFrame(rows)


def _mean_mass(mass: np.ndarray) -> np.ndarray:
    """Mean [layers, H] over the trials that have an answer; 0 where none has."""
    answered = mass[np.isfinite(mass).all((1, 2))]
    return answered.mean(0) if len(answered) else np.zeros(mass.shape[1:], mass.dtype)


def how_many_are_enough(scores: np.ndarray, context: Context, *, top: int = 10, repeats: int = 200) -> pl.DataFrame:
    """How well k random trials find the top heads of all trials, scores [trials, layers, H]: expected overlap of the
    two top lists."""
    n = len(scores)
    sizes = [k for k in SIZES if k < n]
    flat = scores.reshape(n, scores.shape[1] * scores.shape[2])
    top = min(top, int((flat.mean(0) > 0).sum())) if n else 0
    schema = {"trials": pl.Int64, "top": pl.Int64} | dict.fromkeys(("overlap", "ci_low", "ci_high"), pl.Float64)
    if top == 0:
        return pl.DataFrame(schema=schema)

    def best(some: np.ndarray) -> set[int]:
        return set(np.argsort(-some.mean(0), kind="stable")[:top].tolist())

    final, rng, rows = best(flat), context.rng("enough"), []
    for k in sizes:
        found = [len(final & best(flat[rng.choice(n, k, replace=False)])) / top for _ in range(repeats)]
        rows.append((k, top, float(np.mean(found)), *np.quantile(found, [0.025, 0.975])))
    return pl.DataFrame(rows, schema=schema, orient="row")
