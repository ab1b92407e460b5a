"""L2-regularised logistic regression for all layers at once, converged to the unique optimum.

The objective is scikit-learn's `LogisticRegression(C=c)`: ½‖w‖² + c · Σ log(1 + exp(-±(w·x + b))), intercept
unpenalised, which is Eq. 1-2 of Jin et al. (arXiv 2404.07066) up to a factor. It is 1-strongly convex in w, so the
gradient bounds the distance to the optimum, ‖w - w*‖ ≤ ‖∇_w‖: the solver stops on that certificate and reports it,
instead of on an iteration limit.

Newton's method: features are centred and scaled to a Hessian of unit diagonal (exact changes of variables, they tame
massive dimensions); gradients are float64; the Hessian is factorised in float32 where that is stable and reused as the
preconditioner of a few conjugate-gradient steps until it is stale. With fewer rows than features the problem is solved
in the span of the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import rankdata

from workbench.core.errors import InputError

_CHUNK_BYTES = {"cpu": 24 * 2**20, "cuda": 8 * 2**30}  # features solved together: CPU caches small, a GPU wants many


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
    """Fit one probe per layer. features [L][n, d] (tensor or list of tensors, any float dtype, CPU or CUDA), labels [n]
    of 0 and 1.

    `c`: inverse strength of the penalty, as in scikit-learn. `standardize`: divide by the standard deviation of these
    rows first (after centring, which changes nothing). `device`: where to solve (default: where the features are).
    `check` is called between chunks of layers and may raise. Raises InputError for one class only, or NaN or infinite
    features (naming the layer)."""
    if c <= 0:
        raise InputError(f"The inverse penalty c must be above 0, not {c}.")
    check_fit(features, labels)
    labels = torch.tensor(np.asarray(labels), dtype=torch.float64)
    chunks = [
        _fit_chunk(x, labels.to(x.device), float(c), standardize, tolerance, max_iter)
        for x in chunks_of_layers(features, device, check)
    ]
    coef, intercept, iterations, error = (torch.cat([chunk[k].cpu() for chunk in chunks]) for k in range(4))
    return LinearProbes(coef, intercept, iterations.numpy(), error.numpy(), (error <= tolerance).numpy())


def chunks_of_layers(
    features: Sequence[torch.Tensor] | torch.Tensor,
    device: torch.device | str | None,
    check: Callable[[], None] | None,
) -> Iterator[torch.Tensor]:
    """Features [L][n, d] as many layers at a time as are solved together, each [b, n, d] float64 on the device
    (default: where they are). `check` is called before each and may raise."""
    n, d = features[0].shape
    device = torch.device(device) if device is not None else features[0].device
    per_chunk = max(1, _CHUNK_BYTES["cuda" if device.type == "cuda" else "cpu"] // (8 * n * d))
    for start in range(0, len(features), per_chunk):
        if check is not None:
            check()
        yield torch.stack([f.to(device).double() for f in features[start : start + per_chunk]])


def check_fit(features: Sequence[torch.Tensor] | torch.Tensor, labels: np.ndarray | torch.Tensor) -> None:
    """Raise InputError for rows and labels that do not go together, labels that are not of two classes, and features
    that are not finite (naming the layer)."""
    labels = torch.tensor(np.asarray(labels), dtype=torch.float64)
    if len(features) == 0 or features[0].shape[0] != len(labels):
        raise InputError(
            f"The features have {0 if len(features) == 0 else features[0].shape[0]} rows and there are "
            f"{len(labels)} labels."
        )
    found = set(labels.unique().tolist())
    if not found <= {0.0, 1.0}:
        raise InputError("A probe separates two classes; labels must be 0 and 1.")
    if len(found) < 2:
        raise InputError(f"All {len(labels)} training labels are of one class; a probe needs both.")
    finite_features(features)


def finite_features(features: Sequence[torch.Tensor] | torch.Tensor) -> None:
    """Raise InputError, naming the layer, for features that are not finite."""
    for layer, x in enumerate(features):
        if not torch.isfinite(x).all():
            raise InputError(
                f"The features of layer {layer} hold NaN or infinite values; load the model in float32 or bfloat16."
            )


def _fit_chunk(x, y, c, standardize, tolerance, max_iter):
    """x [b, n, d] float64 (overwritten), y [n]; → coef [b, d], intercept [b], iterations [b], error [b]."""
    b, n, d = x.shape
    mean = x.mean(1)
    x -= mean[:, None]
    deviation = torch.ones(b, d, dtype=x.dtype, device=x.device)
    if standardize:
        deviation = spread_of(x, mean)
        x /= deviation[:, None]
    if n < d:  # in the span of the rows: x = z @ basis with orthonormal rows, ‖w‖ = ‖u‖ for w = basisᵀ u
        values, vectors = torch.linalg.eigh(x @ x.mT)
        values = values.clamp(min=0)
        kept = values > values[:, -1:] * 1e-13
        root = values.sqrt()
        z = vectors * torch.where(kept, root, 0.0)[:, None]
        u, intercept, iterations, error = _newton(z, y, c, tolerance, max_iter)
        w = (x.mT @ (vectors @ torch.where(kept, u / root.clamp(min=1e-300), 0.0)[..., None])).squeeze(-1)
    else:
        w, intercept, iterations, error = _newton(x, y, c, tolerance, max_iter)
    w = w / deviation
    return w, intercept - (w * mean).sum(1), iterations, error


def spread_of(x: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Standard deviation [b, d] of centred features [b, n, d]; 1 for a constant one, of which rounding is left."""
    spread = x.square().mean(1).sqrt()
    return torch.where(spread > 1e-12 * mean.abs().clamp(min=1e-30), spread, torch.ones_like(spread))


