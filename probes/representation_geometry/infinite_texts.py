"""RankMe and alpha at infinitely many texts, from n samples in d dimensions with n of the order of d: there the
spectrum of the samples is wider than that of what they are drawn from (Marchenko and Pastur 1967).

RankMe. S is the covariance with its N = n - 1 degrees of freedom, Σ that of the population, both scaled to trace 1, and
F(v) = tr Σ (1 + vΣ)^-1. For x > 0 the resolvent behaves as (S + x)^-1 ≈ (x (1 + vΣ))^-1 for some v (for samples of
different length, too: Paul and Silverstein 2009). So v F(v) = tr S (S + x)^-1, which is known; and F(v) = x tr Σ (S +
x)^-1, which samples tell that the resolvent has not seen: with h the leverage of a sample in the regularised S, its
left-out quadratic form is h / (1 - h), whatever the distribution. With F known at as many v as x are taken, the entropy
is an integral, tr Σ ln Σ = ∫ (1 / (1 + v) - F(v)) dv / v over v > 0 (Frullani). No spectrum is fitted; only where n < d
is the end of the integral, which no sample reaches, that of the one level that F ends with.

alpha. Mestre (2008): the population's eigenvalues of a group sum to N Σ (λ - μ) over its sample eigenvalues λ, with μ
the zeros next to them of Σ λ / (λ - μ) = N. Groups are narrow stretches of ranks; alpha is moved by what the slope of
their logarithms moves.

When either is given is a matter of simulation (`REASONS`; tests/probes/representation_geometry/test_infinite_texts.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from probes.representation_geometry.spectra import Bootstrap, Spectrum, alphas
from workbench.stats.clusters import student_quantile

POINTS = 160  # values of x
ALPHA_DRAWS = 50
GROUPS = 12  # stretches of ranks
FEWEST = 20  # texts
FLATTEST, MOST_UNEQUAL = 0.75, 1.3
NOT_KNOWN = float("nan")
REASONS = {
    "rankme": "RankMe at infinitely many texts needs at least half as many texts as dimensions, and twenty",
    "interval": "its interval needs as many texts as dimensions",
    "alpha": "alpha at infinitely many texts needs twice as many texts as dimensions",
    "unequal": "alpha at infinitely many texts needs samples of about the same length",
    "flat": f"alpha at infinitely many texts is told from {FLATTEST} on",
}


@dataclass(frozen=True)
class AtInfinity:
    """RankMe and alpha of infinitely many texts with 95 % intervals; NaN where they are not told, with the reason."""

    rankme: float = NOT_KNOWN
    rankme_low: float = NOT_KNOWN
    rankme_high: float = NOT_KNOWN
    alpha: float = NOT_KNOWN
    alpha_low: float = NOT_KNOWN
    alpha_high: float = NOT_KNOWN
    reason: str = ""


class LeftOut:
    """What samples say of a resolvent that has not seen them, gathered over their coordinates along the eigenvectors
    of the `spectrum`. ``values`` [k] are its positive eigenvalues over their sum, ``ridges`` [POINTS] the x."""

    def __init__(self, spectrum: Spectrum):
        positive = spectrum.eigenvalues[: min(spectrum.n - 1, len(spectrum.directions))]
        positive = positive[positive > positive.max(initial=0) * 1e-12]
        self.spectrum, self.n, self.trace = spectrum, spectrum.n, float(positive.sum()) or 1.0
        self.values = positive / self.trace
        # directions that no sample varies in are none of the population's, unless the samples are too few for them
        self.width = len(positive) if len(positive) < spectrum.n - 1 else spectrum.d
        self.ridges = np.exp(np.linspace(7.0, np.log(self.values.min(initial=1.0)) - 7.0, POINTS))
        self.directions = spectrum.directions[: len(positive)]
        self.kernel = torch.from_numpy(1 / (self.values[:, None] + self.ridges)).to(self.directions)
        self.forms = torch.zeros(POINTS, dtype=torch.float64, device=self.directions.device)  # Σ h / (1 - h)
        self.fourth = torch.zeros_like(self.directions[:, 0])  # Σ z⁴ along every direction
        self.lengths = torch.zeros((), dtype=torch.float64, device=self.directions.device)  # Σ |z|⁴

    def add(self, x: torch.Tensor) -> None:
        """Take in features [m, d]."""
        squares = ((x.to(self.directions) - self.spectrum.mean) @ self.directions.T).square() / self.trace
        seen = (squares @ self.kernel / (self.n - 1)).clamp(max=1 - 1e-12)
        self.forms += (seen / (1 - seen)).sum(0)
        self.fourth += squares.square().sum(0)
        self.lengths += squares.sum(1).square().sum()

    @property
    def unequal(self) -> float:
        """Mean fourth power over squared mean square of the samples' lengths: 1 for a Gaussian's, more for lengths that
        differ."""
        pairs = 1 - float((self.values**2).sum())
        found = (float(self.lengths) - float(self.fourth.sum())) / self.n / pairs if pairs > 1e-9 else 1.0
        return max(found, 1.0)

    def rankme(self) -> float:
        forms = (self.forms / self.n).cpu().numpy()
        return float(np.exp(_entropy(self.values, forms, self.ridges, self.n - 1, self.width)))


def at_infinity(
    left_out: LeftOut, bootstrap: Bootstrap | None, *, fit_range: tuple[int, int], weighted: bool = True
) -> AtInfinity:
    """RankMe and alpha of infinitely many texts. Their spread is that of the draws of `bootstrap`; RankMe's draws use
    the closed form for samples of one Gaussian, which scatters as the left-out one does and needs no pass of its
    own."""
    n, d, found, reasons = left_out.n, left_out.width, {}, []
    drawn = np.zeros((0, len(left_out.values)))
    if bootstrap is not None:
        drawn = np.sort(bootstrap.eigenvalues()[:, : len(left_out.values)], axis=1)[:, ::-1]
    quantile = student_quantile(0.975, n - 1)
    if n < max(FEWEST, d / 2) or not d:
        return AtInfinity(reason=REASONS["rankme"])
    found["rankme"] = left_out.rankme()
    if n < d:
        reasons.append(REASONS["interval"])
    elif len(drawn) > 1:
        half = quantile * np.std([_gaussian_entropy(own, left_out) for own in drawn])
        found |= {"rankme_low": found["rankme"] * np.exp(-half), "rankme_high": found["rankme"] * np.exp(half)}
    if len(left_out.values) >= fit_range[1]:
        if n < 2 * d:
            reasons.append(REASONS["alpha"])
        elif left_out.unequal > MOST_UNEQUAL:
            reasons.append(REASONS["unequal"])
        else:
            told, moved, spread = _alpha(left_out, drawn[:ALPHA_DRAWS], fit_range, weighted)
            if told < FLATTEST:
                reasons.append(REASONS["flat"])
            else:
                # what samples of different length still hide grows with how different they are
                half = np.hypot(quantile * spread, moved * (left_out.unequal - 1) / 2)
                found |= {"alpha": told, "alpha_low": told - half, "alpha_high": told + half}
    return AtInfinity(**{name: float(value) for name, value in found.items()}, reason="; ".join(reasons))


def _alpha(
    left_out: LeftOut, drawn: np.ndarray, fit_range: tuple[int, int], weighted: bool
) -> tuple[float, float, float]:
    """alpha, by how much it was moved, and the standard deviation of its draws. Samples of different length count as
    fewer."""
    freedom = (left_out.n - 1) / left_out.unequal
    at_n = alphas(np.vstack([left_out.values[None], drawn]), fit_range=fit_range, weighted=weighted)
    moved = [population_slope(own, freedom, fit_range, weighted=weighted) for own in (left_out.values, *drawn)]
    told = at_n + moved
    return float(told[0]), moved[0], float(np.std(told[1:])) if len(drawn) > 1 else NOT_KNOWN


def population_slope(values: np.ndarray, freedom: float, fit_range: tuple[int, int], *, weighted: bool) -> float:
    """By how much alpha of the population differs from that of the sample eigenvalues `values` [k], largest first."""
    first, last = fit_range
    edges = np.unique(np.round(np.geomspace(first, last + 1, GROUPS + 1)).astype(int))
    ranks = np.arange(first, last + 1)
    own, weight = values[first - 1 : last], 1 / ranks if weighted else np.ones(len(ranks))
    told = freedom * (own - zeros_below(values, freedom, first, last))
    groups = [slice(a - first, b - first) for a, b in zip(edges, edges[1:])]
    with np.errstate(invalid="ignore", divide="ignore"):
        y = np.array([np.log(told[g].mean() / own[g].mean()) for g in groups])
    x, w = np.array([np.log(ranks[g]).mean() for g in groups]), np.array([weight[g].sum() for g in groups])
    x = x - (w * x).sum() / w.sum()
    return float(-(w * x * y).sum() / (w * x**2).sum())


def zeros_below(values: np.ndarray, freedom: float, first: int, last: int) -> np.ndarray:
    """The zero of Σ λ / (λ - μ) = freedom between each of the eigenvalues of ranks first…last and the one below it, by
    bisection: the sum grows with μ from one to the other."""
    below = np.append(values[1:], 0.0)
    low, high = below[first - 1 : last].copy(), values[first - 1 : last].copy()
    for _ in range(48):
        middle = (low + high) / 2
        with np.errstate(divide="ignore"):
            above = (values / (values - middle[:, None])).sum(1) > freedom
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return (low + high) / 2


def _gaussian_entropy(values: np.ndarray, left_out: LeftOut) -> float:
    """The entropy where all samples have the same leverage, which their spectrum alone tells."""
    values, freedom = values / values.sum(), left_out.n - 1
    seen = (values[:, None] / (values[:, None] + left_out.ridges)).sum(0)
    return _entropy(values, seen / (freedom - seen), left_out.ridges, freedom, left_out.width)


def _entropy(values: np.ndarray, forms: np.ndarray, ridges: np.ndarray, freedom: int, width: int) -> float:
    """-tr Σ ln Σ from the sample eigenvalues, the mean left-out forms tr Σ (S + x)^-1 / N and the x, largest first."""
    of_population = freedom * ridges * forms  # F(v)
    v = (values[:, None] / (values[:, None] + ridges)).sum(0) / of_population
    rest = 1 / (1 + v) - of_population
    middle = ((rest[1:] + rest[:-1]) / 2 * np.diff(np.log(v))).sum()
    before = rest[0]  # v there is near 0, and the rest goes as v
    last, level = v[-1], of_population[-1]
    beyond = width / last  # ∫ F dv / v where F is width / v
    if freedom < width:  # F ends as one level t of weight w: the slope there tells t
        slope = (of_population[-1] - of_population[-9]) / (v[-1] - v[-9])
        share = np.clip(-slope / level, 1e-12, 0.999 / last)
        t = share / (1 - share * last)
        w = level * (1 + t * last) / t
        if w > width:
            w, t = width, level / max(width - level * last, 1e-12)
        beyond = w * t * np.log1p(1 / (t * last))
    return float(-(before + middle + np.log1p(1 / last) - beyond))
