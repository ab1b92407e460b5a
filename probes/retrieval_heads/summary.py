"""What a person would quote of a run."""

from __future__ import annotations

import math

import numpy as np
import polars as pl

from probes.retrieval_heads.agreement import correlation
from probes.retrieval_heads.config import Config
from probes.retrieval_heads.head_scores import RATE
from workbench.core.context import Context
from workbench.stats.clusters import FEWEST, Clusters, clusters_of
from workbench.stats.intervals import clustered_draws, percentiles


def summary_of_heads(
    heads: pl.DataFrame, scores: np.ndarray, names: np.ndarray, config: Config, context: Context
) -> dict:
    """How many heads retrieve, beside how many would by chance and how many are told from the threshold and from
    chance, which are the best, and whether two halves of the needles agree; scores [trials, layers, H] and the clusters
    of the trials that count."""
    clusters, flat = clusters_of(names), scores.reshape(len(scores), -1).astype(np.float64)
    size, of = flat.shape[1], {"n": clusters.n, "rows": clusters.rows}
    over, (low, high) = int((flat.mean(0) > config.threshold).sum()), (math.nan, math.nan)
    if clusters.n >= FEWEST:
        counts = (clustered_draws(flat, names, draws=config.draws, rng=context.rng("count")) > config.threshold).sum(1)
        low, high = (float(end) for end in percentiles(counts))
    best = heads.sort("score", descending=True).head(10)
    summary: dict = {
        "retrieval_heads": {"value": over, "low": low, "high": high, **of},
        "share_of_heads": {"value": over / size, "low": low / size, "high": high / size, **of},
    }
    if "score_chance" in heads.columns and heads["score_chance"].null_count() == 0:
        chance = int((heads["score_chance"] > config.threshold).sum())
        summary["retrieval_heads_by_chance"] = {"value": chance, **of}
    if clusters.n >= FEWEST:
        told = int(heads["told_apart"].sum())
        summary["retrieval_heads_told_apart"] = {"value": told, **of}
        summary["expected_false_at_most"] = RATE * told
    summary["top_heads"] = ", ".join(
        f"{r['layer']}.{r['head']} {r['score']:.3f}" for r in best.iter_rows(named=True) if r["score"] > 0
    )
    halves = _split_half(flat, clusters, context)
    return summary if halves is None else summary | {"split_half_correlation": halves}


def _split_half(flat: np.ndarray, clusters: Clusters, context: Context) -> dict | None:
    """Pearson's r over heads between the mean scores of two random halves of the clusters, with the interval of
    `agreement.correlation`, which needs five clusters in each. None where there are not two clusters in each half, or
    all heads have the same score in one."""
    if clusters.n < 4:
        return None
    order = context.rng("split").permutation(clusters.n)
    rows = [np.isin(clusters.index, half) for half in (order[0::2], order[1::2])]
    halves, names = [flat[own] for own in rows], [clusters.index[own] for own in rows]
    found = correlation(halves, names, same_needles=False, rng=context.rng("halves"))
    if found is None:
        return None
    return {"value": found.value, "low": found.low, "high": found.high, "n": clusters.n, "rows": clusters.rows}


def summary_of_masking(recalls: pl.DataFrame) -> dict:
    """Recall without masking, under the top heads' masking, under that of random heads, and the difference of these,
    for every k of the table `masked_recall`."""
    names = {
        "none": "recall_unmasked",
        "top": "recall_masking_top_{k}",
        "random": "recall_masking_random_{k}",
        "top_minus_random": "recall_top_minus_random_{k}",
    }
    summary = {}
    for row in recalls.iter_rows(named=True):
        ends = {
            "value": row["recall"],
            "low": row["ci_low"],
            "high": row["ci_high"],
            "n": row["n"],
            "rows": row["rows"],
        }
        summary[names[row["heads"]].format(k=row["k"])] = ends
    return summary
