"""Ridge regression for all layers at once: the probe of a set whose labels are numbers.

The objective is scikit-learn's `Ridge(alpha)`: Σ (y − w·x − b)² + alpha ‖w‖², intercept unpenalised. The penalty is
chosen on the rows that are fitted on, by folds within them, for every layer and every target by itself: R² of a fixed
one would say how strong it happens to be (far below 0 on numbers that nothing tells). `PENALTIES` are in units of the
features' mean squared distance from their mean; with the largest the probe says little else than the mean.

The fit is linear in the numbers, so that the rows of a fold are turned into their principal axes once, whatever is to
be read from them: the numbers of the set and every shuffle of them, with every penalty.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from probes.concept_depth.linear_probe import LinearProbes, finite_features, spread_of
from workbench.core.errors import InputError

PENALTIES = tuple(10.0**k for k in range(-6, 5))


@dataclass(frozen=True, eq=False)
class HeldOutNumbers:
    """Numbers read from rows that the probe has not seen, fold after fold: `read` [m, L, rows] for m targets, `guess`
    [m, rows], what the mean of the rows fitted on says; the probes of the first fold and target; the penalties of the
    first target, [folds, L], as scikit-learn's alpha."""

    read: np.ndarray
    guess: np.ndarray
    probes: LinearProbes
    alpha: np.ndarray


def read_held_out(
    features: Sequence[torch.Tensor],
    targets: np.ndarray,
    tests: Sequence[np.ndarray],
    inner: Callable[[np.ndarray], Sequence[np.ndarray]],
    *,
    standardize: bool = False,
    device: torch.device | str | None = None,
    check: Callable[[], None] | None = None,
) -> HeldOutNumbers:
    """Fit on the rows outside of each of `tests`, read those inside. features [L][n, d], targets [m, n]; float64.

    `inner(rows)`: parts (places in those rows) that take turns as test rows in choosing the penalty. `standardize`,
    `device` and `check` as in `linear_probe.fit`. Raises InputError for rows and targets that do not go together, and
    for features that are not finite (naming the layer)."""
    if not len(features) or features[0].shape[0] != targets.shape[1]:
        raise InputError(f"The features and the {targets.shape[1]} numbers to read are not of the same rows.")
    finite_features(features)
    read, guess, alphas, first = [], [], [], []
    for test in tests:
        train = np.delete(np.arange(targets.shape[1]), test)
        own, parts, found, chosen = torch.from_numpy(targets[:, train].astype(np.float64)), inner(train), [], []
        for x in features:
            if check is not None:
                check()
            x = x.to(device if device is not None else x.device).double()
            y = own.to(x.device)
            alpha = _best_penalty(x[train], y, parts, standardize)
            w, b = _Axes.of(x[train], y, standardize).solved(alpha)
            found.append((w @ x[test].T + b[:, None]).cpu().numpy())
            chosen.append(float(alpha[0]))
            if test is tests[0]:
                first.append((w[0].cpu(), b[0].cpu()))
        read.append(np.stack(found, 1))
        guess.append(np.repeat(targets[:, train].mean(1)[:, None], len(test), 1))
        alphas.append(chosen)
    zero = np.zeros(len(features))
    sure = np.ones(len(features), dtype=bool)
    weights, intercepts = (torch.stack([each[i] for each in first]) for i in (0, 1))
    probes = LinearProbes(weights, intercepts, zero.astype(int), zero, sure)
    return HeldOutNumbers(np.concatenate(read, 2), np.concatenate(guess, 1), probes, np.array(alphas))


def _best_penalty(x: torch.Tensor, y: torch.Tensor, parts: Sequence[np.ndarray], standardize: bool) -> torch.Tensor:
    """The penalty of each target [m] with the least squared error over `parts` of the rows x [n, d], y [m, n]."""
    scale = spread_of((x - x.mean(0))[None], x.mean(0)[None])[0] if standardize else 1.0
    unit = ((x - x.mean(0)) / scale).square().sum(1).mean().clamp(min=1e-300)
    grid = [float(unit) * penalty for penalty in PENALTIES]
    errors = torch.zeros(len(grid), len(y), dtype=y.dtype, device=y.device)
    for part in parts:
        rest = np.delete(np.arange(len(x)), part)
        axes = _Axes.of(x[rest], y[:, rest], standardize)
        for k, alpha in enumerate(grid):
            w, b = axes.solved(torch.full((len(y),), alpha, dtype=y.dtype, device=y.device))
            errors[k] += (y[:, part] - w @ x[part].T - b[:, None]).square().sum(1)
    return torch.tensor(grid, dtype=y.dtype, device=y.device)[errors.argmin(0)]


@dataclass(frozen=True, eq=False)
class _Axes:
    """Centred rows in their principal axes: weights are `basis` [d, r] · `right` [r, m] / (`values` [r] + alpha)."""

    basis: torch.Tensor
    values: torch.Tensor
    right: torch.Tensor
    scale: torch.Tensor
    mean: torch.Tensor
    centre: torch.Tensor

    @classmethod
    def of(cls, x: torch.Tensor, y: torch.Tensor, standardize: bool) -> _Axes:
        """Of rows x [n, d] and targets y [m, n], by whichever of the two products is smaller."""
        mean, centre = x.mean(0), y.mean(1)
        x = x - mean
        scale = spread_of(x[None], mean[None])[0] if standardize else torch.ones_like(mean)
        x, off = x / scale, (y - centre[:, None]).T
        wide = x.shape[0] < x.shape[1]
        values, vectors = torch.linalg.eigh(x @ x.T if wide else x.T @ x)
        basis = x.T @ vectors if wide else vectors
        right = vectors.T @ off if wide else vectors.T @ (x.T @ off)
        return cls(basis, values.clamp(min=0), right, scale, mean, centre)

    def solved(self, alpha: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights [m, d] and intercepts [m] for the penalties alpha [m]."""
        w = (self.basis @ (self.right / (self.values[:, None] + alpha))).T / self.scale
        return w, self.centre - w @ self.mean
