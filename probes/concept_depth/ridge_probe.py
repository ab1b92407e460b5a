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

from probes.concept_depth.linear_probe import LinearProbes, check_rows
from probes.concept_depth.many_fits import chunks_of_layers, finite_features, on_host, spread_of

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
    check_rows(features, targets)
    finite_features(features)
    rows = np.arange(targets.shape[1])
    trains = [np.delete(rows, test) for test in tests]
    parts = [inner(train) for train in trains]
    guess = [np.repeat(targets[:, train].mean(1)[:, None], len(test), 1) for train, test in zip(trains, tests)]
    chunks = []
    for x in chunks_of_layers(features, device, check, problems=len(targets)):
        y = torch.from_numpy(targets.astype(np.float64)).to(x.device, x.dtype)
        chunks.append([_one_fold(x, y, *fold, standardize) for fold in zip(trains, tests, parts)])
    folds = [[torch.cat(same) for same in zip(*of_chunks)] for of_chunks in zip(*chunks)]
    none, sure = np.zeros(len(features)), np.ones(len(features), dtype=bool)
    probes = LinearProbes(folds[0][2], folds[0][3], none.astype(int), none, sure)
    read = np.concatenate([fold[0].numpy() for fold in folds], 2).swapaxes(0, 1)
    return HeldOutNumbers(read, np.concatenate(guess, 1), probes, np.stack([fold[1].numpy() for fold in folds]))


def _one_fold(
    x: torch.Tensor,
    y: torch.Tensor,
    train: np.ndarray,
    test: np.ndarray,
    parts: Sequence[np.ndarray],
    standardize: bool,
) -> list[torch.Tensor]:
    """Of x [b, n, d] and y [m, n]: what is read in the rows `test`, [b, m, rows]; the penalty [b], coefficients [b, d]
    and intercept [b] of the first target. On the CPU."""
    inside, own = x[:, train], y[:, train]
    alpha = _best_penalty(inside, own, parts, standardize)
    axes = _Axes.of(inside, own, standardize)
    solution = axes.solved(alpha)
    read = axes.read(solution, x[:, test])
    w = torch.bmm(axes.basis, solution[..., :1]).squeeze(-1) / axes.scale
    return on_host(read, alpha[:, 0], w, axes.centre[0] - (w * axes.mean).sum(-1))


def _best_penalty(x: torch.Tensor, y: torch.Tensor, parts: Sequence[np.ndarray], standardize: bool) -> torch.Tensor:
    """The penalty of each layer and target [b, m] with the least squared error over `parts` of the rows x [b, n, d], y
    [m, n]."""
    mean = x.mean(1)
    centred = x - mean[:, None]
    if standardize:
        centred = centred / spread_of(centred, mean, x.shape[1])[:, None]
    unit = centred.square().sum(2).mean(1).clamp(min=torch.finfo(x.dtype).tiny)
    grid = torch.tensor(PENALTIES, dtype=x.dtype).to(x.device) * unit[:, None]
    errors = x.new_zeros(len(PENALTIES), len(x), len(y))
    for part in parts:
        rest = np.delete(np.arange(x.shape[1]), part)
        axes = _Axes.of(x[:, rest], y[:, rest], standardize)
        places = axes.places(x[:, part])
        off = y[:, part] - axes.centre[:, None]
        for k in range(len(PENALTIES)):
            errors[k] += (off - torch.bmm(places, axes.solved(grid[:, k, None])).mT).square().sum(2)
    return grid.gather(1, errors.argmin(0))


@dataclass(frozen=True, eq=False)
class _Axes:
    """Centred rows in their principal axes: a solution is `right` [b, r, m] / (`values` [b, r] + alpha), weights are
    `basis` [b, d, r] times it over `scale` [b, d]; `mean` [b, d] of the rows, `centre` [m] of the targets."""

    basis: torch.Tensor
    values: torch.Tensor
    right: torch.Tensor
    scale: torch.Tensor
    mean: torch.Tensor
    centre: torch.Tensor

    @classmethod
    def of(cls, x: torch.Tensor, y: torch.Tensor, standardize: bool) -> _Axes:
        """Of rows x [b, n, d] and targets y [m, n], by whichever of the two products is smaller."""
        mean, centre = x.mean(1), y.mean(1)
        x = x - mean[:, None]
        scale = spread_of(x, mean, x.shape[1]) if standardize else torch.ones_like(mean)
        x, off = x / scale[:, None], (y - centre[:, None]).T.expand(len(x), -1, -1)
        wide = x.shape[1] < x.shape[2]
        values, vectors = torch.linalg.eigh(x @ x.mT if wide else x.mT @ x)
        basis = x.mT @ vectors if wide else vectors
        right = vectors.mT @ off if wide else vectors.mT @ (x.mT @ off)
        return cls(basis, values.clamp(min=0), right, scale, mean, centre)

    def solved(self, alpha: torch.Tensor) -> torch.Tensor:
        """The solution [b, r, m] for the penalties alpha [b, m] (or [b, 1])."""
        return self.right / (self.values[..., None] + alpha[:, None])

    def places(self, x: torch.Tensor) -> torch.Tensor:
        """Rows x [b, rows, d] along the axes, [b, rows, r]."""
        return torch.bmm((x - self.mean[:, None]) / self.scale[:, None], self.basis)

    def read(self, solution: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """What a solution reads in rows x [b, rows, d]: [b, m, rows]."""
        return torch.bmm(self.places(x), solution).mT + self.centre[:, None]
