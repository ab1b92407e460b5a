"""Depth of a concept from its accuracy curve over layers: jump point and converging points of Jin et al. (arXiv
2404.07066, §4.3).

α_i is the test accuracy of layer i of d, β_i = α_i / α_{i-1} for i = 1…d-1. Points are relative depths i/d; NaN where
there is none. Read literally, the paper's converging point is the *last* flat step, which is (d-1)/d for almost every
curve, so the two readings that its figures fit are given beside it.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from workbench.stats.intervals import percentiles, wilson

JUMP = 1.1
FLAT = 0.03
COMPREHENSION = 0.7  # accuracy from which the paper says that a model understands a concept (§5.1)
POINTS = ("jump", "converge_literal", "converge_stable", "converge_after_jump", "comprehension")
DEPTH = {
    "dataset": pl.String,
    "condition": pl.String,
    **{f"{name}{end}": pl.Float64 for name in POINTS for end in ("", "_low", "_high", "_share")},
    "peak_accuracy": pl.Float64,
    "peak_low": pl.Float64,
    "peak_high": pl.Float64,
    "peak_layer": pl.Int64,
    "peak_layer_low": pl.Int64,
    "peak_layer_high": pl.Int64,
    "false_positive_rate": pl.Float64,
    "false_positive_low": pl.Float64,
    "false_positive_high": pl.Float64,
    "n_shuffles": pl.Int64,
    "n_layers": pl.Int64,
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
    with np.errstate(invalid="ignore", divide="ignore"):
        beta = curves[..., 1:] / curves[..., :-1]
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


def _first(where: np.ndarray, index: np.ndarray) -> np.ndarray:
    if where.shape[-1] == 0:
        return np.full(where.shape[:-1], np.nan)
    return np.where(where.any(-1), index[where.argmax(-1)], np.nan)


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


def row_of_points(curve: np.ndarray, resampled: np.ndarray, control: np.ndarray, n_test: int) -> dict:
    """Jump, converging points, comprehension and peak of a curve [L] with intervals over resampled curves [draws, L],
    and how often the jump rule fires on shuffled labels, control [shuffles, L]: the columns of DEPTH but the first
    two."""
    row: dict = {}
    value, draws = points(curve), points(resampled)
    for name in POINTS:
        row[name] = float(value[name])
        row[f"{name}_low"], row[f"{name}_high"], row[f"{name}_share"] = interval(draws[name])
    peak = int(curve.argmax())
    # the maximum of resampled curves is biased upward: the interval is that of the layer where the curve peaks
    row |= {"peak_accuracy": float(curve[peak]), "peak_layer": peak}
    row["peak_low"], row["peak_high"] = map(float, np.quantile(resampled[:, peak], [0.025, 0.975]))
    row["peak_layer_low"], row["peak_layer_high"] = map(
        int, np.quantile(resampled.argmax(1), [0.025, 0.975], method="nearest")
    )
    fired = int((~np.isnan(points(control)["jump"])).sum()) if len(control) else 0
    row["false_positive_rate"] = fired / len(control) if len(control) else float("nan")
    row["false_positive_low"], row["false_positive_high"] = wilson(fired, len(control))
    return row | {"n_shuffles": len(control), "n_layers": len(curve), "n_test": n_test}


def control_table(where: dict, control: np.ndarray) -> pl.DataFrame:
    """One row per course on shuffled labels, control [shuffles, L]: the columns of CONTROLS."""
    rows = [
        where | {"draw": draw, "jump": float(points(course)["jump"]), "peak_accuracy": float(course.max())}
        for draw, course in enumerate(control)
    ]
    return pl.DataFrame(rows, schema=CONTROLS)
