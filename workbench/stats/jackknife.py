"""Intervals of what is computed from several texts at once and has no formula (a similarity to their mean): leave some
of the texts out, compute it again, and see how far it moves (the jackknife).

A bootstrap would not do: a resample repeats some texts and lacks a third, so the mean of sparse vectors is sparser, and
a similarity to it smaller than the one that was measured. The jackknife's interval is around the number itself. It is
of the number that as many other texts would give on average. Coverage is held by tests/stats/test_jackknife.py.

What jumps when one text goes (the distance to a nearest neighbour) has a jackknife that is twice too wide; there half
of the texts are left out, many times (Shao and Wu 1989, The Annals of Statistics 17:1176, with d = n / 2).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from workbench.stats.clusters import FEWEST
from workbench.stats.intervals import Ends

MOST_GROUPS = 50  # that are left out in turn; of more texts several go together
ROUNDING = 1e-5  # of the value: what single precision leaves of an interval that has no width


@dataclass(frozen=True, eq=False)
class Deletions:
    """Which texts are left out together. ``group`` [texts]: the number of the group of each, −1 for one that is never
    left out; ``share`` [groups]: the texts of its stratum over its own; ``stratum`` [groups]."""

    group: np.ndarray
    share: np.ndarray
    stratum: np.ndarray

    @property
    def n(self) -> int:
        return len(self.share)

    @property
    def kept(self) -> np.ndarray:
        """How often each text is there when a group is left out, [groups, texts] of 0 and 1."""
        return (self.group != np.arange(self.n)[:, None]).astype(np.float64)


def deletions(stratum: np.ndarray, rng: np.random.Generator, *, most: int = MOST_GROUPS) -> Deletions:
    """One text at a time; of more than ``most`` texts, as many random groups of (nearly) one size. ``stratum`` [texts]:
    texts are compared with those of their stratum only, and one that is alone in its own is never left out."""
    stratum = np.asarray(stratum)
    group = np.full(len(stratum), -1)
    shares: list[float] = []
    of_group: list[int] = []
    for kind in np.unique(stratum):
        own = np.flatnonzero(stratum == kind)
        if len(own) < 2:
            continue
        number = np.arange(len(own)) if len(own) <= most else rng.permutation(len(own)) % most
        group[own] = len(shares) + number
        shares += (len(own) / np.bincount(number)).tolist()
        of_group += [int(kind)] * (int(number.max()) + 1)
    return Deletions(group, np.array(shares), np.array(of_group, np.int64))


def jackknife_interval(
    value: np.ndarray, without: np.ndarray, left_out: Deletions, *, used: np.ndarray | None = None, level: float = 0.95
) -> Ends:
    """Low and high [n] of ``value`` [n], which becomes ``without`` [n, groups] where a group is left out: Student's t
    of the jackknife's variance (Busing, Meijer and van der Leeden 1999 for unequal groups), one degree of freedom less
    than groups, pooled over strata as Welch and Satterthwaite do.

    ``used`` [n]: the stratum that a value rests on, where it is one (the best of several means). NaN where fewer than
    five texts were left out in turn, and where the value hangs on none of them (an interval would have no width)."""
    from scipy import stats

    value, without = np.asarray(value, np.float64), np.asarray(without, np.float64)
    variance, over = np.zeros(len(value)), np.zeros(len(value))
    fewest = np.full(len(value), 0)
    for kind in np.unique(left_out.stratum):
        own = left_out.stratum == kind
        h, number = left_out.share[own], int(own.sum())
        pseudo = h * value[:, None] - (h - 1) * without[:, own]
        part = ((pseudo - pseudo.mean(1, keepdims=True)) ** 2 / (h - 1)).mean(1)
        variance += part
        over += part**2 / (number - 1)
        fewest = np.maximum(fewest, number) if used is None else np.where(used == kind, number, fewest)
    with np.errstate(invalid="ignore", divide="ignore"):
        half = stats.t.ppf(0.5 + level / 2, variance**2 / over) * np.sqrt(variance)
    there = (fewest >= FEWEST) & (half > ROUNDING * np.maximum(np.abs(value), 1e-300))
    return np.where(there, value - half, np.nan), np.where(there, value + half, np.nan)


def half_samples(n: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """``draws`` random halves of n texts without repeats, int [draws, n // 2], ascending."""
    return np.sort(np.argsort(rng.random((draws, n)), axis=1)[:, : n // 2], axis=1)


def half_sample_interval(value: np.ndarray, of_halves: np.ndarray, texts: int, *, level: float = 0.95) -> Ends:
    """Low and high [m] of ``value`` [m] of ``texts`` texts, which is ``of_halves`` [m, draws] of random halves of them:
    Student's t of the delete-d jackknife's variance, one degree of freedom less than texts or draws. NaN below five
    texts, and where the value is the same in every half."""
    from scipy import stats

    value, of_halves = np.asarray(value, np.float64), np.asarray(of_halves, np.float64)
    draws, kept = of_halves.shape[1], texts // 2
    if texts < FEWEST or draws < 2:
        return np.full(value.shape, np.nan), np.full(value.shape, np.nan)
    half = stats.t.ppf(0.5 + level / 2, min(texts, draws) - 1) * np.sqrt(
        of_halves.var(1, ddof=1) * kept / (texts - kept)
    )
    there = half > ROUNDING * np.maximum(np.abs(value), 1e-300)
    return np.where(there, value - half, np.nan), np.where(there, value + half, np.nan)
