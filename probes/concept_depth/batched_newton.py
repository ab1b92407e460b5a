"""Newton's method for many penalised regressions at once: every layer, and for each layer every labelling of its rows.

The objective of one of them is ½‖w‖² + c · Σ loss over the rows that it is fitted on, intercept unpenalised: the
logistic loss of two classes, or the softmax loss of k. It is 1-strongly convex in w, so the gradient bounds the
distance to the optimum, ‖w - w*‖ ≤ ‖∇_w‖: what is reported is that certificate.

Problems of one layer share its rows; which rows a problem is fitted on is a mask. So a step of all of them is a few
large products. Directions come from conjugate gradients, preconditioned with the Hessian of the layer's problems on
average (of a single one, its own). Nothing in a step depends on what the host knows: a problem that is at its optimum
is kept there by a flag, and the length of a step is 1 where that descends enough, else log(1 + m) / m, m the most that
a logit moves. That always descends: on the way the curvature of these losses changes by e^m at most. Gradients are
float64 where the features are, conjugate gradients are float32 in the first steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from workbench.models import devices

LOOK = 10  # steps on an accelerator between two looks at whether all problems are done: each look waits for it
_INNER = 8  # conjugate gradients in a step after the first ones; on a CPU, where a look costs nothing, the most of them
_JITTER = {torch.float32: 1e-6, torch.float64: 1e-13}  # of the diagonal, so that rounding leaves it positive definite
_COARSE = 10  # steps whose conjugate gradients are float32; what is not done by then is ill-conditioned


@dataclass(frozen=True)
class Loss:
    """A loss of logits z [..., k] and truth y [..., k]. `value` [...]; `mean` p [..., k], the gradient is p - y;
    `curve(p, rows)`: the Hessian, times the weight of a row, as a function of v [..., k]; `reach(v)` [...]: the most
    that moving by v can change the curvature."""

    value: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    mean: Callable[[torch.Tensor], torch.Tensor]
    curve: Callable[[torch.Tensor, torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]
    reach: Callable[[torch.Tensor], torch.Tensor]


def _logistic_curve(p: torch.Tensor, rows: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    weights = rows * p * (1 - p)
    return lambda v: weights * v


def _softmax_curve(p: torch.Tensor, rows: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    weights = rows * p
    return lambda v: weights * (v - (p * v).sum(-1, keepdim=True))


LOGISTIC = Loss(
    value=lambda z, y: (torch.nn.functional.softplus(z) - y * z)[..., 0],
    mean=torch.sigmoid,
    curve=_logistic_curve,
    reach=lambda v: v[..., 0].abs(),
)
SOFTMAX = Loss(
    value=lambda z, y: z.logsumexp(-1) - (y * z).sum(-1),
    mean=lambda z: z.softmax(-1),
    curve=_softmax_curve,
    reach=lambda v: v.amax(-1) - v.amin(-1),
)


@dataclass(frozen=True, eq=False)
class Optima:
    """Of every layer and problem: weights [b, r, q, k], intercepts [b, q, k], steps [b, q], certified bound on
    ‖w - w*‖ / ‖w‖ [b, q]; on the device."""

    weights: torch.Tensor
    intercepts: torch.Tensor
    iterations: torch.Tensor
    error: torch.Tensor


def minimise(
    x: torch.Tensor, y: torch.Tensor, fitted: torch.Tensor, loss: Loss, *, c: float, tolerance: float, max_iter: int
) -> Optima:
    """The optima for centred rows x [b, n, r], truth y [n, q, k] and the rows `fitted` [n, q] (1 or 0) of each problem,
    all of one floating dtype and on one device. Stops where every error is at most the tolerance, which an accelerator
    is asked once in LOOK steps."""
    b, n, r = x.shape
    q, k = y.shape[1:]
    kept, rows = fitted[..., None], fitted.sum(0)
    scale = (1 + c / 4 * x.square().sum(1)).rsqrt()  # about a unit diagonal of the Hessian: tames massive dimensions
    # theta = (w / scale, intercept): its last row is the intercept's, unpenalised
    a = torch.cat([x * scale[:, None], x.new_ones(b, n, 1)], 2)
    penalty = torch.cat([scale.square(), x.new_zeros(b, 1)], 1)[..., None, None]
    scale = scale[..., None, None]
    arithmetic = a.float()
    theta = x.new_zeros(b, r + 1, q, k)
    share = (kept * y).sum(0) / rows[:, None]
    odds = torch.log(share / (1 - share)) if k == 1 else share.log()
    theta[:, -1] = odds if k == 1 else odds - odds.mean(-1, keepdim=True)
    z = _times(a, theta)
    iterations = torch.zeros(b, q, dtype=torch.long, device=x.device)
    active = torch.ones(b, q, dtype=torch.bool, device=x.device)
    error, factor = x.new_full((b, q), float("inf")), a
    looks_are_free = devices.is_cpu(x.device)

    def objective(z: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
        return c * (fitted * loss.value(z, y)).sum(1) + 0.5 * _dot(penalty * theta, theta)

    for step in range(max_iter):
        p = loss.mean(z)
        gradient = penalty * theta + c * _times(a.mT, kept * (p - y))
        in_w, w = _norm(gradient[:, :-1] / scale), _norm(scale * theta[:, :-1])
        # the intercept is not strongly convex; its gradient counts relative to the number of rows
        error = in_w / w.clamp(min=1e-12) + gradient[:, -1].abs().amax(-1) / (c * rows)
        active = active & (error > tolerance)
        if (looks_are_free or (step > 0 and step % LOOK == 0)) and not active.any():
            break
        if step == _COARSE:
            arithmetic = a
        if step in (3, _COARSE) or step % 8 == 0:  # weights change most at first
            factor = _factorise(arithmetic, kept * p * (1 - p), active, penalty, c)
        exact = None if not looks_are_free else torch.where(active, (0.1 * error).clamp(1e-7, 1e-2).square(), torch.inf)
        rounds = min(_INNER, 4 + step)
        direction = _direction(arithmetic, c * kept, p, penalty, gradient, factor, loss, exact, rounds)
        slope = _dot(gradient, direction)
        moved = _times(a, direction)
        before = objective(z, theta)
        enough = objective(z + moved, theta + direction) <= before + 1e-4 * slope + 1e-12 * before.abs()
        reach = (fitted * loss.reach(moved)).amax(1).clamp(min=1e-12)
        # problems that are done stay where they are
        size = _wide(torch.where(enough, 1.0, torch.log1p(reach) / reach) * (active & (slope < 0)))
        theta, z = theta + size * direction, z + size * moved
        iterations += active
    return Optima(scale * theta[:, :-1], theta[:, -1], iterations, error)


def _factorise(
    a: torch.Tensor, weight: torch.Tensor, active: torch.Tensor, penalty: torch.Tensor, c: float
) -> torch.Tensor:
    """Cholesky factors [b, r + 1, r + 1] of the Hessian of a layer's active problems on average, for the
    weights [b, n, q, k] of their rows; of its diagonal where rounding leaves it not positive definite."""
    share = active / active.sum(1, keepdim=True).clamp(min=1)
    mean = (weight.mean(-1) * share[:, None]).sum(2)
    half = a * (c * mean).sqrt().to(a.dtype)[..., None]
    hessian = torch.bmm(half.mT, half)
    diagonal = hessian.diagonal(dim1=1, dim2=2)
    diagonal.add_(penalty[..., 0, 0].to(a.dtype) + _JITTER[a.dtype] * diagonal + 1e-30)
    factor, failed = torch.linalg.cholesky_ex(hessian)
    return torch.where((failed > 0)[:, None, None], torch.diag_embed(diagonal.sqrt()), factor)


def _direction(
    a: torch.Tensor,
    kept: torch.Tensor,
    p: torch.Tensor,
    penalty: torch.Tensor,
    gradient: torch.Tensor,
    factor: torch.Tensor,
    loss: Loss,
    exact: torch.Tensor | None,
    rounds: int,
) -> torch.Tensor:
    """Newton direction [b, r + 1, q, k] by preconditioned conjugate gradients, in the dtype of a; `kept` [n, q, 1] is c
    where a row counts. `exact` [b, q]: share of the first residual at which a problem is solved, looked at in each of
    the `rounds`; None: all of them are made."""

    def precondition(r: torch.Tensor) -> torch.Tensor:
        return torch.cholesky_solve(r.flatten(2), factor).unflatten(2, r.shape[2:])

    curve, penalty = loss.curve(p.to(a.dtype), kept.to(a.dtype)), penalty.to(a.dtype)
    size = _wide(_norm(gradient).clamp(min=torch.finfo(gradient.dtype).tiny))
    r = (-gradient / size).to(a.dtype)
    found, none = torch.zeros_like(r), r.new_zeros(())
    start, last, direction = none, none, r
    for done in range(rounds):
        s = precondition(r)
        rho = _dot(r, s)
        if not done:
            start, direction = rho, s
        else:
            if exact is not None and not (rho > exact * start).any():
                break
            direction = torch.addcmul(s, _wide(rho / last.clamp(min=1e-38)), direction)
        curved = torch.addcmul(_times(a.mT, curve(_times(a, direction))), penalty, direction)
        curvature = _dot(direction, curved)
        step = _wide(torch.where(curvature > 0, rho / curvature, none))
        found, r, last = torch.addcmul(found, step, direction), torch.addcmul(r, step, curved, value=-1), rho
    return found.to(gradient.dtype) * size


def _times(matrix: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """[b, m, r] @ [b, r, q, k] → [b, m, q, k]."""
    return torch.bmm(matrix, vectors.flatten(2)).unflatten(2, vectors.shape[2:])


def _dot(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Of each problem: [b, r, q, k] → [b, q]."""
    return (x * y).sum((1, 3))


def _norm(x: torch.Tensor) -> torch.Tensor:
    return _dot(x, x).sqrt()


def _wide(of_problems: torch.Tensor) -> torch.Tensor:
    """[b, q] → [b, 1, q, 1]."""
    return of_problems[:, None, :, None]
