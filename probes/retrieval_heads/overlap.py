"""Whether two scores find the same heads: what the best heads by one have in common with the best by the other, beside
chance."""

from __future__ import annotations

import numpy as np
import polars as pl

SIZES = (5, 10, 16, 20, 32, 50, 100)  # heads in both lists
OVERLAP = {
    "k": pl.Int64,
    "overlap": pl.Float64,
    "by_chance": pl.Float64,
    "by_chance_in_layers": pl.Float64,
    "p": pl.Float64,
    "n": pl.Int64,
    "rows": pl.Int64,
}


def overlap_table(
    first: np.ndarray,
    second: np.ndarray,
    first_names: np.ndarray,
    second_names: np.ndarray,
    *,
    rng: np.random.Generator,
) -> pl.DataFrame:
    """The columns of OVERLAP for the k best heads by the scores `first` [rows, layers, H] and by `second` [its rows,
    layers, H]; names: the cluster of each row. k ends with the heads that have a score above 0 in both, and with half
    of all.

    There is no interval: lists that are chosen anew from resampled clusters rest on noisier means and have less in
    common, so that such intervals lie below what was measured. `by_chance`: k heads at random have k/heads in common;
    `by_chance_in_layers`: random heads of the same layers; p: one-sided, of k random heads (hypergeometric)."""
    heads = int(np.prod(first.shape[1:]))
    names, a, b = _by_cluster(first, second, first_names, second_names)
    once = np.ones((1, len(names)))
    means = [each(once)[0] if len(names) else np.zeros(heads) for each in (a, b)]
    most = min(heads // 2, *(int((m > 0).sum()) for m in means))
    ks = [k for k in SIZES if k <= most] or ([most] if most else [])
    jitter = rng.random((2, heads))  # heads of equal scores have no order, and must not get the same one in both lists
    orders = [np.lexsort((jitter[i], -m)) for i, m in enumerate(means)]
    rows = []
    for k in ks:
        best = [set(order[:k].tolist()) for order in orders]
        shared = len(best[0] & best[1])
        expected = k / heads, _in_layers(best, first.shape[2]) / k
        rows.append((k, shared / k, *expected, _p(shared, k, heads), len(names), len(first)))
    return pl.DataFrame(rows, schema=OVERLAP, orient="row")


def _by_cluster(first, second, first_names, second_names):
    """The names that both have, and of each score: counts [draws, names] -> its means [draws, heads]."""
    names = np.intersect1d(first_names, second_names)

    def means_of(scores: np.ndarray, own: np.ndarray):
        here = np.isin(own, names)
        index = np.searchsorted(names, own[here])
        flat = scores[here].reshape(int(here.sum()), int(np.prod(scores.shape[1:]))).astype(np.float64)
        sums = np.zeros((len(names), flat.shape[1]))
        np.add.at(sums, index, flat)
        sizes = np.bincount(index, minlength=len(names)).astype(np.float64)
        return lambda counts: counts @ sums / (counts @ sizes)[:, None]

    return names, means_of(first, first_names), means_of(second, second_names)


def _in_layers(best: list[set[int]], per_layer: int) -> float:
    """Expected common heads of random lists that have as many heads in every layer as these two."""
    layers = [np.unique([head // per_layer for head in heads], return_counts=True) for heads in best]
    first, second = (dict(zip(where.tolist(), count.tolist())) for where, count in layers)
    return sum(count * second.get(layer, 0) / per_layer for layer, count in first.items())


def _p(shared: int, k: int, heads: int) -> float:
    from scipy.stats import hypergeom

    return float(hypergeom.sf(shared - 1, heads, k, k))


def summary_of_overlap(overlaps: pl.DataFrame) -> dict:
    """The share of the best heads that two scores have in common, beside that of random heads, for every k."""
    found: dict = {}
    for row in overlaps.iter_rows(named=True):
        found[f"overlap_with_copying_{row['k']}"] = {
            "value": row["overlap"],
            "n": row["n"],
            "rows": row["rows"],
        }
        found[f"overlap_by_chance_{row['k']}"] = row["by_chance"]
        found[f"overlap_by_chance_in_layers_{row['k']}"] = row["by_chance_in_layers"]
    return found
