"""Which layers tell a concept from shuffled labels, and what the points of a curve may be called.

A layer is above chance where its accuracy is (for unequal classes: its balanced accuracy) by p, adjusted over the
layers of a curve, and by a least effect. A point of a curve stands only where the curves of shuffled labels do not show
it too; where it does not stand there are words for why.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from workbench.stats.clusters import false_discovery

LEVEL = 0.05
LEAST = 0.05  # of balanced accuracy above that on shuffled labels: what is less is no finding, however sure
FEWEST_FOR_P = 5  # shuffled courses whose spread tells something
FEWEST_FOR_POINTS = 19  # with fewer, no p of a rank among them is at most LEVEL

FOUND = "found"
NEVER = "—, never above chance"
CEILING = "—, at ceiling from layer 0"
NULL_TOO = "—, shuffled labels show it too"
HAS_NONE = "—, the curve has none"
UNSURE = "—, not in 95 % of resampled groups"
NOT_JUDGED = f"not judged: fewer than {FEWEST_FOR_POINTS} shuffled courses"


@dataclass(frozen=True, eq=False)
class AboveChance:
    """Of every layer [L]: one-sided p, the same adjusted over the layers (Benjamini and Hochberg), and whether the
    layer is above chance; NaN and false where there are too few shuffled courses."""

    p: np.ndarray
    p_adjusted: np.ndarray
    above: np.ndarray

    @property
    def judged(self) -> bool:
        return not bool(np.isnan(self.p).all())


def above_chance(value: np.ndarray, control: np.ndarray, ways: float) -> AboveChance:
    """Judge a curve [L] by curves on shuffled labels, control [shuffles, L], of which there are `ways` different ones.

    The p of a layer is that of a further draw of the shuffled courses being as high: Student's t of a prediction, with
    their own spread. It is no less than the share that one of all different ways of shuffling is."""
    from scipy import stats

    shuffles = len(control)
    if shuffles < FEWEST_FOR_P:
        none = np.full(len(value), np.nan)
        return AboveChance(none, none, np.zeros(len(value), dtype=bool))
    off = value - control.mean(0)
    spread = control.std(0, ddof=1) * np.sqrt(1 + 1 / shuffles)
    with np.errstate(invalid="ignore", divide="ignore"):
        t = np.where(off == 0, 0.0, off / spread)  # courses that are all alike: infinite, or none
    p = np.maximum(stats.t.sf(t, shuffles - 1), 1 / ways)
    adjusted = false_discovery(p)
    return AboveChance(p, adjusted, (adjusted < LEVEL) & (off >= LEAST))


def p_of_rank(value: float, control: np.ndarray) -> float:
    """Share of the shuffled courses, and the curve itself with them, that reach `value`; control [shuffles]."""
    return float((1 + (control >= value - 1e-12).sum()) / (1 + len(control)))
