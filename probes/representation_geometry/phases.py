"""Phases of a training run from the course of a number over checkpoints (RankMe: arXiv 2509.23024, Figs. 1-2).

A phase is a stretch over which the number only falls or only rises: a first fall = "warm-up" if the course begins near
step 0 (at no more than 1 % of its last step), rise = "entropy-seeking", other falls = "compression-seeking". How many
there are is a matter of how far the course turns back: further than the jitter of a course without a turn ever does
(`least_turn`; the jitter from checkpoint to checkpoint is that of training, of which the standard error of a value
knows nothing). Where the turns are: the course is cut into alternately falling and rising pieces, each fitted by
isotonic regression, at the least total squared error. Nothing is assumed about the form of the course, the steps need
not be evenly spaced, and a course without a phase simply lacks it.

The paper's phases are of RankMe and alpha together: alpha falls while RankMe rises. `named_with_alpha` puts into the
name of a phase where alpha does not do so.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import isotonic_regression

from workbench.core.errors import InputError
from workbench.stats.intervals import percentiles

Costs = dict[bool, np.ndarray]
FEW = 10  # checkpoints below which a course says nothing of its jitter
SHORT = 30  # checkpoints below which it says nothing of how much the jitter of neighbours goes together
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

    @property
    def rises(self) -> bool:
        return self.name == "entropy-seeking"


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
    """Phases of values [t] at increasing steps [t]. `error` is the standard error of the values (from a bootstrap), to
    which the course adds a jitter of its own. Intervals of the turning points are those of courses redrawn around the
    fit with that jitter.

    Raises InputError for steps that do not increase or values that are not finite; fewer than four checkpoints, and a
    course that does not change beyond its jitter, have no phases."""
    steps, values = np.asarray(steps, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if len(steps) != len(values) or np.any(np.diff(steps) <= 0):
        raise InputError("Checkpoints must be at increasing steps, each once.")
    if not np.isfinite(values).all():
        raise InputError(
            "The course over the checkpoints has missing values; phases need a number at every checkpoint."
        )
    if len(values) < 4 or np.ptp(values) <= 1e-9 * np.abs(values).max():
        return []
    # numerical noise is never zero; without a floor a perfect course would be cut at every rounding
    floor = 1e-6 * (np.ptp(values) + 1e-12)
    known = np.broadcast_to(0.0 if error is None else np.asarray(error, np.float64), values.shape)
    given = np.maximum(known, floor) if known.any() else known
    most = min(max_phases, len(values) - 1)
    least = max(least_turn(values, given, max_phases=most, rng=rng), floor)
    if np.ptp(values) <= least:
        return []
    found, rising = turns(values, least)
    count = min(len(found) + 1, most)
    cuts, rising, fitted = _best(_costs(values), values, count, rising)
    size, alike = _left_over(fitted, values, max(_white(values), float(given.mean())))
    redrawn = [
        _best(_costs(again), again, count, rising)[0]
        for again in fitted + correlated(size, alike, len(values), draws if count > 1 else 0, rng)
    ]
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


def named_with_alpha(
    found: list[Phase], alpha: np.ndarray, *, error: np.ndarray | float | None = None, rng: np.random.Generator
) -> list[str]:
    """Names of the phases in which alpha [t] has its say: bare where it goes against RankMe by more than its own jitter
    does (`least_turn`), as in the paper; else with what it does instead."""
    alpha = np.asarray(alpha, np.float64)
    if not np.isfinite(alpha).all():
        return [f"{phase.name} (by RankMe alone: no alpha)" for phase in found]
    known = np.broadcast_to(0.0 if error is None else np.asarray(error, np.float64), alpha.shape)
    least = max(_least_change(alpha, known, rng), 1e-9 * np.abs(alpha).max()) if found else 0.0
    names = []
    for phase in found:
        against = (alpha[phase.start] - alpha[phase.end]) * (1 if phase.rises else -1)
        other = " (alpha goes the other way)" if against < -least else " (alpha does not follow)"
        names.append(phase.name + ("" if against > least else other))
    return names


def _least_change(alpha: np.ndarray, error: np.ndarray, rng: np.random.Generator) -> float:
    """`least_turn`; of a course too short to tell how much neighbours go together, at least that of much (0.8)."""
    turn = least_turn(alpha, error, max_phases=6, rng=rng)
    if FEW <= len(alpha) < SHORT:
        together = 0.8
        size = _white(alpha) * np.sqrt(6 / (6 - 8 * together + 2 * together**2))
        turn = max(turn, _fall(size, together, len(alpha), rng))
    return turn


def _interval(steps, redrawn, k, level):
    if not redrawn:
        return float("nan"), float("nan")
    at = steps[[cuts[k] for cuts in redrawn]]
    low, high = percentiles(at, level, of_the_values=True)
    return float(low), float(high)


def least_turn(values: np.ndarray, error: np.ndarray, *, max_phases: int, rng: np.random.Generator) -> float:
    """How far a course must turn back for the turn to be one: what the jitter of a course without a turn does in one of
    a hundred cases, by simulation. The jitter is that of the course itself, in size and in how much neighbours go
    together (two estimates, the larger counts), and at least `error`, the standard errors [t] of its values.

    Fewer than FEW checkpoints say nothing of their jitter: there `error` is all there is (where it is 0, not known, the
    second differences). What is left of a fit in as many pieces as may be has the least of the course in it; fewer
    turns make the fit coarser and the jitter larger, until both agree."""
    if len(values) < FEW and error.any():
        return _fall(float(error.mean()), 0.0, len(values), rng)
    white, costs = max(_white(values), float(error.mean())), _costs(values)
    across = _fall(*_second_differences(values, white), len(values), rng)
    pieces = max_phases
    while True:
        turn = max(across, _fall(*_left_over(_best(costs, values, pieces)[2], values, white), len(values), rng))
        found = len(turns(values, turn)[0]) + 1
        if found >= pieces or pieces == 1:
            return turn
        pieces = found


def turns(values: np.ndarray, least: float) -> tuple[list[int], bool]:
    """Where a course turns back by more than `least`, and whether it rises before the first turn."""
    found, direction, high, low = [], 0, 0, 0
    for i in range(1, len(values)):
        high = i if direction >= 0 and values[i] > values[high] else high
        low = i if direction <= 0 and values[i] < values[low] else low
        if direction >= 0 and values[high] - values[i] > least:
            if direction or values[high] - values[: high + 1].min() > least:
                found.append(high)
            direction, low = -1, high + int(values[high : i + 1].argmin())
        elif direction <= 0 and values[i] - values[low] > least:
            if direction or values[: low + 1].max() - values[low] > least:
                found.append(low)
            direction, high = 1, low + int(values[low : i + 1].argmax())
    rises = (direction > 0) ^ (len(found) % 2 == 1) if direction else bool(values[-1] > values[0])
    return found, rises


def _white(values: np.ndarray) -> float:
    """Standard deviation of the jitter if neighbours have nothing in common: of second differences, whatever the
    course's own bends."""
    second = np.abs(np.diff(values, 2))
    return float(np.median(second) / 0.6745 / np.sqrt(6))


