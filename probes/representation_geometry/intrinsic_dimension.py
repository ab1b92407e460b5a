"""Intrinsic dimension from the distances between neighbours: of how many coordinates a point is a function, near it.

Two neighbours (Facco et al. 2017, Scientific Reports 7:12140): the ratio μ of the distances to the second and to the
first neighbour has the distribution 1 − μ^−d. k of them (Levina and Bickel 2004), averaged over points as MacKay and
Ghahramani (2005) say, that is as inverses. Both depend on how many points there are, are too low where the dimension is
high, and of neural representations need not track the dimension that there is (Schulte and Rügamer, arXiv 2604.20276).
So beside each stand the same at half of the points and that of Gaussian points with exactly the same covariance. A
bootstrap would put points at distance zero: intervals are of random halves.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from probes.representation_geometry.spectra import from_features
from workbench.stats.intervals import percentiles
from workbench.stats.jackknife import half_sample_interval, half_samples

ROUNDING = 1e-6  # of the median norm: points nearer than what rounding leaves of equal ones are one point
DROPPED = 0.1  # share of the largest ratios that the fit of two neighbours leaves out, as its paper does
HALVES = 100  # random halves that an interval is of


@dataclass(frozen=True)
class Told:
    """An estimate with its interval, at half of the points (mean over halves), and of Gaussian points (mean, and the
    middle 95 % of the draws)."""

    value: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    half: float = float("nan")
    null: float = float("nan")
    null_low: float = float("nan")
    null_high: float = float("nan")


@dataclass(frozen=True)
class IntrinsicDimension:
    """Both estimates of `n` points; `duplicates` of others were left out. `reason`: why there is none."""

    two_nn: Told
    mle: Told
    n: int
    duplicates: int
    reason: str = ""


def square_distances(x: torch.Tensor) -> torch.Tensor:
    """Squared Euclidean distances [n, n] of points [n, d], in float64; infinite from a point to itself."""
    x = x.double()
    x = x - x.mean(0)  # a large common part would cost digits
    squares = x.square().sum(1)
    square = (squares[:, None] + squares).addmm_(x, x.T, alpha=-2).clamp_(min=0)
    return square.fill_diagonal_(torch.inf)


def distinct(square: torch.Tensor, apart: float, names: Sequence[Hashable]) -> np.ndarray:
    """bool [n]: the points, of squared distances [n, n], that are the first of their kind. Two are one point where they
    have one name (the same text) or are no further than `apart`."""
    near = (square <= apart**2).cpu().numpy()
    kept, seen = np.zeros(len(near), bool), set()
    for row, beside in enumerate(near):
        kept[row] = names[row] not in seen and not kept[:row][beside[:row]].any()
        seen.add(names[row])
    return kept


def nearest(square: torch.Tensor, k: int) -> np.ndarray:
    """Distances to the k nearest neighbours [n, k], nearest first, from squared distances [n, n]."""
    return square.topk(k, largest=False, sorted=True).values.sqrt().cpu().numpy()


def two_nn(distance: np.ndarray) -> float:
    """The dimension from distances to the two nearest neighbours [n, 2 or more]: slope through the origin of −ln(1 − F)
    on ln μ, F the share of points with a ratio of at most μ, the largest tenth of the ratios left out."""
    ratio = np.sort(np.log(distance[:, 1] / distance[:, 0]))
    kept = min(int(len(ratio) * (1 - DROPPED)), len(ratio) - 1)
    x, y = ratio[:kept], -np.log1p(-np.arange(1, kept + 1) / len(ratio))
    return float(x @ y / (x @ x))


def levina_bickel(distance: np.ndarray) -> float:
    """The dimension from distances to k neighbours [n, k], nearest first: one over the mean, over points and their
    first k − 1 neighbours, of ln(T_k / T_j)."""
    return float(1 / np.log(distance[:, -1:] / distance[:, :-1]).mean())


def intrinsic_dimension(
    x: torch.Tensor, names: Sequence[Hashable], *, k: int, draws: int, rng: np.random.Generator
) -> IntrinsicDimension:
    """Both estimates of points [n, d] with what stands beside them; `names` [n] of the texts, `k` neighbours (from 3)
    for the second, `draws` of Gaussian points. Told from 2 (k + 1) points that differ. Memory n² · 8 bytes."""
    square = square_distances(x)
    own = distinct(square, ROUNDING * float(torch.linalg.vector_norm(x.double(), dim=1).median()), names)
    n, duplicates = int(own.sum()), int((~own).sum())
    if n < 2 * (k + 1):
        reason = f"{k} neighbours in half of the points need {2 * (k + 1)} that differ, and there are {n}"
        return IntrinsicDimension(Told(), Told(), n, duplicates, reason)
    if duplicates:
        at = torch.from_numpy(np.flatnonzero(own)).to(x.device)
        x, square = x[at], square[at[:, None], at]
    values = _both(square, k)
    halves = np.array([_both(_among(square, some), k) for some in half_samples(n, HALVES, rng)]).T
    null = np.array([_both(square_distances(points), k) for points in _gaussian(x, draws, rng)])
    low, high = map(np.exp, half_sample_interval(np.log(values), np.log(halves), n))
    ends = percentiles(null)
    told = np.array([values, low, high, halves.mean(1), null.mean(0), *ends]).T.tolist()
    return IntrinsicDimension(Told(*told[0]), Told(*told[1]), n, duplicates)


def _both(square: torch.Tensor, k: int) -> tuple[float, float]:
    distance = nearest(square, k)
    return two_nn(distance), levina_bickel(distance)


def _among(square: torch.Tensor, some: np.ndarray) -> torch.Tensor:
    at = torch.from_numpy(some).to(square.device)
    return square[at[:, None], at]


def _gaussian(x: torch.Tensor, draws: int, rng: np.random.Generator) -> Iterator[torch.Tensor]:
    """Gaussian points given that their mean and covariance are those of x [n, d] to the last digit, in the coordinates
    of its eigenvectors (which distances do not know of), one set after another: of Gaussian points the left singular
    vectors are uniform, whatever the covariance. (Drawn from that of the sample they would spread less than it.)"""
    values = from_features(x).eigenvalues
    scale = torch.from_numpy(np.sqrt(len(x) * values[values > values.max() * 1e-14][: len(x) - 1])).to(x.device)
    for _ in range(draws):
        drawn = torch.from_numpy(rng.standard_normal((len(x), len(scale)))).to(x.device)
        yield torch.linalg.qr(drawn - drawn.mean(0))[0] * scale
