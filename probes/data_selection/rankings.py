"""Rankings of one pool by several methods: how many rows are of the wanted kind, how alike the choices are, how long
the rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl

from probes.data_selection.precisions import PRECISION, precision_row
from workbench.stats.intervals import multinomial_counts

OVERLAP = {
    "target": pl.String,
    "ratio": pl.Float64,
    "k": pl.Int64,
    "method_a": pl.String,
    "method_b": pl.String,
    "overlap": pl.Float64,
    "expected": pl.Float64,
    "n": pl.Int64,
    "rows": pl.Int64,
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
    groups: np.ndarray,
) -> dict[str, pl.DataFrame]:
    """Tables `selections`, `precision`, `overlap` and `lengths` of every method at every size.

    scores[method] [N, targets]; orders[method][draw][target] the rows, best first (one draw of every method but
    `random`, whose numbers are means over its draws; `selections` holds the first); sizes ratio → number of rows;
    `lengths` [N] tokens that count; `labels` (label of each row, label of each target); `groups` [N]: the cluster of
    each row, for the intervals of precision. Overlap is the share of common rows, `expected` what two random choices
    share."""
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
                length.append(where | _lengths(lengths, best[method], k, float(target_lengths[t]), groups))
                if relevant and relevant[0].any():
                    precision.append(where | precision_row(relevant, best[method], groups, k))
        for ratio, k in sizes.items():
            overlap += [{"target": name, "ratio": ratio} | pair for pair in _overlaps(best, k, groups)]
    return {
        "selections": pl.concat(selections),
        "precision": pl.DataFrame(precision, schema=PRECISION).with_columns(pl.col("ci_low", "ci_high").fill_nan(None)),
        "overlap": pl.DataFrame(overlap, schema=OVERLAP),
        "lengths": pl.DataFrame(length),
    }


def _lengths(
    lengths: np.ndarray, draws: Sequence[np.ndarray], k: int, target_mean: float, groups: np.ndarray
) -> dict[str, float]:
    chosen = [lengths[rows[:k]] for rows in draws]
    return {
        "mean": float(np.mean(chosen)),
        "median": float(np.mean(np.median(chosen, axis=1))),
        "target_mean": target_mean,
        "pool_mean": float(lengths.mean()),
        "n": len(np.unique(groups[draws[0][:k]])),
        "rows": k,
    }


def _overlaps(best: Mapping[str, Sequence[np.ndarray]], k: int, groups: np.ndarray) -> Iterator[dict[str, Any]]:
    """Of every two methods, the share of the first k rows that they have in common, mean over their draws; `rows` that
    either selects (in its first draw), in `n` clusters."""
    for a, b in combinations(best, 2):
        n = len(best[a][0])
        size = min(k, n)
        common = np.mean([len(np.intersect1d(x[:k], y[:k])) / size for x in best[a] for y in best[b]])
        either = np.union1d(best[a][0][:k], best[b][0][:k])
        counts = {"n": len(np.unique(groups[either])), "rows": len(either)}
        yield {"k": size, "method_a": a, "method_b": b, "overlap": float(common), "expected": size / n} | counts
