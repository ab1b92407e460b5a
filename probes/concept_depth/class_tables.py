"""The table `classes`: how well each class of a set of more than two is read, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from probes.concept_depth.class_measures import auc_of_classes, right
from probes.concept_depth.concept_sets import ConceptSet
from probes.concept_depth.layer_curves import Control
from workbench.stats.clusters import clusters_of, share_interval

CLASSES = {
    "dataset": pl.String,
    "condition": pl.String,
    "layer": pl.Int64,
    "class": pl.Int64,
    "label": pl.String,
    **dict.fromkeys(("recall", "ci_low", "ci_high", "auc", "control_recall"), pl.Float64),
    "n": pl.Int64,
    "n_test": pl.Int64,
}


def class_table(
    where: dict,
    concept: ConceptSet,
    scores: np.ndarray,
    labels: np.ndarray,
    clusters: np.ndarray,
    tests: Sequence[np.ndarray],
    control: Control,
) -> pl.DataFrame:
    """One row per layer and class, for scores [L, rows, k] of labels [rows], fold after fold: the share of the class's
    rows that are right, with its interval over the `clusters` that have rows of it, beside the mean of the same on
    shuffled labels, and its AUC against the other classes (the mean of the folds')."""
    hits = right(scores, labels)
    cuts = np.cumsum([len(test) for test in tests])[:-1]
    folds = np.split(np.arange(len(labels)), cuts)
    auc = np.mean([auc_of_classes(scores[:, fold], labels[fold]) for fold in folds], axis=0)
    rows = []
    for j, name in enumerate(concept.classes):
        own = labels == j
        found = clusters_of(clusters[own])
        low, high = share_interval(hits[:, own].T, found)
        shuffled = (
            control.recalls[..., j].mean(0)
            if control.recalls is not None and len(control.recalls)
            else np.full(len(scores), np.nan)
        )
        for layer in range(len(scores)):
            rows.append(
                where
                | {"layer": layer, "class": j, "label": name, "recall": float(hits[layer, own].mean())}
                | {"ci_low": float(low[layer]), "ci_high": float(high[layer]), "auc": float(auc[layer, j])}
                | {"control_recall": float(shuffled[layer]), "n": found.n, "n_test": int(own.sum())}
            )
    return pl.DataFrame(rows, schema=CLASSES).sort("layer", "class")
