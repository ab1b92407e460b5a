"""L2-regularised multinomial logistic regression for all layers at once, converged to the unique optimum: the probe of
a set of more than two classes.

The objective is scikit-learn's `LogisticRegression(C=c)` for k classes: ½‖W‖² + c · Σ −log softmax(Wx + b)_y,
intercepts unpenalised. The rows of W sum to zero at the optimum, and so do the intercepts here (any constant may be
added to these). For two classes it is the regression of `linear_probe` with c doubled, since the penalty is shared by
two rows.

Solved as `linear_probe` is, to the same certificate: ‖∇_W‖ bounds ‖W − W*‖.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from probes.concept_depth.batched_newton import SOFTMAX
from probes.concept_depth.linear_probe import check_rows, solve_in_span
from probes.concept_depth.many_fits import ManyFits, finite_features, fit_each
from workbench.core.errors import InputError


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
    labels = np.asarray(labels)
    found = fit_many(
        features,
        labels[None],
        np.ones((1, len(labels)), dtype=bool),
        c=c,
        standardize=standardize,
        tolerance=tolerance,
        max_iter=max_iter,
        device=device,
        check=check,
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
    """As `linear_probe.fit_many`, for labels [q, n] of 0 … k−1; scores are log-odds, as in `MultinomialProbes`."""
    if c <= 0:
        raise InputError(f"The inverse penalty c must be above 0, not {c}.")
    k = check_classes(features, labels, fitted)
    solve = partial(solve_in_span, loss=SOFTMAX, c=float(c), tolerance=tolerance, max_iter=max_iter)
    y, rows = np.eye(k)[labels.T.astype(int)], fitted.T.astype(np.float64)
    found = fit_each(features, y, rows, solve, standardize=standardize, device=device, check=check, keep=keep)
    return as_log_odds(found)


def as_log_odds(found: ManyFits) -> ManyFits:
    """Logits as log-odds; the intercepts sum to zero."""
    return replace(
        found,
        intercept=found.intercept - found.intercept.mean(-1, keepdim=True),
        scores=log_odds(torch.from_numpy(found.scores)).numpy(),
    )


def probes_of(found: ManyFits, number: int = 0, *, tolerance: float = 1e-6) -> MultinomialProbes:
    """The probes of one of several problems."""
    error = found.error[number]
    return MultinomialProbes(
        found.coef[number], found.intercept[number], found.iterations[number], error, error <= tolerance
    )


def check_classes(features: Sequence[torch.Tensor] | torch.Tensor, labels: np.ndarray, fitted: np.ndarray) -> int:
    """How many classes labels [q, n] have. Raises InputError for rows and labels that do not go together, a class
    without rows to fit on, and features that are not finite (naming the layer)."""
    check_rows(features, labels)
    k = int(labels.max()) + 1
    for own, rows in zip(labels, fitted):
        found = np.unique(own[rows])
        if k < 2 or not np.array_equal(found, np.arange(k)):
            raise InputError(
                f"A probe of several classes needs rows of each, numbered from 0; of {rows.sum()} training labels "
                f"there are {', '.join(map(str, found.tolist()))}."
            )
    finite_features(features)
    return k
