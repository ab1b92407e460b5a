"""L2-regularised logistic regression for all layers at once, converged to the unique optimum.

The objective is scikit-learn's `LogisticRegression(C=c)`: ½‖w‖² + c · Σ log(1 + exp(-±(w·x + b))), intercept
unpenalised, which is Eq. 1-2 of Jin et al. (arXiv 2404.07066) up to a factor. It is solved by `batched_newton`, which
stops on a certificate, ‖w - w*‖ ≤ ‖∇_w‖, and reports it, instead of on an iteration limit.

Features are centred (an exact change of variables). With fewer rows than features the problem is solved in the span of
the rows, whose coordinates are the Cholesky factor of their products with each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from scipy.stats import rankdata

from probes.concept_depth.batched_newton import LOGISTIC, Loss, minimise
from probes.concept_depth.many_fits import ManyFits, finite_features, fit_each
from workbench.core.errors import InputError

LEAST_SINGLE = 1e-4  # tolerance on a device without float64: a gradient in float32 is no surer


@dataclass(eq=False)
class LinearProbes:
    """One probe per layer, for features as they were given (any standardisation is folded in).

    coef [L, d] and intercept [L], float64 on the CPU; iterations [L]: Newton steps; error [L]: certified bound on
    ‖w - w*‖ / ‖w‖ in the space of the penalty; converged [L]: the bound is at most the tolerance asked for."""

    coef: torch.Tensor
    intercept: torch.Tensor
    iterations: np.ndarray
    error: np.ndarray
    converged: np.ndarray

    def scores(self, features: Sequence[torch.Tensor] | torch.Tensor) -> np.ndarray:
        """w·x + b of features [L][n, d] → [L, n] float64; above 0 is class 1."""
        out = []
        for layer, x in enumerate(features):
            w = self.coef[layer].to(x.device)
            out.append((x.double() @ w + self.intercept[layer].to(x.device)).cpu().numpy())
        return np.stack(out)


def fit(
    features: Sequence[torch.Tensor] | torch.Tensor,
    labels: np.ndarray | torch.Tensor,
    *,
    c: float = 1.0,
    standardize: bool = False,
    tolerance: float = 1e-6,
    max_iter: int = 100,
    device: torch.device | str | None = None,
    check: Callable[[], None] | None = None,
) -> LinearProbes:
    """Fit one probe per layer. features [L][n, d] (tensor or list of tensors, any float dtype, on any device), labels
    [n] of 0 and 1.

    `c`: inverse strength of the penalty, as in scikit-learn. `standardize`: divide by the standard deviation of these
    rows first (after centring, which changes nothing). `device`: where to solve (default: where the features are), in
    float64, or in float32 to a tolerance of 1e-4 where the device has no float64. `check` is called between chunks of
    layers and may raise. Raises InputError for one class only, or NaN or infinite features (naming the layer)."""
    labels = np.asarray(labels)
    options = {"standardize": standardize, "device": device, "check": check}
    found = fit_many(
        features,
        labels[None],
        np.ones((1, len(labels)), dtype=bool),
        c=c,
        tolerance=tolerance,
        max_iter=max_iter,
        **options,
    )
    return probes_of(found, tolerance=tolerance)


def fit_many(
    features: Sequence[torch.Tensor] | torch.Tensor,
    labels: np.ndarray,
    fitted: np.ndarray,
    *,
    c: float = 1.0,
    standardize: bool = False,
    tolerance: float = 1e-6,
    max_iter: int = 100,
    device: torch.device | str | None = None,
    check: Callable[[], None] | None = None,
    keep: int | None = None,
) -> ManyFits:
    """Fit probes of every layer for each of several labellings, labels [q, n], and the rows that each is fitted on,
    `fitted` [q, n] of bool; all at once, as `fit` does one. Coefficients of the first `keep` (default: all)."""
    if c <= 0:
        raise InputError(f"The inverse penalty c must be above 0, not {c}.")
    check_fit(features, labels, fitted)
    solve = partial(solve_in_span, loss=LOGISTIC, c=float(c), tolerance=tolerance, max_iter=max_iter)
    y, rows = labels.T[..., None].astype(np.float64), fitted.T.astype(np.float64)
    return fit_each(features, y, rows, solve, standardize=standardize, device=device, check=check, keep=keep)


def probes_of(found: ManyFits, number: int = 0, *, tolerance: float = 1e-6) -> LinearProbes:
    """The probes of one of several problems."""
    error = found.error[number]
    return LinearProbes(
        found.coef[number, :, 0], found.intercept[number, :, 0], found.iterations[number], error, error <= tolerance
    )


def solve_in_span(
    x: torch.Tensor, y: torch.Tensor, fitted: torch.Tensor, *, loss: Loss, c: float, tolerance: float, max_iter: int
) -> tuple[torch.Tensor, ...]:
    """`batched_newton.minimise`, with fewer rows than features in the span of the rows."""
    double = x.dtype == torch.float64
    if not double:
        tolerance = max(tolerance, LEAST_SINGLE)
    options = {"c": c, "tolerance": tolerance, "max_iter": max_iter}
    # in float32 the products of rows with each other would lose what is small in them
    if x.shape[1] >= x.shape[2] or not double:
        found = minimise(x, y, fitted, loss, **options)
        return found.weights, found.intercepts, found.iterations, found.error
    # x = z @ basis with orthonormal rows of basis: ‖w‖ = ‖u‖ for w = basisᵀ u
    products = x @ x.mT
    rounding = 10 * torch.finfo(x.dtype).eps * products.diagonal(dim1=1, dim2=2).sum(1, keepdim=True)
    products.diagonal(dim1=1, dim2=2).add_(rounding + 1e-300)
    z = torch.linalg.cholesky_ex(products).L
    found = minimise(z, y, fitted, loss, **options)
    u = found.weights.flatten(2)
    w = x.mT @ torch.linalg.solve_triangular(z.mT, u, upper=True)
    return w.unflatten(2, found.weights.shape[2:]), found.intercepts, found.iterations, found.error


def check_fit(features: Sequence[torch.Tensor] | torch.Tensor, labels: np.ndarray, fitted: np.ndarray) -> None:
    """Raise InputError for rows and labels [q, n] that do not go together, labels of the rows fitted on that are not of
    two classes, and features that are not finite (naming the layer)."""
    check_rows(features, labels)
    if not np.isin(labels, (0, 1)).all():
        raise InputError("A probe separates two classes; labels must be 0 and 1.")
    ones, rows = (labels * fitted).sum(1), fitted.sum(1)
    lacking = (ones == 0) | (ones == rows)
    if lacking.any():
        raise InputError(f"All {rows[lacking][0]} training labels are of one class; a probe needs both.")
    finite_features(features)


def check_rows(features: Sequence[torch.Tensor] | torch.Tensor, labels: np.ndarray) -> None:
    """Raise InputError for features [L][n, d] that have not as many rows as there are labels [q, n]."""
    rows = 0 if len(features) == 0 else features[0].shape[0]
    if rows != labels.shape[1] or rows == 0:
        raise InputError(f"The features have {rows} rows and there are {labels.shape[1]} labels.")


def metrics(scores: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Accuracy, balanced accuracy (the mean of the two classes' recalls: ½ for a guess of one class, however many it
    has), F1 of class 1 and of class 0, ROC-AUC of scores [L, n] against labels [n]; each [L]. Balanced accuracy and AUC
    are NaN for one class."""
    labels = np.asarray(labels).astype(bool)
    guess = scores > 0
    hit = (guess & labels).sum(1)
    miss = (~guess & ~labels).sum(1)
    n, ones = len(labels), int(labels.sum())
    with np.errstate(invalid="ignore", divide="ignore"):
        f1 = np.nan_to_num(2 * hit / (guess.sum(1) + ones))
        f1_class0 = np.nan_to_num(2 * miss / ((~guess).sum(1) + n - ones))
        ranks = rankdata(scores, axis=1)
        auc = (ranks[:, labels].sum(1) - ones * (ones + 1) / 2) / (ones * (n - ones))
        balanced = (hit / ones + miss / (n - ones)) / 2 if 0 < ones < n else np.full(len(scores), np.nan)
    accuracy = (guess == labels).mean(1)
    return {"accuracy": accuracy, "balanced_accuracy": balanced, "f1": f1, "f1_class0": f1_class0, "auc": auc}


