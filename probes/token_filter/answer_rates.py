"""Recall of the answers of each arm, and what the filter's differs by, with their intervals over needles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from probes.token_filter.answers import ALL, ASKED, CLOSED, FILTER, RANDOM, RECENT, WITHOUT
from workbench.core.context import Context
from workbench.stats.clusters import clusters_of
from workbench.stats.crossed_shares import crossed_share_interval, share_difference_interval

ENOUGH, LEAST = 0.8, 0.1  # of the question that is kept, and of the trials that are answered from all tokens
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


def warn_of_answers(answers: pl.DataFrame, context: Context) -> None:
    """Warn where the filter drops the question, which no set without it could answer, and where there is nothing to
    lose."""
    filtered, whole = answers.filter(arm=FILTER), answers.filter(arm=ALL)
    if filtered.is_empty():
        return
    kept, answered = filtered["question_kept"].to_numpy().mean(), whole["answered"].to_numpy().mean()
    if kept < ENOUGH:
        context.warn(
            f"The filter keeps {kept:.0%} of the tokens that ask the question, so that what it keeps of the needle "
            f"could hardly be answered from; set force_keep=question, or head,question in a chat."
        )
    if answered < LEAST:
        context.warn(
            f"From all tokens {answered:.0%} of the trials are answered, so there is little that a filter could lose; "
            f"try shorter lengths or another template."
        )


def _values(own: pl.DataFrame, arm: str, trials: np.ndarray) -> np.ndarray | None:
    """Recall of an arm, [trials], or [draws, trials] of random sets; None where not every one of the trials has it."""
    frame = own.filter((pl.col("arm") == arm) & pl.col("trial").is_in(trials.tolist())).sort("draw", "trial")
    if not np.array_equal(frame["trial"].unique().sort().to_numpy(), trials):
        return None
    values = frame["recall"].to_numpy().reshape(-1, len(trials))
    return values if arm in (RANDOM, ASKED) else values[0]


def _draws(values: np.ndarray) -> int:
    return 1 if values.ndim == 1 else len(values)
