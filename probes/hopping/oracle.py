"""What back-patching solves: pair by pair, by any pair (an oracle, which stands beside that of random donors), and by
the one pair that was chosen on other questions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import polars as pl

from probes.hopping.back_patching import pairs
from probes.hopping.config import POSITIONS, SPLITS, Config
from probes.hopping.labels import QuestionSet
from workbench.core.context import Context
from workbench.stats.clusters import cluster_mean, cluster_share, clusters_of, share_interval

EITHER = "either"
BACKPATCH = {
    "position": pl.String,
    "source_layer": pl.Int64,
    "target_layer": pl.Int64,
    "solved": pl.Float64,
    "ci_low": pl.Float64,
    "ci_high": pl.Float64,
    "control": pl.Float64,
    "n": pl.Int64,
    "rows": pl.Int64,
    "preserved": pl.Float64,
    "preserved_low": pl.Float64,
    "preserved_high": pl.Float64,
    "preserved_control": pl.Float64,
    "preserved_n": pl.Int64,
    "preserved_rows": pl.Int64,
}
ENDS = ("", "_low", "_high")
ORACLE = {"split": pl.String, "position": pl.String, "pairs": pl.Int64}
ORACLE |= {f"{name}{end}": pl.Float64 for name in ("solved", "control", "difference") for end in ENDS}
ORACLE |= {"n": pl.Int64, "rows": pl.Int64}
BEST = {"position": pl.String, "source_layer": pl.Int64, "target_layer": pl.Int64}
BEST |= {"dev_solved": pl.Float64, "dev_n": pl.Int64}
BEST |= {f"{name}{end}": pl.Float64 for name in ("solved", "control", "difference") for end in ENDS}
BEST |= {"n": pl.Int64, "rows": pl.Int64}
Solved = Sequence[np.ndarray]  # of each set [n, 1 + controls, 2 positions, L, L]; −1 where nothing was patched


def pair_table(config: Config, chosen: Sequence[QuestionSet], solved: Solved) -> pl.DataFrame:
    """A row for every position and pair of layers: the share of the failed questions that it solves and that random
    donors solve, and of the answered ones whose answer it preserves."""
    rows = []
    for p, name in enumerate(POSITIONS):
        if name not in config.positions:
            continue
        sides = [_sides(own, found[:, :, p]) for own, found in zip(chosen, solved)]
        if all(side is None for side in sides):
            continue
        for s, t in pairs(solved[0].shape[-1]):
            correct, incorrect = (_cell(side, s, t) for side in sides)
            rows.append((name, s, t, *incorrect, *correct))
    return pl.DataFrame(rows, schema=BACKPATCH, orient="row").with_columns(pl.selectors.float().fill_nan(None))


def _sides(own: QuestionSet, found: np.ndarray) -> tuple | None:
    """Shares and their ends [L, L], the control [L, L] and the clusters of found [n, 1 + controls, L, L]; None where
    nothing was patched."""
    rows = (found[:, 0] >= 0).any((1, 2)) if len(own) else np.zeros(0, bool)
    if not rows.any():
        return None
    clusters = clusters_of(own.names[rows])
    hit = (found[rows, 0] > 0).astype(np.float64)
    low, high = share_interval(hit, clusters)
    control, there = found[rows, 1:], found[rows, 1:] >= 0
    count = there.sum((0, 1))
    rate = np.divide((control > 0).sum((0, 1)), count, out=np.full(count.shape, math.nan), where=count > 0)
    return hit.mean(0), low, high, rate, clusters


def _cell(side: tuple | None, s: int, t: int) -> tuple:
    if side is None:
        return (math.nan,) * 4 + (0, 0)
    return (*(float(part[s, t]) for part in side[:4]), side[4].n, side[4].rows)


def oracle_table(config: Config, chosen: Sequence[QuestionSet], solved: Solved) -> pl.DataFrame:
    """Of every set and position the share of questions of which any pair names the answer, beside that of one random
    donor with as many pairs, and the difference, question by question."""
    rows = []
    for own, found in zip(chosen, solved):
        for name in (*config.positions, *([EITHER] if len(config.positions) > 1 else [])):
            at = [POSITIONS.index(p) for p in (config.positions if name == EITHER else (name,))]
            there = (found[:, 0][:, at] >= 0).any((2, 3)).all(1) if len(own) else np.zeros(0, bool)
            if not there.any():
                continue
            any_pair = (found[there][:, :, at] > 0).any((2, 3, 4))  # [n, 1 + controls]
            drawn = (found[there][:, :, at] >= 0).any((2, 3, 4))
            size = len(pairs(found.shape[-1])) * len(at)
            names = own.names[there]
            rows.append((own.split, name, size, *_beside(any_pair, drawn, names)))
    return pl.DataFrame(rows, schema=ORACLE, orient="row").with_columns(pl.selectors.float().fill_nan(None))


def _beside(hit: np.ndarray, there: np.ndarray, names: np.ndarray) -> tuple:
    """Share, control, difference, each with its ends, n and rows; of hit [n, 1 + controls], measured where `there`."""
    own = cluster_share(hit[:, 0], names)
    ends = (own.value, own.low, own.high)
    count = there[:, 1:].sum(1)
    some = count > 0
    if not some.any():
        return (*ends, *(math.nan,) * 6, own.n, own.rows)
    control = (hit[:, 1:] & there[:, 1:]).sum(1)[some] / count[some]
    other = cluster_share(control, names[some])
    apart = cluster_mean(hit[some, 0] - control, names[some])
    reach = np.clip([apart.value, apart.low, apart.high], -1, 1).tolist()  # of a difference of shares
    return (*ends, other.value, other.low, other.high, *reach, own.n, own.rows)


def best_pair(config: Config, context: Context, chosen: Sequence[QuestionSet], solved: Solved) -> pl.DataFrame:
    """For every position the pair that solves most of the failed questions of some bridges (of equals the one that puts
    the state earliest), and what it solves of those of the other bridges; no row where one side has none."""
    own, found = chosen[SPLITS.index("incorrect")], solved[SPLITS.index("incorrect")]
    rows = []
    for name in config.positions:
        here = found[:, :, POSITIONS.index(name)]
        there = (here[:, 0] >= 0).any((1, 2)) if len(own) else np.zeros(0, bool)
        if not there.any():
            continue
        here, names = here[there], own.names[there]
        dev = np.isin(names, dev_bridges(config, context, names))
        if dev.all() or not dev.any() or here.shape[-1] < 2:
            continue
        rates = (here[dev, 0] > 0).mean(0)
        s, t = max(pairs(here.shape[-1]), key=lambda pair: (rates[pair], -pair[1], -pair[0]))
        rest = here[~dev][:, :, s, t]
        sizes = (float(rates[s, t]), len(np.unique(names[dev])))
        rows.append((name, s, t, *sizes, *_beside(rest > 0, rest >= 0, names[~dev])))
    return pl.DataFrame(rows, schema=BEST, orient="row").with_columns(pl.selectors.float().fill_nan(None))


def dev_bridges(config: Config, context: Context, names: np.ndarray) -> np.ndarray:
    """The bridges on which the best pair is chosen; at least one, and not all where there are several."""
    bridges = np.unique(names)
    size = min(max(1, round(config.dev_share * len(bridges))), max(1, len(bridges) - 1))
    return context.rng("dev").permutation(bridges)[:size]
