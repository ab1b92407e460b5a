"""Phases of a training run from the course of a number over checkpoints (RankMe: arXiv 2509.23024, Figs. 1-2).

A phase is a stretch over which the number only falls or only rises: a first fall = "warm-up" if the course begins near
step 0 (at no more than 1 % of its last step), rise = "entropy-seeking", other falls = "compression-seeking". The course
is cut into alternately falling and rising pieces, each fitted by isotonic regression, at the least total squared error;
a further piece must pay for itself (a penalty in log t). Nothing is assumed about the form of the course, the steps
need not be evenly spaced, and a course without a phase simply lacks it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from workbench.core.errors import InputError
from workbench.stats.intervals import percentiles

NEAR_ZERO = 0.01  # share of the last step up to which a course begins with the training


@dataclass(frozen=True)
class Phase:
    """One phase: its name, the checkpoints [start, end] that bound it (neighbours share one), and intervals of their
    steps."""

    name: str
    start: int
    end: int
    start_step: float
    end_step: float
    start_low: float
    start_high: float
    end_low: float
    end_high: float


def segment(
    steps: np.ndarray,
    values: np.ndarray,
    *,
    error: np.ndarray | float | None = None,
    max_phases: int = 6,
    draws: int = 200,
    level: float = 0.95,
    rng: np.random.Generator,
) -> list[Phase]:
    """Phases of values [t] at increasing steps [t]. `error` is the standard error of the values (from a bootstrap);
    None estimates one from second differences. Intervals of the turning points are those of courses redrawn around the
    fit with that error.

    Raises InputError for steps that do not increase or values that are not finite; fewer than four checkpoints, and a
    course that does not change, have no phases."""
    steps, values = np.asarray(steps, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if len(steps) != len(values) or np.any(np.diff(steps) <= 0):
        raise InputError("Checkpoints must be at increasing steps, each once.")
    if not np.isfinite(values).all():
        raise InputError(
            "The course over the checkpoints has missing values; phases need a number at every checkpoint."
        )
    if len(values) < 4 or np.ptp(values) <= 1e-9 * np.abs(values).max():
        return []
    sigma = np.broadcast_to(_noise(values) if error is None else np.asarray(error, dtype=np.float64), values.shape)
    # numerical noise is never zero; without a floor a perfect course would be cut at every rounding
    sigma = np.maximum(sigma, 1e-6 * (np.ptp(values) + 1e-12))
    cuts, rising, fitted = _best(values, sigma, range(1, max_phases + 1))
    redrawn = []
    for _ in range(draws if len(cuts) > 2 else 0):
        again = fitted + sigma * rng.standard_normal(len(values))
        redrawn.append(_best(again, sigma, [len(cuts) - 1], first_rising=rising)[0])
    phases, warm = [], steps[0] <= NEAR_ZERO * steps[-1]
    for k in range(len(cuts) - 1):
        up = rising ^ (k % 2 == 1)
        name = "entropy-seeking" if up else "warm-up" if warm and k == 0 else "compression-seeking"
        start, end = cuts[k], cuts[k + 1]
        low_start, high_start = _interval(steps, redrawn, k, level) if k else (steps[0], steps[0])
        last = k == len(cuts) - 2
        low_end, high_end = (steps[-1], steps[-1]) if last else _interval(steps, redrawn, k + 1, level)
        phases.append(
            Phase(name, start, end, *map(float, (steps[start], steps[end], low_start, high_start, low_end, high_end)))
        )
    return phases


def _interval(steps, redrawn, k, level):
    if not redrawn:
        return float("nan"), float("nan")
    at = steps[[cuts[k] for cuts in redrawn]]
    low, high = percentiles(at, level, of_the_values=True)
    return float(low), float(high)


def _noise(values: np.ndarray) -> float:
    """Standard error of one value from second differences, robust against the course's own bends."""
    second = np.abs(np.diff(values, 2))
    return float(np.median(second) / 0.6745 / np.sqrt(6))


def _best(values, sigma, counts, first_rising: bool | None = None):
    """The cut of least penalised error: (cut points [k+1], whether the first piece rises, fitted values)."""
    t = len(values)
    weight = 1 / sigma**2
    cost = {up: _costs(values if up else -values, weight) for up in (True, False)}
    best = None
    for count in counts:
        for up in (True, False) if first_rising is None else (first_rising,):
            found = _cut(cost, t, count, up)
            if found is None:
                continue
            total, cuts = found
            # an isotonic piece is free to follow noise, so a further one must gain more than the usual log t per
            # parameter; with this price 30 noisy checkpoints of a monotone course are cut in fewer than 1 of 100 cases
            score = total + 4 * (count - 1) * np.log(t)
            if best is None or score < best[0] - 1e-9:
                best = (score, cuts, up)
    _, cuts, up = best
    fitted = np.empty(t)
    for k in range(len(cuts) - 1):
        rising = up ^ (k % 2 == 1)
        piece = slice(cuts[k], cuts[k + 1] + 1)
        sign = 1 if rising else -1
        fitted[piece] = sign * _isotonic(sign * values[piece], weight[piece])
    return cuts, up, fitted


def _cut(cost, t, count, first_rising):
    """Least cost of `count` alternating pieces that share their boundary points, by dynamic programming; None where
    they do not fit."""
    if count > t - 1:
        return None
    total = cost[first_rising][0].copy()  # best cost of one piece from 0 to j
    total[0] = np.inf
    back = []
    for k in range(1, count):
        piece = cost[first_rising ^ (k % 2 == 1)]
        options = total[:, None] + piece  # [i, j]: pieces up to i, then one from i to j
        options[np.tril_indices(t)] = np.inf
        back.append(options.argmin(0))
        total = options.min(0)
    if not np.isfinite(total[-1]):
        return None
    cuts = [t - 1]
    for choice in reversed(back):
        cuts.append(int(choice[cuts[-1]]))
    return float(total[-1]), [0, *reversed(cuts)]


def _costs(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """[i, j]: weighted squared error of the best non-decreasing fit to values i…j; infinite for j < i."""
    t = len(values)
    out = np.full((t, t), np.inf)
    for i in range(t):
        blocks: list[list[float]] = []  # weight, weighted sum, weighted sum of squares
        error = 0.0
        for j in range(i, t):
            w = weight[j]
            block = [w, w * values[j], w * values[j] ** 2]
            while blocks and blocks[-1][1] / blocks[-1][0] >= block[1] / block[0]:
                left = blocks.pop()
                error -= _within(left)
                block = [a + b for a, b in zip(left, block)]
            blocks.append(block)
            error += _within(block)
            out[i, j] = max(error, 0.0)
    return out


def _within(block: list[float]) -> float:
    return block[2] - block[1] ** 2 / block[0]


def _isotonic(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    blocks: list[list[float]] = []
    for v, w in zip(values, weight):
        block = [w, w * v, 1]
        while blocks and blocks[-1][1] / blocks[-1][0] >= block[1] / block[0]:
            block = [a + b for a, b in zip(blocks.pop(), block)]
        blocks.append(block)
    return np.concatenate([np.full(int(n), s / w) for w, s, n in blocks])