def _second_differences(values: np.ndarray, white: float) -> tuple[float, float]:
    """(standard deviation, correlation of neighbours) of the jitter from second differences over one and over several
    checkpoints, as far as a course is long enough for them to be jitter and no course."""

    def spread(lag: int) -> float:
        return (np.median(np.abs(values[2 * lag :] - 2 * values[lag:-lag] + values[: -2 * lag])) / 0.6745) ** 2

    lag = 1
    while 2 * lag <= len(values) / 30:
        lag *= 2
    if lag == 1:
        return white, 0.0
    grid = np.linspace(0, 0.9, 91)  # of what correlation, the ratio of the two spreads is this
    ratio = (3 - 4 * grid**lag + grid ** (2 * lag)) / (3 - 4 * grid + grid**2)
    alike = grid[min(int(np.searchsorted(ratio, spread(lag) / max(spread(1), 1e-300))), len(grid) - 1)]
    return max(white, float(np.sqrt(spread(1) / (6 - 8 * alike + 2 * alike**2)))), float(alike)


def _left_over(fitted: np.ndarray, values: np.ndarray, white: float) -> tuple[float, float]:
    """(standard deviation, correlation of neighbours) of what a fit leaves, each with room for what the fit took."""
    t = len(values)
    left, levels = values - fitted, min(len(np.unique(np.round(fitted, 12))), 2 * t / 3)
    size = float(np.sqrt((left**2).sum() / max(t - levels, 2)))
    alike = float((left[1:] * left[:-1]).sum() / max((left**2).sum(), 1e-300))
    alike += (1 + 3 * alike) / t + np.sqrt(max(1 - alike**2, 0.05) / t)
    return max(size, white), float(np.clip(alike, 0, 0.95))


