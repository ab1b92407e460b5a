"""Correlations of surprisals over tokens, with texts as the clusters that are resampled.

Pearson's r depends on six sums. They are kept for every text, so that a resample of texts costs one small product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from workbench.stats.clusters import FEWEST
from workbench.stats.intervals import percentiles, resample_counts

SAME = 1e-5  # nats: surprisals that differ by less are the same but for rounding


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """r of what a model says, x, and what is known, y [n]: 0 where x does not vary, NaN where y does not."""
    return float(_r(_sums(x, y, np.zeros(len(x), int), 1).sum(0))) if len(x) > 1 else float("nan")


def _sums(x: np.ndarray, y: np.ndarray, text: np.ndarray, texts: int) -> np.ndarray:
    """n, Σx, Σy, Σx², Σy², Σxy of every text, [texts, 6], of x and y around their own means."""
    x, y = x - x.mean(), y - y.mean()
    columns = (np.ones_like(x), x, y, x * x, y * y, x * y)
    return np.stack([np.bincount(text, weights=column, minlength=texts) for column in columns], axis=1)


def _r(sums: np.ndarray) -> np.ndarray:
    """r from sums [..., 6]: 0 where x, what a model says, is the same of every token; NaN where y is."""
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        var_x, var_y = (xx - x * x / n) / n, (yy - y * y / n) / n
        found = np.clip((xy - x * y / n) / n / np.sqrt(var_x * var_y), -1, 1)
        found = np.where(var_x <= SAME**2, 0.0, found)
        return np.where(var_y > SAME**2, found, np.nan)


@dataclass(frozen=True, eq=False)
class Correlations:
    """r of what each of several masked models says with what is known, and the same in resamples of texts: the texts of
    a resample are the same for all of them, so that differences are of pairs. `value` [models], `drawn` [draws,
    models]."""

    value: np.ndarray
    drawn: np.ndarray
    texts: int

    def interval(self, of: np.ndarray) -> tuple[float, float]:
        """95 % of numbers that were drawn [draws]; NaN below five texts."""
        of = of[np.isfinite(of)]
        if self.texts < FEWEST or len(of) < len(self.drawn) / 2 or not len(of):
            return float("nan"), float("nan")
        low, high = percentiles(of)
        return float(low), float(high)


def correlations(
    said: Sequence[np.ndarray], known: np.ndarray, text: np.ndarray, *, draws: int, rng: np.random.Generator
) -> Correlations:
    """`said`: surprisals [n] of each model; `known` [n] those that they are held against; `text` [n]: the text of each
    token. A surprisal that is infinite takes the largest finite one of its model, as in the official code; a model with
    one that is NaN has no correlation."""
    names, index = np.unique(text, return_inverse=True)
    sums = [_sums(finite(one), known, index, len(names)) for one in said]
    counts = resample_counts(len(names), draws, rng) if len(names) >= FEWEST else np.zeros((0, len(names)))
    value = np.array([float(_r(each.sum(0))) for each in sums])
    drawn = np.stack([_r(counts @ each) for each in sums], axis=1) if len(sums) else np.zeros((len(counts), 0))
    return Correlations(value, drawn, len(names))


def finite(x: np.ndarray) -> np.ndarray:
    """Infinite surprisals at the largest finite one; NaN stays."""
    some = np.isfinite(x)
    return x if some.all() or not some.any() else np.where(np.isinf(x), x[some].max(), x)


def mean_over_draws(found: Correlations, which: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """The mean r of some of the models (draws of a random choice) in each resample [draws], in which they are resampled
    as well: texts and draws both vary."""
    columns = found.drawn[:, list(which)]
    chosen = rng.integers(0, len(which), columns.shape)
    return np.take_along_axis(columns, chosen, axis=1).mean(1)
