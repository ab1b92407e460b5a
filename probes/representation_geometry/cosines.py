"""How much the states of different texts point the same way: the mean cosine over pairs of texts (Ethayarajh 2019,
arXiv 1909.00512, calls it anisotropy).

A direction that all states share makes it large whatever the texts are, so it stands beside the same after the mean is
taken off. The null turns each state round with a coin: the axes stay, what is common to all goes. Intervals leave
groups of texts out, on Fisher's scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from workbench.stats.intervals import percentiles
from workbench.stats.jackknife import deletions, jackknife_interval

COINS = 200  # draws of signs for the null


@dataclass(frozen=True)
class MeanCosine:
    """A mean cosine with its interval, and of states with random signs (mean, and the middle 95 % of the draws)."""

    value: float
    low: float
    high: float
    null: float
    null_low: float
    null_high: float


def mean_cosine(x: torch.Tensor, *, centred: bool, rng: np.random.Generator) -> MeanCosine:
    """Of all pairs of the states [n, d], as they are or without their mean (which is then that of the texts that stay
    where some are left out). NaN where a state is zero, or there are fewer than two."""
    x = x.double()
    n = len(x)
    some = deletions(np.zeros(n), rng)
    value = _of_pairs(_directions(x, centred))
    without = np.array([_of_pairs(_directions(x[torch.from_numpy(kept > 0)], centred)) for kept in some.kept])
    with np.errstate(invalid="ignore", divide="ignore"):
        low, high = jackknife_interval(np.arctanh([value]), np.arctanh(without[None]), some)
    signs = torch.from_numpy(rng.choice([-1.0, 1.0], (COINS, n))).to(x.device)
    null = ((signs @ _directions(x, centred)).square().sum(1).cpu().numpy() - n) / (n * (n - 1))
    return MeanCosine(value, *map(float, (np.tanh(low[0]), np.tanh(high[0]), null.mean(), *percentiles(null))))


def _directions(x: torch.Tensor, centred: bool) -> torch.Tensor:
    x = x - x.mean(0) if centred else x
    return x / torch.linalg.vector_norm(x, dim=1, keepdim=True)


def _of_pairs(units: torch.Tensor) -> float:
    """The mean product of two different rows [n, d] of length 1, from their sum."""
    n = len(units)
    return (float(units.sum(0).square().sum()) - n) / (n * (n - 1)) if n > 1 else float("nan")
