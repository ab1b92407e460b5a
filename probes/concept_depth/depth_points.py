"""Depth of a concept from its accuracy curve over layers: jump point and converging points of Jin et al. (arXiv
2404.07066, §4.3), and which of them the curves of shuffled labels do not show.

α_i is the test accuracy of layer i of d, β_i = α_i / α_{i-1} for i = 1…d-1. Points are relative depths i/d; NaN where
there is none. Read literally, the paper's converging point is the *last* flat step, which is (d-1)/d for almost every
curve, so the two readings that its figures fit are given beside it.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from probes.concept_depth.above_chance import (
    CEILING,
    FEWEST_FOR_POINTS,
    FOUND,
    HAS_NONE,
    LEVEL,
    NEVER,
    NOT_JUDGED,
    NULL_TOO,
    UNSURE,
    AboveChance,
    p_of_rank,
)
from workbench.stats.intervals import percentiles, wilson

JUMP = 1.1
FLAT = 0.03
COMPREHENSION = 0.7  # accuracy from which the paper says that a model understands a concept (§5.1)
POINTS = ("jump", "converge_literal", "converge_stable", "converge_after_jump", "comprehension")
DEPTH = {
    "dataset": pl.String,
    "condition": pl.String,
    **{f"{name}{end}": pl.Float64 for name in POINTS for end in ("", "_low", "_high", "_share", "_by_rule")},
    **{f"{name}_says": pl.String for name in POINTS},
    "jump_p": pl.Float64,
    "peak_accuracy": pl.Float64,
    "peak_low": pl.Float64,
    "peak_high": pl.Float64,
    "peak_control": pl.Float64,
    "peak_layer": pl.Int64,
    "peak_layer_low": pl.Int64,
    "peak_layer_high": pl.Int64,
    "layers_above_chance": pl.Int64,
    "false_positive_rate": pl.Float64,
    "false_positive_low": pl.Float64,
    "false_positive_high": pl.Float64,
    "n_shuffles": pl.Int64,
    "n_layers": pl.Int64,
    "n": pl.Int64,
    "n_test": pl.Int64,
}
CONTROLS = {
    "dataset": pl.String,
    "condition": pl.String,
    "draw": pl.Int64,
    "jump": pl.Float64,
    "peak_accuracy": pl.Float64,
}


def points(accuracy: np.ndarray) -> dict[str, np.ndarray]:
    """The four points, and comprehension (first layer at 0.7), of curves [..., d] → each [...], relative depth or NaN.

    jump: min i/d with β_i ≥ 1.1 · converge_literal: max i/d with |β_i - 1| < 0.03 · converge_stable: min i/d from which
    on every step is flat · converge_after_jump: first flat step after the jump (of all steps where there is no
    jump)."""
    curves = np.asarray(accuracy, dtype=np.float64)
    d = curves.shape[-1]
    beta = _steps(curves)
    jumps = beta >= JUMP - 1e-12
    flat = np.abs(beta - 1) < FLAT
    step = np.arange(1, d)
    jump = _first(jumps, step)
    stable = np.flip(np.logical_and.accumulate(np.flip(flat, -1), -1), -1)
    after = flat & (step > np.nan_to_num(jump, nan=0.0)[..., None])
    literal = np.where(flat.any(-1), np.where(flat, step, 0).max(-1, initial=0), np.nan)
    reached = _first(curves >= COMPREHENSION, np.arange(d))
    return {
        "jump": jump / d,
        "converge_literal": literal / d,
        "converge_stable": _first(stable, step) / d,
        "converge_after_jump": _first(after, step) / d,
        "comprehension": reached / d,
    }


def _steps(curves: np.ndarray) -> np.ndarray:
    """β of curves [..., d], [..., d - 1]."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return curves[..., 1:] / curves[..., :-1]


def _first(where: np.ndarray, index: np.ndarray) -> np.ndarray:
    if where.shape[-1] == 0:
        return np.full(where.shape[:-1], np.nan)
    return np.where(where.any(-1), index[where.argmax(-1)], np.nan)


def at_ceiling(curve: np.ndarray) -> bool:
    """Whether a curve has nowhere to go from layer 0: too high everywhere for a step of 10 %, or flat from the first
    step on."""
    return bool((curve > 1 / JUMP).all() or (np.abs(_steps(curve) - 1) < FLAT).all())


