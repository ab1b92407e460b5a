"""What a person would quote of a run."""

from __future__ import annotations

import numpy as np
import polars as pl

from probes.retrieval_heads.config import Config
from workbench.core.context import Context
from workbench.stats.intervals import cluster_bootstrap_mean, clustered_draws, pearson, wilson


def recalled(answered: np.ndarray) -> dict:
    """The share of trials that were answered, bool [trials]."""
    low, high = wilson(int(answered.sum()), len(answered))  # of the trials: a bootstrap has no width when all succeed
    return {"value": float(answered.mean()), "low": low, "high": high, "n": len(answered)}


def summary_of_heads(
    heads: pl.DataFrame, scores: np.ndarray, clusters: np.ndarray, config: Config, context: Context
) -> dict:
    """How many heads retrieve, which are the best, and whether two halves of the trials agree; scores [trials, layers,
    H] and clusters of the trials that count."""
    n = len(scores)
    flat = scores.reshape(n, -1)
    counts = (clustered_draws(flat, clusters, draws=config.draws, rng=context.rng("count")) > config.threshold).sum(1)
    over, (low, high) = int((flat.mean(0) > config.threshold).sum()), np.quantile(counts, [0.025, 0.975]).tolist()
    size = flat.shape[1]
    best = heads.sort("score", descending=True).head(10)
    summary = {
        "retrieval_heads": {"value": over, "low": low, "high": high, "n": size},
        "share_of_heads": {"value": over / size, "low": low / size, "high": high / size, "n": size},
        "top_heads": ", ".join(
            f"{r['layer']}.{r['head']} {r['score']:.3f}" for r in best.iter_rows(named=True) if r["score"] > 0
        ),
    }
    order = context.rng("split").permutation(n)
    halves = [flat[half].mean(0) for half in (order[0::2], order[1::2]) if len(half)]
    if n > 3 and halves[0].std() > 0 and halves[1].std() > 0:
        summary["split_half_correlation"] = pearson(*halves, rng=context.rng("halves")).as_dict()
    return summary


def summary_of_masking(masked: pl.DataFrame, clusters: np.ndarray, config: Config, context: Context) -> dict:
    """Recall under the top heads' masking, under that of random heads, and their difference, for every k: over the
    trials, random draws averaged within each (the table `masking` shows every draw). `clusters` of the trials that were
    masked."""
    summary = {}
    for k in sorted({int(k) for k in masked["k"].to_list() if k > 0} if masked.height else ()):
        by_trial = (
            masked.filter(pl.col("k") == k)
            .group_by("trial", "heads")
            .agg(pl.col("recall").mean())
            .pivot("heads", index="trial", values="recall")
            .sort("trial")
        )
        found = {f"recall_masking_{kind}_{k}": by_trial[kind].to_numpy() for kind in ("top", "random")}
        found[f"recall_top_minus_random_{k}"] = by_trial["top"].to_numpy() - by_trial["random"].to_numpy()
        for name, values in found.items():
            low, high = cluster_bootstrap_mean(values, clusters, draws=config.draws, rng=context.rng("masking"))
            summary[name] = {"value": float(values.mean()), "low": low, "high": high, "n": len(values)}
    return summary
