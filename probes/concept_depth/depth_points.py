"""Depth of a concept from its accuracy curve over layers: jump point and converging points of Jin et al. (arXiv
2404.07066, §4.3).

α_i is the test accuracy of layer i of d, β_i = α_i / α_{i-1} for i = 1…d-1. Points are relative depths i/d; NaN where
there is none. Read literally, the paper's converging point is the *last* flat step, which is (d-1)/d for almost every
curve, so the two readings that its figures fit are given beside it.
"""

from __future__ import annotations

import numpy as np

from workbench.stats.intervals import percentiles

JUMP = 1.1
FLAT = 0.03
COMPREHENSION = 0.7  # accuracy from which the paper says that a model understands a concept (§5.1)


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
