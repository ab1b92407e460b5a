"""L2-regularised multinomial logistic regression for all layers at once, converged to the unique optimum: the probe of
a set of more than two classes.

The objective is scikit-learn's `LogisticRegression(C=c)` for k classes: ½‖W‖² + c · Σ −log softmax(Wx + b)_y,
intercepts unpenalised. The rows of W sum to zero at the optimum, and so do the intercepts here (any constant may be
added to these). For two classes it is the regression of `linear_probe` with c doubled, since the penalty is shared by
two rows.

Newton's method with conjugate gradients, preconditioned with the blocks of the Hessian that belong to one class each.
With fewer rows than features the problem is solved in the span of the rows. The solver stops on the same certificate as
`linear_probe`: ‖∇_W‖ bounds ‖W − W*‖.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from probes.concept_depth.linear_probe import chunks_of_layers, finite_features, spread_of
from workbench.core.errors import InputError

_MOST_STEPS = 250  # of conjugate gradients for one Newton step


@dataclass(eq=False)
class MultinomialProbes:
    """One probe per layer, for features as they were given.

    coef [L, k, d] and intercept [L, k], float64 on the CPU; iterations, error, converged [L] as in `LinearProbes`."""

    coef: torch.Tensor
    intercept: torch.Tensor
    iterations: np.ndarray
    error: np.ndarray
    converged: np.ndarray

    def scores(self, features: Sequence[torch.Tensor] | torch.Tensor) -> np.ndarray:
        """Log-odds of every class against the others for features [L][n, d] → [L, n, k] float64: the highest is the
        guess."""
        out = []
        for x, w, b in zip(features, self.coef, self.intercept):
            out.append(log_odds(x.double() @ w.to(x.device).T + b.to(x.device)).cpu().numpy())
        return np.stack(out)


def log_odds(z: torch.Tensor) -> torch.Tensor:
    """log p/(1−p) of every class, from logits z [..., k]; finite where p rounds to 1."""
    k = z.shape[-1]
    others = torch.stack([torch.cat([z[..., :j], z[..., j + 1 :]], -1).logsumexp(-1) for j in range(k)], -1)
    return z - others


def fit(
    features: Sequence[torch.Tensor] | torch.Tensor,
    labels: np.ndarray,
    *,
    c: float = 1.0,
    standardize: bool = False,
    tolerance: float = 1e-6,
    max_iter: int = 100,
    device: torch.device | str | None = None,
    check: Callable[[], None] | None = None,
) -> MultinomialProbes:
    """Fit one probe per layer. features [L][n, d], labels [n] of 0 … k−1, each of which must be there; everything else
    as `linear_probe.fit`. Raises InputError for a class without rows, and for features that are not finite."""
    if c <= 0:
        raise InputError(f"The inverse penalty c must be above 0, not {c}.")
    k = check_classes(features, labels)
    one_hot = torch.nn.functional.one_hot(torch.as_tensor(np.asarray(labels)).long(), k).double()
    parts = []
    for x in chunks_of_layers(features, device, check):
        parts.append(_fit_chunk(x, one_hot.to(x.device), float(c), standardize, tolerance, max_iter))
    coef, intercept, iterations, error = (torch.cat([part[i].cpu() for part in parts]) for i in range(4))
    return MultinomialProbes(coef, intercept, iterations.numpy(), error.numpy(), (error <= tolerance).numpy())


def check_classes(features: Sequence[torch.Tensor] | torch.Tensor, labels: np.ndarray) -> int:
    """How many classes there are. Raises InputError for rows and labels that do not go together, a class without rows,
    and features that are not finite (naming the layer)."""
    found = np.unique(labels)
    if len(features) == 0 or features[0].shape[0] != len(labels):
        rows = 0 if len(features) == 0 else features[0].shape[0]
        raise InputError(f"The features have {rows} rows and there are {len(labels)} labels.")
    if len(found) < 2 or not np.array_equal(found, np.arange(len(found))):
        raise InputError(
            f"A probe of several classes needs rows of each, numbered from 0; of {len(labels)} training labels there "
            f"are {', '.join(map(str, found.tolist()))}."
        )
    finite_features(features)
    return len(found)


def _fit_chunk(x, y, c, standardize, tolerance, max_iter):
    """x [b, n, d] float64 (overwritten), y [n, k]; → coef [b, k, d], intercept [b, k], iterations [b], error [b]."""
    n, d = x.shape[1:]
    mean = x.mean(1)
    x -= mean[:, None]
    deviation = spread_of(x, mean) if standardize else torch.ones_like(mean)
    x /= deviation[:, None]
    if n < d:  # x = z @ basis with orthonormal rows
        values, vectors = torch.linalg.eigh(x @ x.mT)
        root = values.clamp(min=0).sqrt()
        kept = values > values[:, -1:].clamp(min=0) * 1e-13
        z = vectors * torch.where(kept, root, 0.0)[:, None]
        u, intercept, iterations, error = _newton(z, y, c, tolerance, max_iter)
        w = x.mT @ (vectors @ torch.where(kept, 1 / root.clamp(min=1e-300), 0.0)[..., None].mul(u))
    else:
        w, intercept, iterations, error = _newton(x, y, c, tolerance, max_iter)
    w = w / deviation[..., None]
    intercept = intercept - (w * mean[..., None]).sum(1)
    return w.mT, intercept - intercept.mean(-1, keepdim=True), iterations, error


def _newton(x, y, c, tolerance, max_iter):
    """Minimise the objective for centred x [b, n, r], y [n, k]; → weights [b, r, k], intercepts [b, k], iterations [b],
    certified relative error [b]."""
    b, n, r = x.shape
    a = torch.cat([x, torch.ones(b, n, 1, dtype=x.dtype, device=x.device)], 2)
    penalty = torch.ones(b, r + 1, 1, dtype=x.dtype, device=x.device)
    penalty[:, -1] = 0  # the last row of theta is the intercept's
    theta = torch.zeros(b, r + 1, y.shape[1], dtype=x.dtype, device=x.device)
    theta[:, -1] = y.mean(0).log()
    theta[:, -1] -= theta[:, -1].mean(-1, keepdim=True)

    def objective(z, theta):
        return c * (z.logsumexp(-1) - (y * z).sum(-1)).sum(1) + 0.5 * (penalty * theta.square()).sum((1, 2))

    z = a @ theta
    value = objective(z, theta)
    iterations = torch.zeros(b, dtype=torch.long, device=x.device)
    active = torch.ones(b, dtype=torch.bool, device=x.device)
    error = torch.full((b,), float("inf"), dtype=x.dtype, device=x.device)
    for _ in range(max_iter):
        p = z.softmax(-1)
        gradient = penalty * theta + c * (a.mT @ (p - y))
        size = theta[:, :-1].flatten(1).norm(dim=1).clamp(min=1e-12)
        error = gradient[:, :-1].flatten(1).norm(dim=1) / size + gradient[:, -1].abs().amax(1) / (c * n)
        active &= error > tolerance
        if not active.any():
            break
        step = _direction(a, p, penalty, c, gradient, active, error)
        slope = (gradient * step).sum((1, 2))
        moved = a @ step
        length = active.to(x.dtype)  # finished layers stay where they are
        for _ in range(40):
            at = length[:, None, None]
            new_theta, new_z = theta + at * step, z + at * moved
            new_value = objective(new_z, new_theta)
            bad = active & ~(new_value <= value + 1e-4 * length * slope + 1e-12 * value.abs())
            if not bad.any():
                break
            length = torch.where(bad, length / 2, length)
        theta, z, value = new_theta, new_z, new_value
        iterations += active.long()
    return theta[:, :-1], theta[:, -1], iterations, error


def _direction(a, p, penalty, c, gradient, active, error):
    """Newton direction [b, r + 1, k] by preconditioned conjugate gradients, as exact as the error asks for."""
    factor = _factorise(a, p * (1 - p), penalty, c)

    def precondition(r):
        return torch.cholesky_solve(r.mT[..., None], factor).squeeze(-1).mT

    wanted = error.clamp(min=1e-8, max=0.1).square()
    x, r = torch.zeros_like(gradient), -gradient
    s = precondition(r)
    direction, rho = s, (r * s).sum((1, 2))
    start = rho.clone()
    for _ in range(_MOST_STEPS):
        v = a @ direction
        q = penalty * direction + c * (a.mT @ (p * (v - (p * v).sum(-1, keepdim=True))))
        curvature = (direction * q).sum((1, 2))
        step = torch.where(curvature > 0, rho / curvature.clamp(min=1e-300), torch.zeros_like(rho))[:, None, None]
        x, r = x + step * direction, r - step * q
        s = precondition(r)
        new = (r * s).sum((1, 2))
        if not (active & (new > wanted * start)).any():
            break
        direction = s + (new / rho.clamp(min=1e-300))[:, None, None] * direction
        rho = new
    return x


def _factorise(a, weight, penalty, c):
    """Cholesky factors [b, k, r + 1, r + 1] of the Hessian's blocks of one class each, for weights [b, n, k]."""
    blocks = []
    for own in weight.unbind(-1):
        half = a * (c * own).sqrt()[..., None]
        hessian = half.mT @ half
        diagonal = hessian.diagonal(dim1=1, dim2=2)
        diagonal.add_(penalty.squeeze(-1) + 1e-13 * diagonal.amax(1, keepdim=True) + 1e-300)
        blocks.append(hessian)
    # the intercept has no penalty; where every row is surely of a class or surely not, its weight is all but gone
    stacked = torch.stack(blocks, 1)
    stacked.diagonal(dim1=2, dim2=3)[..., -1].clamp_(min=1e-30)
    factor, failed = torch.linalg.cholesky_ex(stacked)
    if failed.any():
        jitter = 1e-8 * stacked.diagonal(dim1=2, dim2=3).amax(-1)
        stacked = stacked + jitter[..., None, None] * torch.eye(stacked.shape[-1], dtype=a.dtype, device=a.device)
        factor = torch.linalg.cholesky(stacked)
    return factor
