"""Recall of the answers of each arm, and what the filter's differs by, with their intervals over needles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from probes.token_filter.answers import ALL, ASKED, CLOSED, FILTER, RANDOM, RECENT, WITHOUT
from workbench.stats.clusters import clusters_of
from workbench.stats.crossed_shares import crossed_share_interval, share_difference_interval

BESIDE = (ALL, CLOSED, WITHOUT, RECENT, RANDOM, ASKED)
RATES = {
    "k": pl.Int64,
    "arm": pl.String,
    "recall": pl.Float64,
    "ci_low": pl.Float64,
    "ci_high": pl.Float64,
    "n": pl.Int64,
    "rows": pl.Int64,
    "draws": pl.Int64,
}


def rate_table(answers: pl.DataFrame, names: np.ndarray, ks: Sequence[int]) -> pl.DataFrame:
    """One row per k and arm, all on the trials that this k filters, then the filter's recall minus that of the others
    (`filter_minus_…`); `names` [trials]: the needle of a trial."""
    rows = []
    for k in ks:
        own = answers.filter((pl.col("k") == k) | pl.col("k").is_null())
        trials = own.filter(arm=FILTER)["trial"].sort().to_numpy()
        if not len(trials):
            continue
        clusters = clusters_of(names[trials])
        values = {arm: _values(own, arm, trials) for arm in (FILTER, *BESIDE)}
        for arm, value in values.items():
            if value is not None:
                ends = crossed_share_interval(value, clusters)
                rows.append((k, arm, float(value.mean()), *ends, clusters.n, clusters.rows, _draws(value)))
        filtered = values[FILTER]
        for arm in BESIDE:
            value = values[arm]
            if value is not None and filtered is not None:
                ends = share_difference_interval(filtered, value, clusters)
                mean = float(filtered.mean() - value.mean())
                rows.append((k, f"filter_minus_{arm}", mean, *ends, clusters.n, clusters.rows, _draws(value)))
    return pl.DataFrame(rows, schema=RATES, orient="row").with_columns(pl.col("ci_low", "ci_high").fill_nan(None))


def _values(own: pl.DataFrame, arm: str, trials: np.ndarray) -> np.ndarray | None:
    """Recall of an arm, [trials], or [draws, trials] of random sets; None where not every one of the trials has it."""
    frame = own.filter((pl.col("arm") == arm) & pl.col("trial").is_in(trials.tolist())).sort("draw", "trial")
    if frame.is_empty() or frame.height % len(trials):
        return None
    values = frame["recall"].to_numpy().reshape(-1, len(trials))
    return values if arm in (RANDOM, ASKED) else values[0]


def _draws(values: np.ndarray) -> int:
    return 1 if values.ndim == 1 else len(values)