def interval(draws: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """(low, high, share): percentile interval of a point over bootstrap draws [k] among those that have it, and how
    many have it.

    NaN, NaN where fewer than half have it: an interval of the others would look surer than the data are."""
    found = draws[~np.isnan(draws)]
    share = len(found) / len(draws)
    if share < 0.5:
        return float("nan"), float("nan"), share
    low, high = percentiles(found, level, of_the_values=True)
    return float(low), float(high), share


def row_of_points(curve: np.ndarray, resampled: np.ndarray | None, control: np.ndarray, judged: AboveChance) -> dict:
    """Jump, converging points and comprehension of a curve [L], with intervals over resampled curves [draws, L] (None:
    too few clusters for any), and what may be said of them by the curves on shuffled labels, control [shuffles, L].

    `jump`, …: the point where it stands (and, where there are too few shuffled courses to judge, as the rule has it);
    `jump_by_rule`, …: what the rule gives, whatever the null; `jump_says`, …: that it was found, or why not. A jump
    stands where its step is larger than the largest of shuffled courses (p at most 0.05 by rank) and ends in a layer
    above chance. Nothing stands that fewer than 95 % of the resampled curves have: on other texts it might not be
    there."""
    row: dict = {}
    value = points(curve)
    draws = points(resampled) if resampled is not None else None
    for name in POINTS:
        said = _says(name, float(value[name]), curve, control, judged)
        none = (float("nan"),) * 3
        low, high, share = interval(draws[name]) if draws is not None else none
        if said in (FOUND, NOT_JUDGED) and share < 1 - LEVEL:
            said = UNSURE
        stands = said in (FOUND, NOT_JUDGED)
        row[name] = float(value[name]) if stands else float("nan")
        row[f"{name}_by_rule"] = float(value[name])
        row[f"{name}_low"], row[f"{name}_high"] = (low, high) if stands else none[:2]
        row[f"{name}_share"], row[f"{name}_says"] = share, said
    row["jump_p"] = _jump_p(float(value["jump"]), curve, control)
    fired = int((~np.isnan(points(control)["jump"])).sum()) if len(control) else 0
    row["false_positive_rate"] = fired / len(control) if len(control) else float("nan")
    row["false_positive_low"], row["false_positive_high"] = wilson(fired, len(control))
    above = int(judged.above.sum()) if judged.judged else None
    return row | {"layers_above_chance": above, "n_shuffles": len(control), "n_layers": len(curve)}


def _says(name: str, depth: float, curve: np.ndarray, control: np.ndarray, judged: AboveChance) -> str:
    """Whether a point of a curve was found, or why not."""
    if judged.judged and not judged.above.any():
        return NEVER
    if judged.judged and judged.above[0] and at_ceiling(curve):
        return CEILING
    if np.isnan(depth):
        return HAS_NONE
    if len(control) < FEWEST_FOR_POINTS:
        return NOT_JUDGED
    shown = not judged.above[round(depth * len(curve))]
    if name == "jump":
        shown |= _jump_p(depth, curve, control) > LEVEL
    if name == "comprehension":
        shown |= p_of_rank(COMPREHENSION, control.max(1)) > LEVEL
    return NULL_TOO if shown else FOUND


def _jump_p(depth: float, curve: np.ndarray, control: np.ndarray) -> float:
    """How many shuffled courses have a step as large as the one of the jump."""
    if np.isnan(depth) or not len(control):
        return float("nan")
    layer = round(depth * len(curve))
    return p_of_rank(curve[layer] / curve[layer - 1], _steps(control).max(1))


def control_table(where: dict, control: np.ndarray, peaks: np.ndarray) -> pl.DataFrame:
    """One row per course on shuffled labels, control [shuffles, L], with its held-out peak [shuffles]: the columns of
    CONTROLS."""
    rows = [
        where | {"draw": draw, "jump": float(points(course)["jump"]), "peak_accuracy": float(peak)}
        for draw, (course, peak) in enumerate(zip(control, peaks))
    ]
    return pl.DataFrame(rows, schema=CONTROLS)
