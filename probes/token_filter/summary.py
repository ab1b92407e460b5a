"""What a person would quote of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from probes.token_filter.choice import FilterChoice
from probes.token_filter.layer_recall import RATE, Kept
from probes.token_filter.trials import FilterTrials
from workbench.stats.clusters import clusters_of
from workbench.stats.crossed_shares import steady_share_interval


def summary_of_layers(
    found: FilterTrials, layers: pl.DataFrame, every: Sequence[Kept], choices: Sequence[FilterChoice]
) -> dict[str, Any]:
    """For every k: which layers keep more of the needle than a random set, the chosen layers, and what they keep of
    needles that did not choose them, beside chance."""
    out: dict[str, Any] = {}
    clusters = clusters_of(found.names)
    of = {"n": clusters.n, "rows": clusters.rows}
    for kept, choice in zip(every, choices):
        k = kept.k
        own = layers.filter(pl.col("k") == k)
        marked = own.filter("finds")["layer"].to_list()
        if own["p_adjusted"].null_count() == 0:
            words = f"none above random sets (false discovery rate {RATE:.0%})"
            out[f"layers_above_chance_{k}"] = ", ".join(map(str, marked)) or words
        out[f"recall_by_chance_{k}"] = {"value": float(kept.by_chance.mean()), **of}
        if not choice.rows:
            continue
        out[f"filter_layer_{k}"] = ", ".join(map(str, dict.fromkeys(row[2] for row in choice.rows)))
        values = kept.needle[np.arange(len(choice.layer)), choice.layer]
        answers = kept.answer[np.arange(len(choice.layer)), choice.layer]
        for name, value in (("needle_recall_held_out", values), ("answer_kept_held_out", answers)):
            low, high = steady_share_interval(value, clusters)
            out[f"{name}_{k}"] = {"value": float(value.mean()), "low": float(low), "high": float(high), **of}
    return out


def summary_of_answers(rates: pl.DataFrame) -> dict[str, Any]:
    """Recall of every arm, and the filter's minus theirs."""
    out: dict[str, Any] = {}
    for row in rates.iter_rows(named=True):
        name = row["arm"] if row["arm"].startswith("filter_minus") else f"recall_{row['arm']}"
        out[f"{name}_{row['k']}"] = _ends(row, "recall")
    return out


def summary_of_agreement(agreement: pl.DataFrame) -> dict[str, Any]:
    """The rank correlation with the retrieval scores, for every k."""
    return {f"retrieval_correlation_{row['k']}": _ends(row, "correlation") for row in agreement.iter_rows(named=True)}


def _ends(row: dict[str, Any], value: str) -> dict[str, Any]:
    found = {"value": row[value], "low": row["ci_low"], "high": row["ci_high"], "n": row["n"]}
    return found | ({"rows": row["rows"]} if "rows" in row else {})