def _fall(size: float, alike: float, t: int, rng: np.random.Generator) -> float:
    """What jitter around a level course falls from its highest point so far, at most, in 99 of 100 cases."""
    jitter = correlated(size, alike, t, 400, rng)
    return float(np.quantile((np.maximum.accumulate(jitter, 1) - jitter).max(1), 0.99))


def correlated(size: float, alike: float, t: int, times: int, rng: np.random.Generator) -> np.ndarray:
    """Jitter [times, t] of that standard deviation, whose neighbours correlate by `alike` (first-order
    autoregressive)."""
    out = rng.standard_normal((times, t))
    for i in range(1, t):
        out[:, i] = alike * out[:, i - 1] + np.sqrt(1 - alike**2) * out[:, i]
    return size * out


def _best(costs: Costs, values: np.ndarray, count: int, rising: bool | None = None):
    """The cut of least error into `count` pieces, the first of which rises or falls as told or as is better: (cut
    points [count + 1], whether the first piece rises, fitted values)."""
    found = [(up, _cut(costs, len(values), count, up)) for up in ((True, False) if rising is None else (rising,))]
    up, (_, cuts) = min((one for one in found if one[1] is not None), key=lambda one: one[1][0])
    fitted = np.empty(len(values))
    for k in range(count):
        piece = slice(cuts[k], cuts[k + 1] + 1)
        fitted[piece] = isotonic_regression(values[piece], increasing=up ^ (k % 2 == 1)).x
    return cuts, up, fitted


def _cut(costs: Costs, t: int, count: int, first_rising: bool) -> tuple[float, list[int]] | None:
    """Least cost of `count` alternating pieces that share their boundary points, by dynamic programming; None where
    they do not fit."""
    if count > t - 1:
        return None
    total = costs[first_rising][0].copy()  # best cost of one piece from 0 to j
    total[0] = np.inf
    back = []
    for k in range(1, count):
        piece = costs[first_rising ^ (k % 2 == 1)]
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


def _costs(values: np.ndarray) -> Costs:
    """Whether non-decreasing -> [i, j]: squared error of the best such fit to values i…j; infinite for j < i."""
    return {up: _rising_costs((values if up else -values).tolist()) for up in (True, False)}


def _rising_costs(values: list[float]) -> np.ndarray:
    """The same of one direction: from every i on, values are pooled with those before them while they are lower."""
    out = np.full((len(values), len(values)), np.inf)
    for i in range(len(values)):
        blocks: list[tuple[int, float, float]] = []  # values pooled, their mean, their squared error around it
        error, row = 0.0, []
        for value in values[i:]:
            n, mean, own = 1, value, 0.0
            while blocks and blocks[-1][1] >= mean:
                m, left, left_own = blocks.pop()
                error -= left_own
                own += left_own + (left - mean) ** 2 * m * n / (m + n)
                n, mean = m + n, (m * left + n * mean) / (m + n)
            blocks.append((n, mean, own))
            error += own
            row.append(max(error, 0.0))
        out[i, i:] = row
    return out
