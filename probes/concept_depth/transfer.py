"""Fitted on one set, tested on another: whether two sets share a direction (truth directions, arXiv 2602.20273,
2604.03754), layer by layer.

A probe is fitted on all rows of the first set, and the same on its shuffled labels; both are tested on all rows of the
second, but for texts that the first has too. The layer of each first set is the one where that set's own curve is
highest: rows of the second have no part in picking it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import polars as pl
import torch

from probes.concept_depth.above_chance import above_chance
from probes.concept_depth.concept_sets import ConceptSet
from probes.concept_depth.held_out import Fit
from probes.concept_depth.label_shuffles import arrangements, shuffle
from probes.concept_depth.layer_curves import measured
from probes.concept_depth.linear_probe import metrics

TRANSFER = {
    "train": pl.String,
    "test": pl.String,
    "layer": pl.Int64,
    "picked": pl.Boolean,
    **dict.fromkeys(("accuracy", "ci_low", "ci_high", "auc", "auc_low", "auc_high"), pl.Float64),
    **dict.fromkeys(("control_accuracy", "control_auc", "p", "p_adjusted"), pl.Float64),
    "above_chance": pl.Boolean,
    "majority_rate": pl.Float64,
    "n": pl.Int64,
    "n_test": pl.Int64,
}


def fitted_on_all(
    features: Sequence[torch.Tensor],
    labels: np.ndarray,
    units: np.ndarray | None,
    fit: Fit,
    *,
    shuffles: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Coefficients of probes fitted on all rows [1 + shuffles, L, d + 1]: the set's labels first, then shuffled ones
    (within its groups `units`)."""
    whole = [np.arange(len(labels))]
    others = [shuffle(labels, whole, units, rng) for _ in range(shuffles)]
    drawn = np.stack([own for own in (labels, *others) if len(set(own)) == 2])
    found = fit(features, drawn, np.ones(drawn.shape, dtype=bool))
    return np.concatenate([found.coef[:, :, 0].numpy(), found.intercept.numpy()], axis=-1)


def transfer_table(
    sets: Sequence[ConceptSet],
    fitted: Mapping[str, np.ndarray],
    layers: Mapping[str, int],
    features_of: Callable[[ConceptSet], Sequence[torch.Tensor]],
    *,
    draws: int,
    rng: Callable[[str], np.random.Generator],
) -> pl.DataFrame:
    """One row per first set, second set and layer. `fitted`: the coefficients of each set; `layers`: its own best
    layer; `features_of`: read again, a set at a time."""
    rows: list[dict] = []
    for test in sets:
        features = [x.double().cpu().numpy() for x in features_of(test)]
        for train in sets:
            kept = np.flatnonzero(~np.isin(np.array(test.texts, dtype=object), np.array(train.texts, dtype=object)))
            if train is test or len(set(test.labels[kept])) < 2:
                continue
            found = _one_pair(train, test, fitted[train.name], features, kept, draws, rng(f"{train.name} {test.name}"))
            for layer, row in enumerate(found):
                where = {"train": train.name, "test": test.name, "layer": layer, "picked": layer == layers[train.name]}
                rows.append(where | row)
    return pl.DataFrame(rows, schema=TRANSFER)


def _one_pair(
    train: ConceptSet,
    test: ConceptSet,
    fitted: np.ndarray,
    features: Sequence[np.ndarray],
    kept: np.ndarray,
    draws: int,
    rng: np.random.Generator,
) -> list[dict]:
    """The measures of one pair, a row per layer without its names."""
    labels = test.labels[kept]
    clusters = np.array(test.groups if test.groups is not None else np.arange(len(test)))[kept]
    # [1 + shuffles, L, rows]
    scores = np.stack([x[kept] @ w[:, :-1].T + w[:, -1] for x, w in zip(features, fitted.swapaxes(0, 1))]).transpose(
        2, 0, 1
    )
    curve = measured(scores[0], labels, clusters, [kept], draws=draws, rng=rng)
    null = [metrics(own, labels) for own in scores[1:]]
    n_layers = scores.shape[1]
    control = {name: np.array([own[name] for own in null]).reshape(-1, n_layers) for name in ("accuracy", "auc")}
    units = None if train.groups is None else np.array(train.groups)
    ways = arrangements(train.labels, [np.arange(len(train))], units)
    judged = above_chance(curve.value["auc"], control["auc"], ways)
    mean = {name: own.mean(0) if len(own) else np.full(n_layers, np.nan) for name, own in control.items()}
    return [
        {
            "accuracy": curve.value["accuracy"][layer],
            "ci_low": curve.low["accuracy"][layer],
            "ci_high": curve.high["accuracy"][layer],
            "auc": curve.value["auc"][layer],
            "auc_low": curve.low["auc"][layer],
            "auc_high": curve.high["auc"][layer],
            "control_accuracy": mean["accuracy"][layer],
            "control_auc": mean["auc"][layer],
            "p": judged.p[layer],
            "p_adjusted": judged.p_adjusted[layer],
            "above_chance": bool(judged.above[layer]),
            "majority_rate": np.bincount(labels).max() / len(labels),
            "n": len(set(clusters)),
            "n_test": len(kept),
        }
        for layer in range(n_layers)
    ]
