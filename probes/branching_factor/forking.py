"""Forking tokens (Wang et al., arXiv 2506.01939, section 3): the steps of highest entropy, and what is said there.

Of all steps of a condition, a share (0.2 in the paper) with the highest entropy forks. A token's entropy is that of the
step at which it was drawn. Which tokens fork more often than others is held against shuffled places: where the tokens
of a prompt stand in any order, each forks as often as the prompt's steps do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from probes.branching_factor.branching_samples import frame
from probes.branching_factor.conditions import MeasuredCondition
from workbench.stats.clusters import FEWEST, Clusters, cluster_share, clusters_of, false_discovery
from workbench.stats.crossed_shares import p_above, steady_share_interval

APART = 0.1  # a token is called forking where its share lies so far above the expected one, and told from it
DIGITS = 5  # entropies are compared to so many digits: the same distribution differs by rounding only


@dataclass(frozen=True, eq=False)
class Steps:
    """All steps of a condition, [steps]: the token drawn, the entropy of the step (nats), the prompt; whether it
    forks."""

    token: np.ndarray
    entropy: np.ndarray
    prompt: np.ndarray
    forks: np.ndarray
    threshold: float


def steps_of(found: MeasuredCondition, share: float) -> Steps:
    """The steps of all samples, and which of them are the ``share`` of highest entropy."""
    alive = found.ids >= 0
    entropy = found.statistic("entropy")[alive]
    prompt = np.broadcast_to(np.asarray(found.condition.cluster)[:, None, None], alive.shape)[alive]
    return forking_steps(found.ids[alive], entropy, prompt, share)


def forking_steps(token: np.ndarray, entropy: np.ndarray, prompt: np.ndarray, share: float) -> Steps:
    """The steps that fork: those at or above the lowest entropy that at most a ``share`` of all steps reach. Steps of
    one entropy fork together or not at all, and one without entropy never does; the threshold is infinite where none
    forks."""
    rounded = np.round(entropy, DIGITS)
    values, counts = np.unique(rounded, return_counts=True)
    reached = np.cumsum(counts[::-1])[::-1]  # steps at or above each value
    allowed = (reached <= share * len(rounded) + 1e-9) & (values > 0)
    threshold = float(values[allowed][0]) if allowed.any() else np.inf
    return Steps(token, entropy, prompt, rounded >= threshold, threshold)


def forking_tables(found: Sequence[MeasuredCondition], share: float) -> dict[str, pl.DataFrame]:
    """`forking`, one row per condition, and `forking_tokens`, one per condition and token."""
    rows, tables = [], []
    for measured in found:
        steps = steps_of(measured, share)
        tokens = token_table(steps)
        names = measured.condition.model.token_strings(tokens["id"].to_list())
        name = pl.lit(measured.condition.name).alias("condition")
        tables.append(tokens.select(name, pl.Series("token", names, dtype=pl.String), pl.all()))
        rows.append({"condition": measured.condition.name} | forking_row(steps, tokens))
    return {
        "forking": frame({key: [row[key] for row in rows] for key in rows[0]}),
        "forking_tokens": pl.concat(tables, how="vertical_relaxed"),
    }


def forking_row(steps: Steps, tokens: pl.DataFrame) -> dict:
    """How much of the entropy the forking steps hold: of that of each prompt, averaged over prompts."""
    clusters = clusters_of(steps.prompt)
    total, held = clusters.sums(steps.entropy), clusters.sums(steps.entropy * steps.forks)
    known = total > 0
    row = {"threshold": steps.threshold if np.isfinite(steps.threshold) else np.nan, "forking": steps.forks.mean()}
    row |= {"entropy_held": np.nan, "held_low": np.nan, "held_high": np.nan, "prompts": int(known.sum())}
    if known.any():
        of = cluster_share(held[known] / total[known], np.flatnonzero(known))
        row |= {"entropy_held": of.value, "held_low": of.low, "held_high": of.high}
    counted = {"tokens_tested": int(tokens["p"].count()), "tokens_forking": int(tokens["forking"].sum())}
    return row | {"steps": len(steps.entropy)} | counted


def token_table(steps: Steps) -> pl.DataFrame:
    """One row per token id, most frequent first. ``expected``: its share if the places of every prompt were shuffled;
    tested against it (one-sided) are tokens of five prompts and more."""
    share_of = {name: steps.forks[steps.prompt == name].mean() for name in np.unique(steps.prompt)}
    expected = np.array([share_of[name] for name in steps.prompt]) if len(steps.prompt) else np.zeros(0)
    order = np.argsort(steps.token, kind="stable")
    ids, starts = np.unique(steps.token[order], return_index=True)
    rows = [
        _token_row(int(i), steps, own, float(expected[own].mean())) for i, own in zip(ids, np.split(order, starts[1:]))
    ]
    table = frame({key: [row[key] for row in rows] for key in rows[0]})
    adjusted = false_discovery(table["p"].cast(pl.Float64).fill_null(np.nan).to_numpy())
    table = table.with_columns(frame({"p_adjusted": adjusted})["p_adjusted"].cast(pl.Float64))
    told = (pl.col("p_adjusted") < 0.05) & (pl.col("share") - pl.col("expected") >= APART)
    told = pl.when(pl.col("p_adjusted").is_null()).then(None).otherwise(told)  # untested
    return table.with_columns(told.cast(pl.Boolean).alias("forking")).sort("count", "id", descending=[True, False])


def _token_row(token: int, steps: Steps, own: np.ndarray, expected: float) -> dict:
    """A token's numbers, ``own`` being its steps."""
    forks, clusters = steps.forks[own].astype(np.float64), clusters_of(steps.prompt[own])
    low, high = (float(end) for end in steady_share_interval(forks, clusters))
    return {
        "id": token,
        "count": len(own),
        "forks": int(forks.sum()),
        "share": forks.mean(),
        "ci_low": low,
        "ci_high": high,
        "expected": expected,
        "mean_entropy": float(steps.entropy[own].mean()),
        "p": _p(forks, clusters, expected),
        "prompts": clusters.n,
    }


def _p(forks: np.ndarray, clusters: Clusters, expected: float) -> float:
    if clusters.n < FEWEST:
        return np.nan
    return float(p_above(forks, expected, clusters)) if forks.mean() > expected else 1.0
