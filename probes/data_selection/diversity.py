"""A selection whose rows do not all say the same: in the order of the scores without near-duplicates, or greedily the
row that adds most features to those that are covered.

Yang et al., Diversity-driven Data Selection for Language Model Tuning through Sparse Autoencoder (arXiv 2502.14050):
greedy coverage of the features that fire above a threshold. They choose from the whole pool; here from the rows that
score highest, so that the selection stays near the target."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from probes.data_selection.config import COVERAGE
from probes.data_selection.estimate import RANDOM_SETS
from probes.data_selection.precisions import row_groups
from probes.data_selection.sample_vectors import Reader
from probes.data_selection.samples import TokenizedSamples
from probes.data_selection.selection import Eligible
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.stats.clusters import cluster_mean

DIVERSITY = {
    "target": pl.String,
    "selection": pl.String,
    "features_covered": pl.Float64,
    "mean_score": pl.Float64,
    "n": pl.Float64,
    "rows": pl.Int64,
    "draws": pl.Int64,
}
EMPTY = {"diversity": pl.DataFrame(schema=DIVERSITY)}


def without_copies(candidates: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The candidates in another order: the first of every group (`groups` [candidates]), then the others, each in the
    order that they have."""
    first = np.zeros(len(candidates), bool)
    first[np.unique(groups, return_index=True)[1]] = True
    return np.concatenate([candidates[first], candidates[~first]])


def covering(candidates: np.ndarray, groups: np.ndarray, features: Sequence[np.ndarray], size: int) -> np.ndarray:
    """`size` candidates, each the one that adds most features to those of the ones before; the better one where two add
    as many; rows of a group that is there already, and rows that add nothing, only when there is nothing else.

    `groups` and `features` [candidates]: the group and the features of each candidate. A row never adds more than it
    would have added before, so only those at the head of a queue are counted anew."""
    covered: set[int] = set()
    queue = [(-len(found), place) for place, found in enumerate(features)]
    heapq.heapify(queue)
    chosen, seen, later = [], set(), []
    while queue and len(chosen) < size:
        gain, place = heapq.heappop(queue)
        if groups[place] in seen:
            later.append(place)
            continue
        now = len(set(features[place].tolist()) - covered)
        if now < -gain:
            heapq.heappush(queue, (-now, place))
            continue
        chosen.append(place)
        seen.add(groups[place])
        covered.update(features[place].tolist())
    left = sorted(set(range(len(candidates))) - set(chosen))
    return candidates[(chosen + left)[:size]]


def diversified(
    reader: Reader,
    pool: TokenizedSamples,
    frame: pl.DataFrame,
    texts: Sequence[str],
    scores: np.ndarray,
    orders: Sequence[np.ndarray],
    among: Eligible,
) -> tuple[list[np.ndarray], dict[str, pl.DataFrame], dict[str, Any]]:
    """(The order of every target with a diverse selection in front and the other rows behind it, table `diversity`,
    what the summary says of it), from the rows of every target by score. Raises InputError where features are asked
    for and there are none, or where a random method selects."""
    config, context = reader.config, reader.context
    if reader.main == "random":
        raise InputError("diversity needs scores to choose by, and random numbers select here; use another baseline.")
    if config.diversity == COVERAGE and reader.sae is None:
        raise InputError(
            f"diversity={COVERAGE} needs an autoencoder, and none ships with {reader.model.name}; give sae=FOLDER, or "
            f"use diversity=near_duplicates."
        )
    most = max(config.diversity_among * among.size, among.size)
    candidates = [order[:most] for order in orders]
    chance = [_random_sets(rows, among.size, context, name) for name, rows in zip(among.names, among.rows)]
    every = np.unique(np.concatenate([*candidates, *(rows for sets in chance for rows in sets)]))
    groups = row_groups(frame, texts, every, context)
    features = _features(reader, pool, every) if reader.sae is not None else {}
    found, rows = [], []
    for t, (name, order, own) in enumerate(zip(among.names, orders, candidates)):
        if config.diversity == COVERAGE:
            best = covering(own, groups[own], [features[int(row)] for row in own], among.size)
        else:
            best = without_copies(own, groups[own])[: among.size]
        found.append(np.concatenate([best, order[~np.isin(order, best)]]))
        sets = {"diverse": [best], "by_score": [order[: among.size]], "random": chance[t]}
        rows += [
            {"target": name, "selection": what} | _described(some, scores[:, t], groups, features)
            for what, some in sets.items()
        ]
    table = pl.DataFrame(rows, schema=DIVERSITY)
    return found, {"diversity": table}, summary_of(table)


def _random_sets(rows: np.ndarray, size: int, context: Context, name: str) -> list[np.ndarray]:
    return [context.rng(f"diversity {name} {draw}").choice(rows, size, replace=False) for draw in range(RANDOM_SETS)]


def _features(reader: Reader, pool: TokenizedSamples, rows: np.ndarray) -> dict[int, np.ndarray]:
    """The features of some rows of the pool whose number in its vector is above the threshold."""

    def compute() -> dict[str, np.ndarray]:
        sizes, own = np.zeros(len(rows), np.int64), [np.empty(0, np.int64)] * len(rows)
        for batch in reader.read(pool.lists(rows.tolist()), [pool.masks[row] for row in rows]):
            vectors = batch.vectors.get("sae")
            for place, index in enumerate(batch.indices if vectors is not None else ()):
                feature, value = vectors.take(place)
                own[index] = feature[value > reader.config.diversity_threshold].cpu().numpy()
                sizes[index] = len(own[index])
        return {"features": np.concatenate(own), "sizes": sizes}

    found = reader.context.part("diversity", compute)
    return dict(zip(rows.tolist(), np.split(found["features"], np.cumsum(found["sizes"])[:-1])))


def _described(
    sets: Sequence[np.ndarray], scores: np.ndarray, groups: np.ndarray, features: Mapping[int, np.ndarray]
) -> dict[str, Any]:
    """Means over some sets of rows."""
    covered = [len(np.unique(np.concatenate([features[int(row)] for row in rows]))) for rows in sets if features]
    return {
        "features_covered": float(np.mean(covered)) if covered else None,
        "mean_score": float(np.mean([scores[rows].mean() for rows in sets])),
        "n": float(np.mean([len(np.unique(groups[rows])) for rows in sets])),
        "rows": len(sets[0]),
        "draws": len(sets),
    }


def summary_of(table: pl.DataFrame) -> dict[str, Any]:
    """Means over targets of the features that each kind of selection covers, and of what diverse has more than the
    rows by score: the targets are the clusters."""
    covered = {what: table.filter(selection=what)["features_covered"] for what in ("diverse", "by_score", "random")}
    if covered["diverse"].null_count():
        return {}
    more = (covered["diverse"] - covered["by_score"]).to_numpy()
    apart = cluster_mean(more, np.arange(len(more)))
    out: dict[str, Any] = {f"features_covered_{what}": found.mean() for what, found in covered.items()}
    return out | {"features_covered_diverse_minus_by_score": apart.as_dict()}