def resampled_metrics(scores: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
    """Accuracy, balanced accuracy, F1 and AUC of scores [L, n] in each resample, counts [draws, n]; each [draws, L].
    NaN where a resample lacks a class."""
    labels = np.asarray(labels).astype(bool)
    guess = scores > 0
    total, ones = counts.sum(1, keepdims=True), counts @ labels[:, None]
    hit, guessed = counts @ (guess & labels).T, counts @ guess.T
    with np.errstate(invalid="ignore", divide="ignore"):
        accuracy = counts @ (guess == labels).T / total
        f1 = np.nan_to_num(2 * hit / (guessed + ones))
        miss = (total - ones) - (guessed - hit)
        balanced = (hit / ones + miss / (total - ones)) / 2
        auc = np.empty_like(accuracy)
        for layer, row in enumerate(scores):
            order = np.argsort(row, kind="stable")
            starts = np.flatnonzero(np.diff(row[order], prepend=-np.inf))  # equal scores count half
            negative = np.add.reduceat(counts[:, order] * ~labels[order], starts, axis=1)
            positive = np.add.reduceat(counts[:, order] * labels[order], starts, axis=1)
            below = np.cumsum(negative, axis=1) - negative / 2
            auc[:, layer] = (positive * below).sum(1) / (ones * (total - ones))[:, 0]
    return {"accuracy": accuracy, "balanced_accuracy": balanced, "f1": f1, "auc": auc}


def auc_of_folds(
    scores: np.ndarray, labels: np.ndarray, counts: np.ndarray, starts: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Mean of the folds' AUC [L] and the same in each resample [draws, L], for scores [L, n] whose fold k is the
    columns starts[k]:starts[k+1].

    Scores of different probes are not on one scale, so neither number can come from the pooled scores. A resample in
    which a fold lacks a class is the mean of the others."""
    folds = [slice(a, b) for a, b in zip(starts, starts[1:])]
    mean = np.mean([metrics(scores[:, fold], labels[fold])["auc"] for fold in folds], axis=0)
    drawn = np.stack([resampled_metrics(scores[:, fold], labels[fold], counts[:, fold])["auc"] for fold in folds])
    there = np.isfinite(drawn)
    with np.errstate(invalid="ignore"):
        return mean, np.where(there, drawn, 0).sum(0) / there.sum(0)
