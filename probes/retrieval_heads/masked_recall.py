"""What masking did to recall, with intervals over needles (and over random draws where these are a sample)."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import polars as pl

from probes.retrieval_heads.config import Config
from probes.retrieval_heads.masking import Masking
from workbench.stats.clusters import Clusters, clusters_of
from workbench.stats.crossed_shares import crossed_share_interval, share_difference_interval

MASKING = {
    "k": pl.Int64,
    "heads": pl.String,
    "draw": pl.Int64,
    "ablation": pl.String,
    "recall": pl.Float64,
    "ci_low": pl.Float64,
    "ci_high": pl.Float64,
    "n": pl.Int64,
    "rows": pl.Int64,
    "masked": pl.String,
}
RECALL = {
    "k": pl.Int64,
    "heads": pl.String,
    "recall": pl.Float64,
    "ci_low": pl.Float64,
    "ci_high": pl.Float64,
    "n": pl.Int64,
    "rows": pl.Int64,
    "draws": pl.Int64,
}


def mask_table(
    masked: pl.DataFrame, plans: Sequence[Sequence[Masking]], names: np.ndarray, config: Config
) -> pl.DataFrame:
    """Mean recall of every single masking: the columns of MASKING. `masked`: the rows of all folds; `plans`: of each
    fold, in one order; `names`: the clusters of the trials in the order of their numbers."""
    rows = []
    for same in zip(*plans) if masked.height else ():
        k, kind, draw, _ = same[0]
        here = masked.filter((pl.col("k") == k) & (pl.col("heads") == kind) & (pl.col("draw") == draw))
        found = estimate_of(here.sort("trial")["recall"].to_numpy(), clusters_of(names))
        heads = dict.fromkeys(" ".join(f"{l}.{h}" for l, h in item.heads) for item in same)
        rows.append((k, kind, draw, config.ablation, *found, " / ".join(heads)))
    return pl.DataFrame(rows, schema=MASKING, orient="row", strict=False)


def recall_table(masked: pl.DataFrame, names: np.ndarray, sampled: Collection[int]) -> pl.DataFrame:
    """Recall per k, the columns of RECALL: `none` (k = 0), `top`, `random` (the mean over draws) and
    `top_minus_random`. `sampled`: the k whose random sets are a sample, and part of their interval; those of any other
    k are all the sets that there are."""
    if masked.is_empty():
        return pl.DataFrame(schema=RECALL)
    clusters, rows = clusters_of(names), []
    none = matrix(masked, 0, "top")[0]
    rows.append((0, "none", *estimate_of(none, clusters), 1))
    for k in sorted({int(k) for k in masked["k"].to_list() if k > 0}):
        top, random = matrix(masked, k, "top")[0], matrix(masked, k, "random")
        rows.append((k, "top", *estimate_of(top, clusters), 1))
        if not len(random):
            continue
        control = random if k in sampled else random.mean(0)
        rows.append((k, "random", *estimate_of(control, clusters), len(random)))
        ends = share_difference_interval(top, control, clusters)
        value = float(top.mean() - random.mean())
        rows.append((k, "top_minus_random", value, *ends, clusters.n, clusters.rows, len(random)))
    return pl.DataFrame(rows, schema=RECALL, orient="row", strict=False)


def matrix(masked: pl.DataFrame, k: int, kind: str) -> np.ndarray:
    """Recall [draws, trials] under the maskings of one kind, in the order of the numbers of draws and trials."""
    here = masked.filter((pl.col("k") == k) & (pl.col("heads") == kind)).sort("draw", "trial")
    return here["recall"].to_numpy().reshape(max(here["draw"].n_unique(), 1), -1) if here.height else np.empty((0, 0))


def estimate_of(values: np.ndarray, clusters: Clusters) -> tuple[float, float, float, int, int]:
    """Mean of [rows] or [draws, rows] with its ends, clusters and rows."""
    return float(values.mean()), *crossed_share_interval(values, clusters), clusters.n, clusters.rows