def _newton(x, y, c, tolerance, max_iter):
    """Minimise the objective for centred x [b, n, d]; → w [b, d], b [b], iterations [b], certified relative error
    [b]."""
    b, n, d = x.shape
    scale = (1 + c / 4 * x.square().sum(1)).rsqrt()  # unit diagonal of the Hessian at w = 0
    # theta = (w / scale, intercept): the last column is the intercept's, unpenalised
    a = torch.cat([x * scale[:, None], torch.ones(b, n, 1, dtype=x.dtype, device=x.device)], 2)
    penalty = torch.cat([scale.square(), torch.zeros(b, 1, dtype=x.dtype, device=x.device)], 1)
    a32 = a.float()
    theta = torch.zeros(b, d + 1, dtype=x.dtype, device=x.device)
    share = y.mean()
    theta[:, -1] = torch.log(share / (1 - share))
    z = times(a, theta)

    def objective(z, theta):
        # log(1 + e^z) - y z
        return c * (torch.nn.functional.softplus(z) - y * z).sum(1) + 0.5 * (penalty * theta.square()).sum(1)

    value = objective(z, theta)
    iterations = torch.zeros(b, dtype=torch.long, device=x.device)
    error = torch.full((b,), float("inf"), dtype=x.dtype, device=x.device)
    active = torch.ones(b, dtype=torch.bool, device=x.device)
    factor, stale = None, True
    for _ in range(max_iter):
        p = torch.sigmoid(z)
        gradient = penalty * theta + c * times(a.mT, p - y)
        w_size = (scale * theta[:, :-1]).norm(dim=1)
        in_w = (gradient[:, :-1] / scale).norm(dim=1)
        # the intercept is not strongly convex; its gradient counts relative to the number of rows
        error = in_w / w_size.clamp(min=1e-12) + gradient[:, -1].abs() / (c * n)
        active &= error > tolerance
        if not active.any():
            break
        weight = p * (1 - p)
        fresh = stale or factor is None
        if fresh:
            factor = _factorise(a, a32, weight, penalty, c)
        step, used = _direction(a32, weight, penalty, c, gradient, factor, fresh)
        stale = used >= 12
        slope = (gradient * step).sum(1)
        if not (slope[active] < 0).all():  # rounding, or a factor too stale to descend: the exact one does
            factor = _factorise(a, None, weight, penalty, c)
            step, _ = _direction(a32, weight, penalty, c, gradient, factor, True)
            slope = (gradient * step).sum(1)
        moved = times(a, step)
        size = active.to(x.dtype)  # finished layers stay where they are
        for _ in range(40):
            new_theta, new_z = theta + size[:, None] * step, z + size[:, None] * moved
            new_value = objective(new_z, new_theta)
            bad = active & ~(new_value <= value + 1e-4 * size * slope + 1e-12 * value.abs())
            if not bad.any():
                break
            size = torch.where(bad, size / 2, size)
        theta, z, value = new_theta, new_z, new_value
        iterations += active.long()
    return scale * theta[:, :-1], theta[:, -1], iterations, error


def times(matrix: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """[b, m, k] @ [b, k] → [b, m]."""
    return torch.bmm(matrix, vector[..., None]).squeeze(-1)


def _factorise(a, a32, weight, penalty, c):
    """Cholesky factor [b, d+1, d+1] of the Hessian, in float32 (half the time; it is only a preconditioner) or, where
    that is not positive definite or not asked for, in float64."""
    if a32 is not None:
        half = a32 * (c * weight).sqrt().float()[..., None]
        hessian = torch.bmm(half.mT, half)
        hessian.diagonal(dim1=1, dim2=2).add_(penalty.float() + 1e-6 * hessian.diagonal(dim1=1, dim2=2))
        factor, failed = torch.linalg.cholesky_ex(hessian)
        if not failed.any() and torch.isfinite(factor).all():
            return factor
    half = a * (c * weight).sqrt()[..., None]
    hessian = torch.bmm(half.mT, half)
    diagonal = hessian.diagonal(dim1=1, dim2=2)
    diagonal.add_(penalty + 1e-13 * diagonal.amax(1, keepdim=True) + 1e-300)
    return torch.linalg.cholesky(hessian)


def _direction(a32, weight, penalty, c, gradient, factor, fresh):
    """Newton direction [b, d+1] by preconditioned conjugate gradients; → direction, number of steps used."""

    def precondition(r):
        return torch.cholesky_solve(r.to(factor.dtype)[..., None], factor).squeeze(-1).to(r.dtype)

    w32, p32 = (c * weight).float(), penalty.float()
    size = gradient.norm(dim=1, keepdim=True).clamp(min=1e-300)
    r = (-gradient / size).float()
    x = torch.zeros_like(r)
    s = precondition(r)
    direction, rho = s, (r * s).sum(1)
    start = rho.clone()
    used, most = 0, 3 if fresh else 15
    while used < most:
        used += 1
        q = times(a32.mT, w32 * times(a32, direction)) + p32 * direction
        curvature = (direction * q).sum(1)
        step = torch.where(curvature > 0, rho / curvature, torch.zeros_like(rho))
        x = x + step[:, None] * direction
        r = r - step[:, None] * q
        s = precondition(r)
        new = (r * s).sum(1)
        if not (new > 1e-4 * start).any():
            break
        direction = s + (new / rho.clamp(min=1e-38))[:, None] * direction
        rho = new
    return x.double() * size, used


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
