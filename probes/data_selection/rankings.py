"""Rankings of one pool by several methods: how many rows are of the wanted kind, how alike the choices are, how long
the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl

from workbench.stats.intervals import bootstrap_mean, multinomial_counts, rate_difference, wilson

PRECISION = {
    "target": pl.String,
    "method": pl.String,
    "ratio": pl.Float64,
    "k": pl.Int64,
    "precision": pl.Float64,
    "ci_low": pl.Float64,
    "ci_high": pl.Float64,
    "recall": pl.Float64,
    "base_rate": pl.Float64,
    "best_possible": pl.Float64,
    "draws": pl.Int64,
}
OVERLAP = {
    "target": pl.String,
    "ratio": pl.Float64,
    "k": pl.Int64,
    "method_a": pl.String,
    "method_b": pl.String,
    "overlap": pl.Float64,
    "expected": pl.Float64,
}


def ranked(scores: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """The allowed rows by score, best first; the earlier row where two are equal."""
    return allowed[np.argsort(-scores[allowed], kind="stable")]


def grouped_counts(n: int, group: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray | None:
    """How often each of n examples is drawn, [draws, n]: as many as there are, with replacement, within each group;
    None where no group has two."""
    if n < 2 or not draws or np.bincount(group).max() < 2:
        return None
    out = np.zeros((draws, n), np.int64)
    for kind in range(int(group.max()) + 1):
        own = np.flatnonzero(group == kind)
        out[:, own] = multinomial_counts(len(own), draws, rng)
    return out


def selected_share(draws: np.ndarray, allowed: np.ndarray, size: int) -> np.ndarray:
    """Share of the resamples (scores [N, B]) in which each row is among the `size` best allowed ones; NaN for the
    others, and without scores."""
    out = np.full(len(draws), np.nan)
    if not np.isnan(draws[allowed]).all():
        times = np.zeros(len(draws), np.int64)
        for b in range(draws.shape[1]):
            times[ranked(draws[:, b], allowed)[:size]] += 1
        out[allowed] = times[allowed] / draws.shape[1]
    return out


def undecided(scores: np.ndarray, order: np.ndarray, size: int) -> int:
    """How many rows score what the last of the `size` selected ones scores, where some of them are not selected; else
    0."""
    if size >= len(order) or scores[order[size - 1]] != scores[order[size]]:
        return 0
    return int((scores[order] == scores[order[size]]).sum())


def bm25(pool: Sequence[str], queries: Mapping[str, Sequence[str]]) -> np.ndarray:
    """BM25 score of every text of the pool for each target, the mean over the target's examples as queries: [N,
    targets]."""
    import bm25s

    def words(texts: Sequence[str]) -> list[list[str]]:
        return bm25s.tokenize(list(texts), stopwords="en", return_ids=False, show_progress=False)

    corpus = words(pool)
    known = {word for text in corpus for word in text}
    scores = np.zeros((len(pool), len(queries)))
    if not known:
        return scores
    index = bm25s.BM25()
    index.index(corpus, show_progress=False)
    for t, examples in enumerate(queries.values()):
        for query in words(examples):
            query = [word for word in query if word in known]  # the index refuses words that it has not seen
            scores[:, t] += index.get_scores(query) / len(examples) if query else 0.0
    return scores


def compare(
    names: Sequence[str],
    scores: Mapping[str, np.ndarray],
    orders: Mapping[str, Sequence[Sequence[np.ndarray]]],
    sizes: Mapping[float, int],
    *,
    lengths: np.ndarray,
    target_lengths: Sequence[float],
    labels: tuple[np.ndarray, Sequence[str]] | None,
) -> dict[str, pl.DataFrame]:
    """Tables `selections`, `precision`, `overlap` and `lengths` of every method at every size.

    scores[method] [N, targets]; orders[method][draw][target] the rows, best first (one draw of every method but
    `random`, whose numbers are means over its draws; `selections` holds the first); sizes ratio → number of rows;
    `lengths` [N] tokens that count; `labels` (label of each row, label of each target). Precision has a Wilson interval
    over all its draws; overlap is the share of common rows, `expected` what two random choices share."""
    deepest = max(sizes.values())
    selections, precision, overlap, length = [], [], [], []
    for t, name in enumerate(names):
        best = {method: [order[t] for order in orders[method]] for method in scores}
        for method, found in scores.items():
            top = best[method][0][:deepest]
            columns = {"target": name, "method": method, "rank": np.arange(1, len(top) + 1), "row": top}
            selections.append(pl.DataFrame(columns | {"score": found[top, t]}))
            relevant = [labels[0][rows] == labels[1][t] for rows in best[method]] if labels is not None else []
            for ratio, k in sizes.items():
                k = min(k, len(best[method][0]))
                where = {"target": name, "method": method, "ratio": ratio, "k": k}
                length.append(where | _lengths(lengths, best[method], k, float(target_lengths[t])))
                if relevant and relevant[0].any():
                    precision.append(where | _precision(relevant, k))
        for ratio, k in sizes.items():
            overlap += [{"target": name, "ratio": ratio} | pair for pair in _overlaps(best, k)]
    return {
        "selections": pl.concat(selections),
        "precision": pl.DataFrame(precision, schema=PRECISION),
        "overlap": pl.DataFrame(overlap, schema=OVERLAP),
        "lengths": pl.DataFrame(length),
    }


def _lengths(lengths: np.ndarray, draws: Sequence[np.ndarray], k: int, target_mean: float) -> dict[str, float]:
    chosen = [lengths[rows[:k]] for rows in draws]
    return {
        "mean": float(np.mean(chosen)),
        "median": float(np.mean(np.median(chosen, axis=1))),
        "target_mean": target_mean,
        "pool_mean": float(lengths.mean()),
    }


def _precision(relevant: Sequence[np.ndarray], k: int) -> dict[str, float]:
    """Of the first k rows of every draw; `relevant`: whether each row, best first, is of the target."""
    draws, n, total = len(relevant), len(relevant[0]), int(relevant[0].sum())
    hits = sum(int(found[:k].sum()) for found in relevant)
    low, high = wilson(hits, k * draws)
    return {
        "precision": hits / (k * draws),
        "ci_low": float(low),
        "ci_high": float(high),
        "recall": hits / draws / total,
        "base_rate": total / n,
        "best_possible": min(1.0, total / k),
        "draws": draws,
    }


def _overlaps(best: Mapping[str, Sequence[np.ndarray]], k: int) -> Iterator[dict[str, Any]]:
    """Of every two methods, the share of the first k rows that they have in common, mean over their draws."""
    for a, b in combinations(best, 2):
        n = len(best[a][0])
        size = min(k, n)
        common = np.mean([len(np.intersect1d(x[:k], y[:k])) / size for x in best[a] for y in best[b]])
        yield {"k": size, "method_a": a, "method_b": b, "overlap": float(common), "expected": size / n}


def verdict(precision: pl.DataFrame, main: str, rng: Callable[[str], np.random.Generator]) -> dict[str, Any]:
    """Mean precision over targets of every method, and what `main` has more than each other one, from the rows of
    `precision` at one size.

    {"precision_METHOD": {value, low, high, n}, "MAIN_minus_METHOD": …}; n is the number of selected rows. Two intervals
    are made, and the wider ends count: over selected rows (Wilson; Newcombe for a difference, as if the two selections
    were independent), which one target or equal precisions cannot shrink to nothing, and, with several targets, a
    bootstrap over targets."""
    out: dict[str, Any] = {}
    by_method = {
        m: precision.filter(pl.col("method") == m).sort("target")
        for m in precision["method"].unique(maintain_order=True)
    }

    def estimate(value: float, ends: tuple[float, float], values: np.ndarray, name: str, n: int) -> dict[str, Any]:
        low, high = ends
        if len(values) > 1:
            over = bootstrap_mean(values, rng=rng(name))
            low, high = min(low, over[0]), max(high, over[1])
        return {"value": value, "low": float(low), "high": float(high), "n": n}

    rates = {m: frame["precision"].to_numpy() for m, frame in by_method.items()}
    for method, values in rates.items():
        frame = by_method[method]
        n = int(frame["k"].sum())
        hits = float((frame["precision"] * frame["k"]).sum())
        out[f"precision_{method}"] = estimate(float(values.mean()), wilson(hits, n), values, f"precision {method}", n)
        if method != main:
            own = by_method[main]
            apart = rate_difference(float((own["precision"] * own["k"]).sum()), n, hits, n)
            out[f"{main}_minus_{method}"] = estimate(
                float((rates[main] - values).mean()),
                (apart.low, apart.high),
                rates[main] - values,
                f"difference {method}",
                n,
            )
    return out
