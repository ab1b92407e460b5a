"""Rankings of one pool by several methods: how many rows are of the wanted kind, how alike the choices are, how long the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from workbench.statistics import wilson

PRECISION = {"target": pl.String, "method": pl.String, "ratio": pl.Float64, "k": pl.Int64, "precision": pl.Float64, "ci_low": pl.Float64, "ci_high": pl.Float64,
             "recall": pl.Float64, "base_rate": pl.Float64, "best_possible": pl.Float64}  # fmt: skip
OVERLAP = {"target": pl.String, "ratio": pl.Float64, "k": pl.Int64, "method_a": pl.String, "method_b": pl.String, "overlap": pl.Float64, "expected": pl.Float64}


def ranked(scores: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """The allowed rows by score, best first; the earlier row where two are equal."""
    return allowed[np.argsort(-scores[allowed], kind="stable")]


def bm25(pool: Sequence[str], queries: Mapping[str, Sequence[str]]) -> np.ndarray:
    """BM25 score of every text of the pool for each target, the mean over the target's examples as queries: [N, targets]."""
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
    order: Mapping[str, Sequence[np.ndarray]],
    sizes: Mapping[float, int],
    *,
    lengths: np.ndarray,
    target_lengths: Sequence[float],
    labels: tuple[np.ndarray, Sequence[str]] | None,
) -> dict[str, pl.DataFrame]:
    """Tables `selections`, `precision`, `overlap` and `lengths` of every method at every size.

    scores[method] [N, targets]; order[method][target] the rows, best first; sizes ratio → number of rows; `lengths` [N] tokens that
    count; `labels` (label of each row, label of each target). Precision has a Wilson interval; overlap is the share of common rows,
    `expected` what two random choices share."""
    deepest = max(sizes.values())
    selections, precision, overlap, length = [], [], [], []
    for t, name in enumerate(names):
        for method, found in scores.items():
            best = order[method][t]
            top = best[:deepest]
            selections.append(pl.DataFrame({"target": name, "method": method, "rank": np.arange(1, len(top) + 1), "row": top, "score": found[top, t]}))
            for ratio, k in sizes.items():
                where = {"target": name, "method": method, "ratio": ratio, "k": k}
                chosen = lengths[best[:k]]
                length.append(where | {"mean": float(chosen.mean()), "median": float(np.median(chosen)), "target_mean": float(target_lengths[t]), "pool_mean": float(lengths.mean())})
                relevant = labels[0][best] == labels[1][t] if labels is not None else np.zeros(len(best), bool)
                if not relevant.any():
                    continue
                hits, total = int(relevant[:k].sum()), int(relevant.sum())
                low, high = wilson(hits, k)
                precision.append(where | {"precision": hits / k, "ci_low": float(low), "ci_high": float(high), "recall": hits / total,
                                          "base_rate": total / len(best), "best_possible": min(1.0, total / k)})  # fmt: skip
        for ratio, k in sizes.items():
            for i, a in enumerate(scores):
                for b in list(scores)[i + 1 :]:
                    n = len(order[a][t])
                    common = len(np.intersect1d(order[a][t][:k], order[b][t][:k]))
                    overlap.append({"target": name, "ratio": ratio, "k": k, "method_a": a, "method_b": b, "overlap": common / k, "expected": k / n})
    return {"selections": pl.concat(selections), "precision": pl.DataFrame(precision, schema=PRECISION), "overlap": pl.DataFrame(overlap, schema=OVERLAP), "lengths": pl.DataFrame(length)}
