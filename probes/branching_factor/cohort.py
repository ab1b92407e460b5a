"""Windows of the output over one cohort: the same samples of the same prompts in every window.

The window curve over whatever is still going changes its prompts as it goes: where short answers end early, it rises
though no output does. The cohort is fixed: samples that last to one horizon, of the prompts that have enough of them.
Whether the branching factor falls or rises over the generation is read from the slope of each prompt of the cohort.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from probes.branching_factor.bf_intervals import paired_mean
from probes.branching_factor.estimators import Profile, window_curve
from workbench.stats.clusters import FEWEST, clusters_of, p_of_zero
from workbench.stats.intervals import Estimate

SHUFFLES = 4000  # orders of the windows
WINDOWS = 5  # of fewer no order is rare: two of the 24 of four windows have the largest slope
UNIT = 10  # tokens to which a slope refers
SHARE = 5  # a prompt is in the cohort where one sample in so many is (10 of 50, as the windows of the official code)


@dataclass(frozen=True, eq=False)
class Cohort:
    """``curve`` [P, windows]: BF in the windows before the horizon, NaN for prompts that are not in the cohort;
    ``tokens``: the horizon (0: there is no cohort); ``prompts``, ``samples``: how many are in it."""

    curve: np.ndarray
    tokens: int
    prompts: int
    samples: int


def cohort_of(profile: Profile, window: int, prompts: Sequence[int], *, tokens: int = 0) -> Cohort:
    """The samples that last ``tokens`` (0: the horizon at which the cohort holds most tokens) and their window curve,
    of prompts of which a fifth of the samples, and two, last so long. ``prompts`` [P]: which prompt a row is of. No
    cohort of fewer than five prompts, and none that spans fewer than two windows."""
    names, lengths = np.asarray(prompts), profile.lengths
    need = max(2, lengths.shape[1] // SHARE)

    def lasting(windows: int) -> np.ndarray:
        there = lengths >= windows * window
        return there & (there.sum(1) >= need)[:, None]

    def size(windows: int) -> tuple[int, int]:
        there = lasting(windows)
        return len(np.unique(names[there.any(1)])), int(there.sum()) * windows

    longest = int(lengths.max()) // window
    wanted = [min(tokens // window, longest + 1)] if tokens else range(2, longest + 1)
    sizes = {windows: size(windows) for windows in wanted}
    sizes = {windows: held for windows, (count, held) in sizes.items() if windows >= 2 and count >= FEWEST}
    if not sizes:
        return Cohort(np.full((len(lengths), 0), np.nan), 0, 0, 0)
    windows = max(sizes, key=lambda windows: (sizes[windows], windows))
    inside, horizon = lasting(windows), windows * window
    there = inside[..., None] & (np.arange(profile.entropy.shape[2]) < horizon)
    kept = Profile(
        np.where(inside, horizon, 0),
        *(
            np.where(there, getattr(profile, name), np.nan)[..., :horizon]
            for name in list(profile.__dataclass_fields__)[1:]
        ),
    )
    curve = window_curve(kept, window, least=need)
    return Cohort(curve, horizon, size(windows)[0], int(inside.sum()))


@dataclass(frozen=True)
class Course:
    """Change of log BF per ten tokens over the cohort, with the two-sided ``p`` of no change on average over prompts,
    and ``p_order``, that of so large a change where the windows stand in any order."""

    slope: Estimate
    p: float
    p_order: float


def course_of(cohort: Cohort, window: int, prompts: Sequence[int], rng: np.random.Generator) -> Course:
    """The mean over the cohort's prompts of the least-squares slope of each one's own curve, with t over prompts.

    Two nulls: slopes that are as often above zero as below; and the same windows in another order, the same for all
    prompts (NaN for fewer than five windows), since a curve that goes up and down alike in all of them has a slope, and
    no direction."""
    if not cohort.tokens:
        return Course(Estimate(np.nan, np.nan, np.nan, 0), np.nan, np.nan)
    logs = np.log(cohort.curve)
    known = np.isfinite(logs).all(1)
    logs, names = logs[known], np.asarray(prompts)[known]
    at = np.arange(logs.shape[1]) * window / UNIT
    at = at - at.mean()
    slopes = logs @ at / (at @ at)
    mean = logs.mean(0) @ at
    orders = rng.permuted(np.tile(at, (SHUFFLES, 1)), axis=1)
    p_order = (1 + (np.abs(orders @ logs.mean(0)) >= abs(mean) - 1e-12).sum()) / (1 + SHUFFLES)
    p_order = p_order if logs.shape[1] >= WINDOWS else np.nan
    return Course(paired_mean(slopes, names), float(p_of_zero(slopes, clusters_of(names))), float(p_order))


def words_of(slope: float | None, p: float | None, p_order: float | None) -> str:
    """What may be said of a course: it falls or rises only where it is told from both nulls. ``p`` and ``p_order`` are
    adjusted for how many conditions there are."""
    if slope is None or p is None or not np.isfinite(p):
        return "—, no cohort of five prompts"
    if p >= 0.05:
        return "—, no slope told from zero"
    if p_order is None or not np.isfinite(p_order):
        return "—, too few windows to tell a direction"
    if p_order >= 0.05:
        return "—, up and down without a direction"
    return "falls" if slope < 0 else "rises"
