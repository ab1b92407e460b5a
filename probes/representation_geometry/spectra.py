"""Spectra of representations: RankMe in both published forms, the power-law exponent alpha, and how to get eigenvalues
exactly.

Definitions follow Li et al. (arXiv 2509.23024; eigenvalues of the centred covariance) and Garrido et al. (arXiv
2210.02885; singular values of the uncentred embedding matrix). The two numbers share the name RankMe and differ by a
factor of several: they have two functions here. Covariances are float64 throughout: in float32, eigenvalues below 1e-7
of the largest are noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch

from workbench.core.errors import InputError
from workbench.stats.intervals import percentiles

EPSILON = 1e-7  # what both published implementations add to every share


def rankme(eigenvalues: np.ndarray, *, epsilon: float = 0.0) -> np.ndarray:
    """exp of the entropy of covariance eigenvalues [..., d]: the effective dimension of arXiv 2509.23024, between 1 and
    d.

    `epsilon` is added to every share after normalising, as the official code does with 1e-7. NaN for a spectrum of
    zeros."""
    return _exp_entropy(eigenvalues, epsilon)


def rankme_singular(singular_values: np.ndarray, *, epsilon: float = EPSILON) -> np.ndarray:
    """exp of the entropy of singular values [..., d] of the *uncentred* embedding matrix: RankMe as arXiv 2210.02885
    defines it."""
    return _exp_entropy(singular_values, epsilon)


def _exp_entropy(values: np.ndarray, epsilon: float) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64).clip(min=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        p = values / values.sum(-1, keepdims=True) + epsilon
        result = np.exp(-np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0), axis=-1))
        return np.where(values.sum(-1) > 0, result, np.nan)[()]


def participation_ratio(eigenvalues: np.ndarray) -> np.ndarray:
    """(Σσ)² / Σσ² of covariance eigenvalues [..., d]."""
    values = np.asarray(eigenvalues, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (values.sum(-1) ** 2 / (values**2).sum(-1))[()]


def stable_rank(eigenvalues: np.ndarray) -> np.ndarray:
    """Σσ / σ₁ of covariance eigenvalues [..., d], largest first (squared Frobenius over squared spectral norm of the
    features)."""
    values = np.asarray(eigenvalues, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (values.sum(-1) / values.max(-1))[()]


@dataclass(frozen=True)
class PowerLaw:
    """σ_i ∝ i^-alpha over ranks first…last (from 1, inclusive). r2 is that of the (weighted) fit; alpha is NaN, with
    the reason, where there is no fit."""

    alpha: float
    r2: float
    first: int
    last: int
    intercept: float  # ln σ at rank 1 on the fitted line
    reason: str = ""


def power_law(eigenvalues: np.ndarray, *, fit_range: tuple[int, int] = (12, 100), weighted: bool = True) -> PowerLaw:
    """alpha-ReQ: least squares of ln σ on ln rank over ranks fit_range[0]…fit_range[1], weights 1/rank (as coded) or
    none.

    `eigenvalues` [d], largest first. The default range is the official code's np.arange(11, 100): ranks 12…100. A
    spectrum with fewer usable (positive) eigenvalues than the range needs gives NaN and says why: a shorter range would
    be another number."""
    values = np.asarray(eigenvalues, dtype=np.float64)
    first, last = fit_range
    if not 1 <= first < last:
        raise InputError(f"The fit range {first},{last} is not one; give the first and the last rank, from 1.")
    usable = int((values > values.max(initial=0) * 1e-14).sum())
    if usable < last:
        reason = f"the fit needs {last} eigenvalues above rounding and there are {usable} (samples - 1, or width)"
        return PowerLaw(float("nan"), float("nan"), first, last, float("nan"), reason)
    alpha, intercept, r2 = _line(values[None], first, last, weighted)
    return PowerLaw(float(alpha[0]), float(r2[0]), first, last, float(intercept[0]))


def alphas(eigenvalues: np.ndarray, *, fit_range: tuple[int, int] = (12, 100), weighted: bool = True) -> np.ndarray:
    """alpha of many spectra [k, d] at once → [k]; NaN where an eigenvalue of the range is not positive."""
    return _line(np.asarray(eigenvalues, dtype=np.float64), *fit_range, weighted)[0]


def _line(values: np.ndarray, first: int, last: int, weighted: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rank = np.arange(first, last + 1, dtype=np.float64)
    x, w = np.log(rank), 1 / rank if weighted else np.ones_like(rank)
    w = w / w.sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        y = np.log(values[:, first - 1 : last])
        y_mean, x_mean = (w * y).sum(1), (w * x).sum()
        slope = (w * (x - x_mean) * (y - y_mean[:, None])).sum(1) / (w * (x - x_mean) ** 2).sum()
        intercept = y_mean - slope * x_mean
        residual = (w * (y - intercept[:, None] - slope[:, None] * x) ** 2).sum(1)
        total = (w * (y - y_mean[:, None]) ** 2).sum(1)
        # a flat spectrum has nothing to explain, up to rounding of the logarithms
        r2 = np.where(total > 1e-24, 1 - residual / np.where(total > 0, total, 1), np.nan)
    return -slope, intercept, r2


# ---- eigenvalues, from features that may never be held at once


@dataclass(eq=False)
class Moments:
    """Running float64 sums of features [n, d] around a shift (the first batch's mean): enough for the covariance and
    for the uncentred second moment. Memory d² · 8 bytes, whatever n is. Sums of two parts with the same shift add."""

    n: int
    shift: torch.Tensor  # [d]
    total: torch.Tensor  # Σ (x - shift), [d]
    outer: torch.Tensor  # Σ (x - shift)(x - shift)ᵀ, [d, d]

    @classmethod
    def like(cls, x: torch.Tensor) -> Moments:
        """Empty sums for features such as x [m, d], shifted by their mean."""
        d = x.shape[-1]
        zero = torch.zeros(d, dtype=torch.float64, device=x.device)
        return cls(0, x.double().mean(0), zero, torch.zeros(d, d, dtype=torch.float64, device=x.device))

    def add(self, x: torch.Tensor) -> None:
        """Take in features [m, d]."""
        x = x.double() - self.shift
        self.n += len(x)
        self.total += x.sum(0)
        self.outer.addmm_(x.T, x)

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.n + other.n, self.shift, self.total + other.total, self.outer + other.outer)

    @property
    def mean(self) -> torch.Tensor:
        return self.shift + self.total / self.n

    def covariance(self) -> torch.Tensor:
        """Σ (x - mean)(x - mean)ᵀ / n, [d, d]."""
        offset = self.total / self.n
        return self.outer / self.n - torch.outer(offset, offset)

    def second_moment(self) -> torch.Tensor:
        """Σ x xᵀ / n, [d, d] (uncentred)."""
        return self.covariance() + torch.outer(self.mean, self.mean)


@dataclass(eq=False)
class Spectrum:
    """Spectrum of features [n, d]: covariance eigenvalues (largest first, min(n, d) of them), singular values of the
    uncentred features, the mean [d] and, where asked for, the eigenvectors of the covariance, and of the uncentred
    second moment, [k, d] (rows)."""

    n: int
    d: int
    eigenvalues: np.ndarray
    singular_values: np.ndarray
    mean: torch.Tensor
    directions: torch.Tensor | None = None
    raw_directions: torch.Tensor | None = None

    @property
    def rankme(self) -> float:
        return float(rankme(self.eigenvalues))

    @property
    def rankme_singular(self) -> float:
        return float(rankme_singular(self.singular_values))


def from_moments(moments: Moments, *, vectors: bool = False) -> Spectrum:
    """The spectrum of streamed features."""
    _finite(moments.outer, moments.n)
    values, directions = _eigen(moments.covariance(), vectors)
    # trace of the second moment = trace of the covariance + |mean|²: a negative eigenvalue is rounding
    second, raw = _eigen(moments.second_moment(), vectors)
    size = min(moments.n, len(values))
    singular = np.sqrt(_descending(second) * moments.n)
    return Spectrum(moments.n, len(values), _descending(values)[:size], singular[:size], moments.mean, directions, raw)


def _eigen(matrix: torch.Tensor, vectors: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Eigenvalues (ascending) and, where asked for, eigenvectors as rows, largest first."""
    if not vectors:
        return torch.linalg.eigvalsh(matrix), None
    values, found = torch.linalg.eigh(matrix)
    return values, found.T.flip(0)


def from_features(features: torch.Tensor, *, vectors: bool = False) -> Spectrum:
    """The spectrum of features [n, d] that are held: through the covariance, or through the n × n Gram matrix when n <
    d."""
    n, d = features.shape
    if n >= d:
        moments = Moments.like(features)
        moments.add(features)
        return from_moments(moments, vectors=vectors)
    x = features.double()
    mean = x.mean(0)
    _finite(x.sum(0), n)
    values, directions = _gram_eigen(x - mean, vectors)
    second, raw = _gram_eigen(x, vectors)
    return Spectrum(n, d, _descending(values / n), np.sqrt(_descending(second)), mean, directions, raw)


def _gram_eigen(x: torch.Tensor, vectors: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Eigenvalues of x xᵀ (ascending; the non-zero ones of xᵀ x) and, where asked for, the right singular vectors as
    rows."""
    values, left = _eigen(x @ x.T, vectors)
    if left is None:
        return values, None
    kept = (values > values[-1] * 1e-14).flip(0)  # the others span nothing of the data
    return values, left[kept] @ x / values.flip(0)[kept].sqrt()[:, None]


def _descending(values: torch.Tensor) -> np.ndarray:
    return values.flip(0).clamp(min=0).cpu().numpy()


def _finite(matrix: torch.Tensor, n: int) -> None:
    if n < 2:
        raise InputError(f"A spectrum needs at least two samples; there is {n}.")
    if not torch.isfinite(matrix).all():  # a sum over the samples shows it as well
        raise InputError("The features hold NaN or infinite values; load the model in float32 or bfloat16.")


def white_eigenvalues(n: int, d: int, *, rng: np.random.Generator, device: torch.device | str = "cpu") -> np.ndarray:
    """Covariance eigenvalues of n white Gaussian samples in d dimensions (centred, variance 1), largest first, [min(n,
    d)].

    Drawn without the samples: the non-zero ones are those of a Wishart matrix of min(n - 1, d) dimensions and max(n -
    1, d) degrees of freedom, whose Cholesky factor has independent entries (Bartlett)."""
    if n < 2:
        raise InputError(f"A spectrum needs at least two samples; there is {n}.")
    size, freedom = min(n - 1, d), max(n - 1, d)
    factor = np.tril(rng.standard_normal((size, size)), -1)
    factor[np.diag_indices(size)] = np.sqrt(rng.chisquare(freedom - np.arange(size)))
    factor = torch.from_numpy(factor).to(device)
    values = torch.linalg.eigvalsh(factor @ factor.T).flip(0).clamp(min=0).cpu().numpy() / n
    return np.pad(values, (0, min(n, d) - size))


# ---- uncertainty


class Bootstrap:
    """Bootstrap of statistics of the eigenvalues, in one more pass over the features and without holding them.

    Each sample gets an exponential weight per draw (Bayesian bootstrap), a function of its row number alone, so the
    order and size of batches do not matter. Eigenvalues of a draw are weighted variances along the eigenvectors of the
    full sample: exact to first order, and free of the extra spread that resampling with duplicates puts into a spectrum
    (a plain percentile interval of RankMe misses its own estimate when n is of the order of d). `centred=False`: the
    same for the uncentred second moment, and so for singular values. `spectrum` needs its directions."""

    def __init__(self, spectrum: Spectrum, *, draws: int = 200, centred: bool = True):
        self.basis = spectrum.directions if centred else spectrum.raw_directions
        if self.basis is None:
            raise ValueError("a bootstrap needs the eigenvectors of the spectrum")
        self.centre = spectrum.mean.to(self.basis) if centred else torch.zeros_like(self.basis[0])
        self.centred, self.size = centred, len(spectrum.eigenvalues)
        self.mass = torch.zeros(draws, dtype=torch.float64, device=self.basis.device)
        self.first = torch.zeros(draws, len(self.basis), dtype=torch.float64, device=self.basis.device)
        self.second = torch.zeros_like(self.first)

    def add(self, weight: torch.Tensor, x: torch.Tensor) -> None:
        """Take in features [m, d] with the weights [draws, m] of their rows."""
        weight = weight.to(self.basis.device)
        z = (x.to(self.basis) - self.centre) @ self.basis.T
        self.mass += weight.sum(1)
        if self.centred:
            self.first += weight @ z
        self.second += weight @ z.square()

    def eigenvalues(self) -> np.ndarray:
        """Eigenvalues of every draw, [draws, as many as the spectrum has]; of the second moment where it is not
        centred."""
        values = (
            (self.second / self.mass[:, None] - (self.first / self.mass[:, None]).square()).clamp(min=0).cpu().numpy()
        )
        return np.pad(values[:, : self.size], ((0, 0), (0, max(0, self.size - values.shape[1]))))

    def interval(self, statistic: Callable[[np.ndarray], np.ndarray], *, level: float = 0.95) -> tuple[float, float]:
        """Percentile interval of a statistic [draws, d] → [draws]; NaN where it is NaN in a draw."""
        low, high = percentiles(statistic(self.eigenvalues()), level)
        return float(low), float(high)


def weights(rows: Iterable[int], draws: int, *, seed: int = 0) -> torch.Tensor:
    """Exponential weights [draws, m] of the rows, each column a function of (seed, row number)."""
    columns = [np.random.Generator(np.random.SFC64([seed, int(row)])).standard_exponential(draws) for row in rows]
    return torch.from_numpy(np.stack(columns, axis=1))


def subset_sizes(n: int) -> list[int]:
    """Nested sample sizes of the finite-sample curve: n/8, n/4, n/2 and n."""
    return sorted({max(2, n // 8), max(2, n // 4), max(2, n // 2), n})
