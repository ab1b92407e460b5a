"""How many selected rows are of the target's kind, with intervals over what is independent, and in words: better,
worse, or not told apart.

Rows that say almost the same are one cluster (a column `group` of the pool says which they are; without one, those that
are nearly duplicates). From five targets on, the targets are the clusters: the rows selected for a target all hang on
its few examples. The draws of `random` are 20, and part of its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from math import hypot
from typing import Any

import numpy as np
import polars as pl

from workbench.core.context import Context
from workbench.stats.clusters import (
    FEWEST,
    cluster_share,
    clusters_of,
    crossed_interval,
    mean_interval,
    share_interval,
)
from workbench.stats.intervals import Estimate, rate_difference
from workbench.stats.near_duplicates import near_duplicates

MOST_COMPARED = 50_000  # texts up to which those that say almost the same are looked for
BETTER, WORSE, NOT_TOLD = "better", "worse", "not told apart"
Orders = Mapping[str, Sequence[Sequence[np.ndarray]]]  # [method][draw][target]: rows of the pool, best first
PRECISION = {
    "target": pl.String,
    "method": pl.String,
    "ratio": pl.Float64,
    "k": pl.Int64,
    "precision": pl.Float64,
    "ci_low": pl.Float64,
    "ci_high": pl.Float64,
    "n": pl.Int64,
    "recall": pl.Float64,
    "base_rate": pl.Float64,
    "against_chance": pl.String,
    "best_possible": pl.Float64,
    "draws": pl.Int64,
}


def row_groups(pool: pl.DataFrame, texts: Sequence[str], rows: np.ndarray, context: Context) -> np.ndarray:
    """The cluster of every row of the pool, [N]: its `group` where the pool has such a column; else, of these `rows`,
    those that say almost the same are one, and of more than MOST_COMPARED those that say the same."""
    if "group" in pool.columns and not pool["group"].dtype.is_nested():
        own = pool["group"].cast(pl.String).fill_null("")
        alone = (own == "").to_numpy()
        named = np.unique(own.to_numpy(), return_inverse=True)[1]
        return np.where(alone, len(pool) + np.arange(len(pool)), named)
    found = np.arange(len(pool))
    if len(rows) > MOST_COMPARED:
        context.warn(
            f"{len(rows):,} rows are selected by some method, too many to look for those that say almost the same: "
            f"intervals of precision take all but exact copies as independent."
        )
        first: dict[str, int] = {}
        found[rows] = [first.setdefault(texts[row], int(row)) for row in rows]
    else:
        found[rows] = rows[near_duplicates([texts[row] for row in rows])]
    return found


def clusters_in(pool: pl.DataFrame, texts: Sequence[str]) -> int:
    """How many clusters of rows the whole pool has; of more than MOST_COMPARED rows, how many that do not say the
    same."""
    if len(texts) > MOST_COMPARED and "group" not in pool.columns:
        return len(set(texts))
    return len(np.unique(row_groups(pool, texts, np.arange(len(texts)), Context())))


def selected_by_any(orders: Orders, deepest: int) -> np.ndarray:
    """The rows that any method selects for any target, in ascending order."""
    found = [order[:deepest] for draws in orders.values() for order in chain.from_iterable(draws)]
    return np.unique(np.concatenate(found))


def precision_row(relevant: Sequence[np.ndarray], rows: Sequence[np.ndarray], groups: np.ndarray, k: int) -> dict:
    """Of the first k rows of every draw. `relevant`: whether each of these `rows`, best first, is of the target. One
    draw has clusters of rows; of several the draws are the clusters."""
    draws, n, total = len(relevant), len(relevant[0]), int(relevant[0].sum())
    values = np.concatenate([found[:k] for found in relevant]).astype(np.float64)
    names = groups[rows[0][:k]] if draws == 1 else np.repeat(np.arange(draws), k)
    found = cluster_share(values, names)
    base = total / n
    return {
        "precision": found.value,
        "ci_low": found.low,
        "ci_high": found.high,
        "n": found.n,
        "recall": values.sum() / draws / total,
        "base_rate": base,
        "against_chance": word(found.low - base, found.high - base) if draws == 1 else None,
        "best_possible": min(1.0, total / k),
        "draws": draws,
    }


def word(low: float, high: float) -> str | None:
    """What the interval of a difference says; None where there is none."""
    if np.isnan(low):
        return None
    return BETTER if low > 0 else WORSE if high < 0 else NOT_TOLD


def verdict(orders: Orders, main: str, relevant: np.ndarray, groups: np.ndarray, k: int) -> dict[str, Any]:
    """Mean precision over targets of every method at k rows, what `main` has more than each other one, and the methods
    by what the intervals of these differences say. `relevant` [N, targets]; targets without any relevant row do not
    count.

    {"precision_METHOD": {value, low, high, n, rows}, "MAIN_minus_METHOD": …, "better_than": …}; n counts clusters."""
    targets = np.flatnonzero(relevant.any(0))
    hits = {
        method: np.array([[relevant[draw[t][:k], t] for t in targets] for draw in draws], np.float64)
        for method, draws in orders.items()
    }  # [draws, targets, k]
    out: dict[str, Any] = {}
    said: dict[str, list[str]] = {BETTER: [], WORSE: [], NOT_TOLD: []}
    rows = {method: np.array([draws[0][t][:k] for t in targets]) for method, draws in orders.items()}
    for method, found in hits.items():
        out[f"precision_{method}"] = _precision(found, rows[method], groups).as_dict()
        if method == main:
            continue
        if len(found) > 1:
            apart = _above_draws(hits[main][0], found, rows[main], groups)
        else:
            apart = _apart(hits[main][0], found[0], rows[main], rows[method], groups)
        out[f"{main}_minus_{method}"] = apart.as_dict()
        if (told := word(apart.low, apart.high)) is not None:
            said[told].append(method)
    names = {BETTER: "better_than", WORSE: "worse_than", NOT_TOLD: "not_better_than"}
    return out | {names[told]: ", ".join(methods) for told, methods in said.items() if methods}


def _names(rows: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The cluster of every selected row, [targets · k]: its target, or a cluster of rows within it."""
    targets = np.repeat(np.arange(len(rows)), rows.shape[1])
    if len(rows) >= FEWEST:
        return targets
    return targets * (groups.max() + 1) + groups[rows.ravel()]


