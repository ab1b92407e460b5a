"""Courses over the layers: held-out rows scored by one probe a layer, the accuracies in every resample, on shuffled
labels, and for other penalties."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch

from probes.concept_depth import linear_probe
from workbench.core.context import Context

SURE = 1e-4  # bound on the relative error of a probe above which it has not converged
PATH = {"dataset": pl.String, "condition": pl.String, "c": pl.Float64, "layer": pl.Int64}
PATH |= dict.fromkeys(("accuracy", "f1", "auc"), pl.Float64)

Measures = dict[str, np.ndarray]


@dataclass(eq=False)
class HeldOut:
    """Rows scored by probes that have not seen them: scores [L, rows], fold after fold; the probes of the first fold;
    the most Newton steps and the largest error of any fold, each [L]."""

    scores: np.ndarray
    probes: linear_probe.LinearProbes
    iterations: np.ndarray
    error: np.ndarray


def score_held_out(
    features: Sequence[torch.Tensor],
    labels: np.ndarray,
    tests: Sequence[np.ndarray],
    *,
    c: float,
    standardize: bool,
    device: torch.device,
    check: Callable[[], None],
) -> HeldOut:
    """Fit a probe a layer on the rows outside of each of `tests`, and score those inside."""
    fitted, scores = [], []
    for test in tests:
        train = np.delete(np.arange(len(labels)), test)
        probes = linear_probe.fit(
            [x[train] for x in features], labels[train], c=c, standardize=standardize, device=device, check=check
        )
        scores.append(probes.scores([x[test] for x in features]))
        fitted.append(probes)
    return HeldOut(
        np.concatenate(scores, axis=1),
        fitted[0],
        np.max([probes.iterations for probes in fitted], axis=0),
        np.max([probes.error for probes in fitted], axis=0),
    )


def warn_of_what_did_not_converge(held_out: HeldOut, name: str, condition: str, context: Context) -> None:
    """Name the layer whose probe is furthest from its optimum."""
    error = held_out.error
    if (error > SURE).any():
        context.warn(
            f"The probes of {name} ({condition}) did not converge in layer {int(error.argmax())} "
            f"(bound on the relative error {error.max():.1e})."
        )


def measured(
    scores: np.ndarray, labels: np.ndarray, counts: np.ndarray, tests: Sequence[np.ndarray]
) -> tuple[Measures, Measures]:
    """Accuracy, F1 and AUC of scores [L, rows], each [L], and in every resample, counts [draws, rows], each [draws,
    L]."""
    curve = linear_probe.metrics(scores, labels)
    resampled = linear_probe.resampled_metrics(scores, labels, counts)
    if len(tests) > 1:
        starts = np.concatenate([[0], np.cumsum([len(t) for t in tests])])
        curve["auc"], resampled["auc"] = linear_probe.auc_of_folds(scores, labels, counts, starts)
    return curve, resampled


def shuffled_accuracy(
    fit: Callable[[np.ndarray], HeldOut],
    labels: np.ndarray,
    tests: Sequence[np.ndarray],
    n_layers: int,
    *,
    shuffles: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Accuracies of probes fitted and tested on shuffled labels, [shuffles, L]; fewer where a shuffle leaves the rows
    to fit on with one class."""
    found, rows = [], np.concatenate(tests)
    for _ in range(shuffles):
        other = rng.permutation(labels)
        if all(len(set(np.delete(other, t))) == 2 for t in tests):
            found.append(linear_probe.metrics(fit(other).scores, other[rows])["accuracy"])
    return np.array(found).reshape(-1, n_layers)


def layer_table(
    where: dict, curve: Measures, resampled: Measures, control: np.ndarray, held_out: HeldOut, *, n_train: int
) -> pl.DataFrame:
    """One row per layer: the measures with their intervals, and what they are on shuffled labels, control [shuffles,
    L]."""
    n_layers, n_test = held_out.scores.shape
    low, high = ({k: np.nanquantile(v, q, axis=0) for k, v in resampled.items()} for q in (0.025, 0.975))
    control_mean = control.mean(0) if len(control) else np.full(n_layers, np.nan)
    control_range = np.quantile(control, [0.025, 0.975], axis=0) if len(control) else np.full((2, n_layers), np.nan)
    return pl.DataFrame(
        where
        | {
            "layer": np.arange(n_layers),
            "depth": np.arange(n_layers) / n_layers,
            "accuracy": curve["accuracy"],
            "ci_low": low["accuracy"],
            "ci_high": high["accuracy"],
            "f1": curve["f1"],
            "f1_low": low["f1"],
            "f1_high": high["f1"],
            "f1_class0": curve["f1_class0"],
            "auc": curve["auc"],
            "auc_low": low["auc"],
            "auc_high": high["auc"],
            "control_accuracy": control_mean,
            "control_low": control_range[0],
            "control_high": control_range[1],
            "selectivity": curve["accuracy"] - control_mean,
            "iterations": held_out.iterations,
            "error": held_out.error,
            "n_train": n_train,
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
