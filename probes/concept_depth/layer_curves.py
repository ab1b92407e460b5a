"""Courses over the layers: held-out rows scored by one probe a layer, the accuracies in every resample, on shuffled
labels, and for other penalties."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from probes.concept_depth import class_measures
from probes.concept_depth.above_chance import AboveChance
from probes.concept_depth.control_tasks import Selectivity
from probes.concept_depth.held_out import HeldOut
from probes.concept_depth.label_shuffles import shuffle
from probes.concept_depth.peak_layer import picked_elsewhere
from workbench.core.context import Context
from workbench.stats.clusters import FEWEST, Clusters, clusters_of, share_interval
from workbench.stats.intervals import resample_counts

SURE = 1e-4  # bound on the relative error of a probe above which it has not converged
PATH = {"dataset": pl.String, "condition": pl.String, "c": pl.Float64, "layer": pl.Int64}
PATH |= dict.fromkeys(("accuracy", "f1", "auc"), pl.Float64)

LAYERS = {
    "dataset": pl.String,
    "condition": pl.String,
    "layer": pl.Int64,
    **dict.fromkeys(("depth", "accuracy", "balanced_accuracy", "f1", "auc", "f1_class0"), pl.Float64),
    **{f"{name}_{end}": pl.Float64 for end in ("low", "high") for name in ("ci", "balanced", "f1", "auc")},
    "majority_rate": pl.Float64,
    **dict.fromkeys(("control_low", "control_high", "control_accuracy", "control_balanced"), pl.Float64),
    **dict.fromkeys(("above_shuffled", "p", "p_adjusted"), pl.Float64),
    "above_chance": pl.Boolean,
    **dict.fromkeys(("control_task_accuracy", "selectivity", "selectivity_low", "selectivity_high"), pl.Float64),
    "iterations": pl.Int64,
    "error": pl.Float64,
    **dict.fromkeys(("n_train", "n", "n_test"), pl.Int32),
}

Measures = dict[str, np.ndarray]


def warn_of_what_did_not_converge(held_out: HeldOut, name: str, condition: str, context: Context) -> None:
    """Name the layer whose probe is furthest from its optimum."""
    error = held_out.error
    if (error > SURE).any():
        context.warn(
            f"The probes of {name} ({condition}) did not converge in layer {int(error.argmax())} "
            f"(bound on the relative error {error.max():.1e})."
        )


@dataclass(frozen=True, eq=False)
class Curve:
    """Measures of the layers [L] each, with the ends of their intervals (NaN where there are none), which rows each
    layer has right [L, rows], and accuracies in every resample [draws, L] (None below five clusters)."""

    value: Measures
    low: Measures
    high: Measures
    hits: np.ndarray
    resampled: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Control:
    """Courses on shuffled labels: accuracy and balanced accuracy [shuffles, L], and the accuracy of the best layer on
    rows that did not pick it [shuffles]; in how many ways the labels can be shuffled; of k > 2 classes the recall of
    each, [shuffles, L, k]."""

    accuracy: np.ndarray
    balanced: np.ndarray
    peak: np.ndarray
    ways: float
    recalls: np.ndarray | None = None


def measured(
    scores: np.ndarray,
    labels: np.ndarray,
    clusters: np.ndarray,
    tests: Sequence[np.ndarray],
    *,
    draws: int,
    rng: np.random.Generator,
) -> Curve:
    """Accuracy, balanced accuracy, F1 and AUC of scores [L, rows] or [L, rows, k]. Accuracy is a share and has its
    interval by formula; the others have none, and are resampled over the `clusters` [rows]. Nothing has an interval
    below five clusters."""
    value = class_measures.metrics(scores, labels)
    starts = np.concatenate([[0], np.cumsum([len(t) for t in tests])])
    hits = class_measures.right(scores, labels)
    found, resampled = clusters_of(clusters), None
    low: Measures = {}
    high: Measures = {}
    low["accuracy"], high["accuracy"] = share_interval(hits.T, found)
    if found.n < FEWEST:
        if len(tests) > 1:
            value["auc"], _ = class_measures.auc_of_folds(scores, labels, np.ones((1, len(labels))), starts)
        none = np.full(len(scores), np.nan)
        ends = dict.fromkeys(("balanced_accuracy", "f1", "auc"), none)
        return Curve(value, low | ends, high | ends, hits, None)
    counts = resample_counts(len(labels), draws, rng, clusters=clusters)
    resampled = class_measures.resampled_metrics(scores, labels, counts)
    if len(tests) > 1:
        value["auc"], resampled["auc"] = class_measures.auc_of_folds(scores, labels, counts, starts)
    for name in ("balanced_accuracy", "f1", "auc"):
        ends = np.nanquantile(resampled[name], [0.025, 0.975], axis=0)
        low[name], high[name] = _never_of_no_width(value[name], *ends, found)
    return Curve(value, low, high, hits, resampled["accuracy"])


def _never_of_no_width(
    value: np.ndarray, low: np.ndarray, high: np.ndarray, clusters: Clusters
) -> tuple[np.ndarray, np.ndarray]:
    """The ends of bootstrap intervals [L]; where every resample is 0 or 1, those of a share of 0 or 1 in as many
    clusters, whose rows tell nothing of how alike they are."""
    for edge in (0.0, 1.0):
        sure = share_interval(np.full(clusters.rows, edge), clusters)
        at = (low == high) & (value == edge)
        low, high = np.where(at, sure[0], low), np.where(at, sure[1], high)
    return low, high


def shuffled_labels(
    labels: np.ndarray,
    tests: Sequence[np.ndarray],
    units: np.ndarray | None,
    *,
    shuffles: int,
    rng: np.random.Generator,
) -> list[np.ndarray]:
    """The labels shuffled within the parts of the split and within its groups `units` [n] (None: it keeps none
    together); fewer where a shuffle leaves the rows to fit on without a class."""
    k, rows = len(set(labels)), np.concatenate(list(tests))
    drawn = [shuffle(labels, tests, units, rng) for _ in range(shuffles)]
    return [own for own in drawn if all(len(set(np.delete(own, t))) == k for t in tests) and len(set(own[rows])) == k]


def control_of(
    scores: Sequence[np.ndarray],
    truth: Sequence[np.ndarray],
    parts: Sequence[np.ndarray],
    ways: float,
    n_layers: int,
    classes: int,
) -> Control:
    """What scores [L, rows] or [L, rows, k] on shuffled labels [rows], a course each, come to. `parts`: of the test
    rows, as they take turns in picking the best layer; `ways`: in how many the labels can be shuffled."""
    accuracy, balanced, peaks, of_each = [], [], [], []
    for own, labels in zip(scores, truth):
        found = class_measures.metrics(own, labels)
        accuracy.append(found["accuracy"])
        balanced.append(found["balanced_accuracy"])
        peaks.append(float(np.nanmean(picked_elsewhere(class_measures.right(own, labels), parts)[1])))
        if classes > 2:
            of_each.append(class_measures.recalls(own, labels))
    shape = (-1, n_layers)
    return Control(
        np.array(accuracy).reshape(shape),
        np.array(balanced).reshape(shape),
        np.array(peaks),
        ways,
        np.array(of_each).reshape(-1, n_layers, classes) if classes > 2 else None,
    )


def layer_table(
    where: dict,
    curve: Curve,
    control: Control,
    judged: AboveChance,
    selective: Selectivity,
    held_out: HeldOut,
    *,
    majority: float,
    n: int,
    n_train: int,
) -> pl.DataFrame:
    """One row per layer: the measures with their intervals, and beside them what they are on shuffled labels and on
    control tasks. `majority`: share of the commonest class of the test rows; `n`: clusters."""
    n_layers, n_test = held_out.scores.shape[:2]
    value, low, high = curve.value, curve.low, curve.high
    ends = {"accuracy": "ci", "balanced_accuracy": "balanced", "f1": "f1", "auc": "auc"}
    none = np.full(n_layers, np.nan)
    shuffled = (
        dict(zip(("control_low", "control_high"), np.quantile(control.accuracy, [0.025, 0.975], axis=0)))
        | {"control_accuracy": control.accuracy.mean(0), "control_balanced": control.balanced.mean(0)}
        if len(control.accuracy)
        else dict.fromkeys(("control_low", "control_high", "control_accuracy", "control_balanced"), none)
    )
    return pl.DataFrame(
        where
        | {"layer": np.arange(n_layers), "depth": np.arange(n_layers) / n_layers}
        | {column: value[column] for column in (*ends, "f1_class0")}
        | {f"{name}_low": low[column] for column, name in ends.items()}
        | {f"{name}_high": high[column] for column, name in ends.items()}
        | {"majority_rate": majority}
        | shuffled
        | {
            "above_shuffled": value["accuracy"] - shuffled["control_accuracy"],
            "p": judged.p,
            "p_adjusted": judged.p_adjusted,
            "above_chance": judged.above,
            "control_task_accuracy": selective.task_accuracy,
            "selectivity": selective.value,
            "selectivity_low": selective.low,
            "selectivity_high": selective.high,
            "iterations": held_out.iterations,
            "error": held_out.error,
            "n_train": n_train,
            "n": n,
            "n_test": n_test,
        }
    )


def penalty_path(where: dict, penalties: Sequence[float], measure: Callable[[float], Measures]) -> pl.DataFrame:
    """One row per penalty c and layer, the columns of PATH."""
    rows = []
    for c in penalties:
        found = measure(c)
        rows += [
            where | {"c": c, "layer": layer, **{k: float(found[k][layer]) for k in ("accuracy", "f1", "auc")}}
            for layer in range(len(found["accuracy"]))
        ]
    return pl.DataFrame(rows, schema=PATH)
