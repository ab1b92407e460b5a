"""How alike the states of the same texts are at two places (layers, checkpoints): linear CKA, unbiased.

Kornblith et al. 2019 (arXiv 1905.00414), with the unbiased HSIC of Song et al. 2012 (JMLR 13:1393, Eq. 5) in numerator
and denominator, as Nguyen et al. 2021 (arXiv 2010.15327, Eq. 3): with the biased one, few texts of many dimensions are
alike whatever they are. 1 for states that are the same up to rotation, shift and scale, 0 on average for texts that
have nothing to do with each other. Texts in another order are the null; intervals leave groups of texts out, on
Fisher's scale.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from workbench.stats.intervals import percentiles
from workbench.stats.jackknife import Deletions, deletions, jackknife_interval

FEWEST = 5  # texts; unbiased HSIC is of four or more, and an interval leaves one out


@dataclass(frozen=True)
class Alike:
    """CKA of two places with its interval, and with the texts of one in another order (mean, and the middle 95 % of the
    orders). NaN where a place is the same for every text."""

    value: float
    low: float
    high: float
    null: float
    null_low: float
    null_high: float


def gram(x: torch.Tensor) -> np.ndarray:
    """Products of all pairs of states [n, d], their mean taken off, as float64 [n, n]; 0 on the diagonal."""
    x = x.double()
    x = x - x.mean(0)  # changes no CKA, and keeps digits
    return (x @ x.T).fill_diagonal_(0).cpu().numpy()


def similarities(
    places: Sequence[torch.Tensor],
    pairs: Sequence[tuple[int, int]],
    *,
    draws: int,
    rng: np.random.Generator,
    check: Callable[[], None] = lambda: None,
) -> list[Alike]:
    """CKA of every pair of `places` (states [n, d] of the same n texts, d may differ), `draws` orders of the texts for
    the null. Memory n² · 8 bytes for each place."""
    grams = [gram(x) for x in places]
    n = len(grams[0]) if grams else 0
    if n < FEWEST:
        return [Alike(*[float("nan")] * 6) for _ in pairs]
    left_out = deletions(np.zeros(n), rng)
    parts = [_Parts.of(own, left_out) for own in grams]
    alone = [_hsic(own, own, part, part, left_out) for own, part in zip(grams, parts)]  # of each place with itself
    null = _in_another_order(grams, parts, pairs, [rng.permutation(n) for _ in range(draws)], check)
    found = []
    for (a, b), by_chance in zip(pairs, null):
        check()
        cross = _hsic(grams[a], grams[b], parts[a], parts[b], left_out)
        with np.errstate(invalid="ignore", divide="ignore"):
            scale = np.sqrt(np.where((alone[a] > 0) & (alone[b] > 0), alone[a] * alone[b], np.nan))
            value = (cross / scale).clip(-1, 1)
            low, high = jackknife_interval(np.arctanh(value[:1]), np.arctanh(value[None, 1:]), left_out)
            by_chance = by_chance / scale[0]
        ends = percentiles(by_chance)
        ends = (np.tanh(low[0]), np.tanh(high[0]), by_chance.mean(), *ends)
        found.append(Alike(float(value[0]), *map(float, ends)))
    return found


@dataclass(frozen=True, eq=False)
class _Parts:
    """Of a Gram matrix: sums of its rows over each group that is left out [n, groups], and over all [n]."""

    of_groups: np.ndarray
    rows: np.ndarray

    @classmethod
    def of(cls, own: np.ndarray, left_out: Deletions) -> _Parts:
        return cls(own @ (1 - left_out.kept).T, own.sum(1))


def _hsic(a: np.ndarray, b: np.ndarray, of_a: _Parts, of_b: _Parts, left_out: Deletions) -> np.ndarray:
    """Unbiased HSIC of two Gram matrices [n, n], of all texts and without each group in turn: [1 + groups]."""
    kept = left_out.kept
    out = 1 - kept
    both = a * b
    in_group = out @ both  # [groups, n]
    trace = both.sum() - 2 * in_group.sum(1) + (in_group * out).sum(1)
    rows_a, rows_b = of_a.rows[:, None] - of_a.of_groups, of_b.rows[:, None] - of_b.of_groups  # [n, groups]
    sum_a, sum_b = (rows_a * kept.T).sum(0), (rows_b * kept.T).sum(0)
    cross = (rows_a * rows_b * kept.T).sum(0)
    whole = _estimate(both.sum(), of_a.rows.sum(), of_b.rows.sum(), of_a.rows @ of_b.rows, len(a))
    return np.concatenate([[whole], _estimate(trace, sum_a, sum_b, cross, kept.sum(1))])


def _in_another_order(
    grams: Sequence[np.ndarray],
    parts: Sequence[_Parts],
    pairs: Sequence[tuple[int, int]],
    orders: Sequence[np.ndarray],
    check: Callable[[], None],
) -> np.ndarray:
    """Unbiased HSIC [pairs, orders] with the texts of the second place in each order, which is made once for all its
    pairs."""
    found = np.empty((len(pairs), len(orders)))
    for b in sorted({b for _, b in pairs}):
        those = [number for number, pair in enumerate(pairs) if pair[1] == b]
        for column, order in enumerate(orders):
            check()
            other, rows = grams[b][np.ix_(order, order)], parts[b].rows[order]
            for number in those:
                a = pairs[number][0]
                trace, own = np.vdot(grams[a], other), parts[a].rows
                found[number, column] = _estimate(trace, own.sum(), rows.sum(), own @ rows, len(order))
    return found


def _estimate(trace, sum_a, sum_b, cross, n):
    """Eq. 5 of Song et al. from tr KL, 1ᵀK1, 1ᵀL1 and 1ᵀKL1 of n texts."""
    return (trace + sum_a * sum_b / ((n - 1) * (n - 2)) - 2 * cross / (n - 2)) / (n * (n - 3))