def _precision(found: np.ndarray, rows: np.ndarray, groups: np.ndarray) -> Estimate:
    """Of hits [draws, targets, k]."""
    draws, targets, k = found.shape
    if draws == 1:
        return cluster_share(found.ravel(), _names(rows, groups))
    if targets < FEWEST:  # the draws vary, the targets are these
        low, high = share_interval(found.reshape(draws, -1).mean(1), clusters_of(np.arange(draws)))
    else:
        low, high = crossed_interval(found.mean(2), clusters_of(np.arange(targets)))
    n = draws if targets < FEWEST else targets
    return Estimate(float(found.mean()), max(0.0, float(low)), min(1.0, float(high)), n, found.size)


def _above_draws(own: np.ndarray, others: np.ndarray, rows: np.ndarray, groups: np.ndarray) -> Estimate:
    """Precision of hits [targets, k] minus the mean of several draws [draws, targets, k]."""
    value = float(own.mean() - others.mean())
    if len(own) >= FEWEST:
        low, high = crossed_interval(own.mean(1) - others.mean(2), clusters_of(np.arange(len(own))))
        return Estimate(value, float(low), float(high), len(own), own.size)
    a, b = _precision(own[None], rows, groups), _precision(others, rows, groups)
    # two independent estimates with intervals of their own (Zou and Donner's, of which Newcombe's is one)
    low, high = value - hypot(a.value - a.low, b.high - b.value), value + hypot(a.high - a.value, b.value - b.low)
    return Estimate(value, low, high, a.n, a.rows)


def _apart(a: np.ndarray, b: np.ndarray, rows_a: np.ndarray, rows_b: np.ndarray, groups: np.ndarray) -> Estimate:
    """Precision of hits a minus b [targets, k], paired: rows that both select cancel. Where nothing varies, as if the
    two were independent samples of so many clusters (Newcombe)."""
    value, targets = float(a.mean() - b.mean()), len(a)
    if targets >= FEWEST:
        found = clusters_of(np.arange(targets))
        low, high = mean_interval(a.mean(1) - b.mean(1), found)
    else:  # what each row adds to either mean; a row of both is in one cluster, with either sign
        rows = np.concatenate([rows_a, rows_b], axis=1)
        off = np.concatenate([a - a.mean(1, keepdims=True), b.mean(1, keepdims=True) - b], axis=1)
        found = clusters_of(_names(rows, groups))
        low, high = (value + end for end in mean_interval(2 * off.ravel(), found))
    if found.n >= FEWEST and not high > low:
        hits_a, hits_b = a.mean() * found.n, b.mean() * found.n
        near = rate_difference(hits_a, found.n, hits_b, found.n)  # pyright: ignore[reportArgumentType]
        low, high = near.low, near.high
    return Estimate(value, float(low), float(high), found.n, a.size)
