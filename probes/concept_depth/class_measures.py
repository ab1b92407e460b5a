"""Accuracy, balanced accuracy, F1 and AUC of held-out scores, of two classes or of more.

Scores of two classes are [L, n], above 0 is class 1 (`linear_probe`); of k classes [L, n, k], log-odds of each against
the others, the highest is the guess. With more than two, balanced accuracy is the mean of the classes' recalls (1/k for
a guess of one class, however many rows it has), F1 the mean of the classes' F1 (macro), and AUC the mean over classes
of that class against the others (one against the rest, macro).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from probes.concept_depth import linear_probe

Measured = dict[str, np.ndarray]


def right(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Which rows each layer has right, [L, n]."""
    guess = scores.argmax(-1) if scores.ndim == 3 else (scores > 0).astype(int)
    return guess == np.asarray(labels)


def recalls(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Share of the rows of each class that are right, [L, k], for scores [L, n, k]; NaN for a class without rows."""
    hits = right(scores, labels)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.stack([hits[:, labels == j].sum(1) / (labels == j).sum() for j in range(scores.shape[-1])], 1)


def metrics(scores: np.ndarray, labels: np.ndarray) -> Measured:
    """`linear_probe.metrics` of two classes; of more, the same names as above, each [L] (`f1_class0` is of class 0)."""
    if scores.ndim == 2:
        return linear_probe.metrics(scores, labels)
    labels, guess = np.asarray(labels), scores.argmax(-1)
    classes = range(scores.shape[-1])
    f1 = np.stack([_f1(guess == j, labels == j) for j in classes])
    return {
        "accuracy": (guess == labels).mean(1),
        "balanced_accuracy": recalls(scores, labels).mean(1),
        "f1": f1.mean(0),
        "f1_class0": f1[0],
        "auc": auc_of_classes(scores, labels).mean(1),
    }


def auc_of_classes(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """AUC of each class against the others, [L, k], for scores [L, n, k]; NaN for a class without rows."""
    classes = range(scores.shape[-1])
    return np.stack([linear_probe.metrics(scores[..., j], labels == j)["auc"] for j in classes], 1)


def _f1(guess: np.ndarray, true: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nan_to_num(2 * (guess & true).sum(1) / (guess.sum(1) + true.sum()))


def resampled_metrics(scores: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> Measured:
    """The same in each resample, counts [draws, n]; each [draws, L]. Balanced accuracy and AUC are NaN where a resample
    lacks a class."""
    if scores.ndim == 2:
        return linear_probe.resampled_metrics(scores, labels, counts)
    labels, guess = np.asarray(labels), scores.argmax(-1)
    balanced, f1, auc = [], [], []
    with np.errstate(invalid="ignore", divide="ignore"):
        for j in range(scores.shape[-1]):
            size = counts @ (labels == j)[:, None]
            hit = counts @ ((guess == j) & (labels == j)).T
            balanced.append(hit / size)
            f1.append(np.nan_to_num(2 * hit / (counts @ (guess == j).T + size)))
            auc.append(linear_probe.resampled_metrics(scores[..., j], labels == j, counts)["auc"])
    return {
        "accuracy": counts @ (guess == labels).T / counts.sum(1, keepdims=True),
        "balanced_accuracy": np.mean(balanced, axis=0),
        "f1": np.mean(f1, axis=0),
        "auc": np.mean(auc, axis=0),
    }


def auc_of_folds(
    scores: np.ndarray, labels: np.ndarray, counts: np.ndarray, starts: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Mean of the folds' AUC [L] and the same in each resample [draws, L], as `linear_probe.auc_of_folds`."""
    if scores.ndim == 2:
        return linear_probe.auc_of_folds(scores, labels, counts, starts)
    classes = range(scores.shape[-1])
    of_each = [linear_probe.auc_of_folds(scores[..., j], labels == j, counts, starts) for j in classes]
    return np.mean([mean for mean, _ in of_each], axis=0), np.mean([drawn for _, drawn in of_each], axis=0)


def on_the_scale_of_two(accuracy: np.ndarray, classes: int) -> np.ndarray:
    """Accuracies of `classes` classes [...] as far between chance and 1 as an accuracy of two classes is between ½ and
    1: ½ + ½ (a − 1/k) / (1 − 1/k). Itself for two. The points of a curve and the least effect are defined there."""
    if classes == 2:
        return accuracy
    return 0.5 + 0.5 * (accuracy - 1 / classes) / (1 - 1 / classes)
