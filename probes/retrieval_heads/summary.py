"""What a person would quote of a run."""

from __future__ import annotations

import math

import numpy as np
import polars as pl

from probes.retrieval_heads.config import Config
from probes.retrieval_heads.head_scores import RATE
from workbench.core.context import Context
from workbench.stats.clusters import FEWEST, Clusters, clusters_of
from workbench.stats.intervals import clustered_draws, percentiles, resamples

LEAST_HALF = FEWEST  # clusters in each half of the data, from which their correlation has an interval


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
    halves = _split_half(flat, clusters, config, context)
    return summary if halves is None else summary | {"split_half_correlation": halves}


def _split_half(flat: np.ndarray, clusters: Clusters, config: Config, context: Context) -> dict | None:
    """Pearson's r over heads between the mean scores of two random halves of the clusters; its interval resamples
    clusters within each half, and needs five in each. None where there are not two clusters in each half, or all heads
    have the same score in one."""
    if clusters.n < 4:
        return None
    order, sums = context.rng("split").permutation(clusters.n), clusters.sums(flat)  # [clusters, heads]
    halves = [order[0::2], order[1::2]]

    def means(counts: np.ndarray, half: np.ndarray) -> np.ndarray:
        return counts @ sums[half] / (counts @ clusters.sizes[half])[:, None]  # [draws, heads]

    value = _pearson(*(means(np.ones((1, len(half))), half) for half in halves))[0]
    if np.isnan(value):
        return None
    found = {"value": float(value), "low": math.nan, "high": math.nan, "n": clusters.n, "rows": clusters.rows}
    if min(map(len, halves)) >= LEAST_HALF:
        seeds = [int(seed) for seed in context.rng("halves").integers(0, 2**63, 2)]
        drawn = [np.concatenate(list(resamples(len(h), config.draws, seed))) for h, seed in zip(halves, seeds)]
        r = _pearson(*(means(counts, half) for counts, half in zip(drawn, halves)))
        if np.isfinite(r).mean() > 0.5:
            found["low"], found["high"] = (float(end) for end in percentiles(r[np.isfinite(r)]))
    return found


def _pearson(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson's r of the rows of a and b [draws, heads]; NaN where one does not vary."""
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))


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
