"""Scores of heads beside their control, and which heads are above it: n is the number of sequences.

A head is named for a score where the score is above its control by at least LEAST, with a p, adjusted over all heads of
the model (Benjamini and Hochberg), below RATE. The rules are in docs/methods/statistics.md.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl

from workbench.stats.clusters import (
    FEWEST,
    Clusters,
    clusters_of,
    false_discovery,
    mean_interval,
    p_of_zero,
    share_interval,
)
from workbench.stats.intervals import Ends

RATE = 0.05  # of the heads that are named, at most so many are wrong, in expectation
LEAST = {  # the smallest difference that names a head: a tenth of the attention; logits
    "induction": 0.1,
    "previous_token": 0.1,
    "duplicate_token": 0.1,
    "first_token": 0.1,
    "copying": 0.1,
}
SHARES = tuple(name for name in LEAST if name != "copying")  # attention, between 0 and 1
FLAT = 1e-9  # an interval of no width
PARTS = ("control", "difference", "low", "high", "p_adjusted", "above", "n")


def columns(values: Mapping[str, np.ndarray], controls: Mapping[str, np.ndarray]) -> dict[str, pl.Series]:
    """Columns of a table with a row per head from scores of every sequence and of its control, each [sequences,
    layers, heads], NaN where a score applies to no token of a sequence. Of ``induction``: the score, and
    ``induction_control``, ``_difference`` with its 95 % interval ``_low`` to ``_high``, ``_p_adjusted``, ``_above`` and
    ``_n`` (of sequences that have a control)."""
    found: dict[str, pl.Series] = {}
    for name, value in values.items():
        found[name] = _column(_mean(value))
        if name in controls:
            found |= {f"{name}_{part}": one for part, one in _against(name, value, controls[name]).items()}
    return found


def _against(name: str, value: np.ndarray, control: np.ndarray) -> dict[str, pl.Series]:
    there = ~np.isnan(value - control).any(axis=(1, 2))
    off = (value - control)[there]
    n = len(off)
    shape = value.shape[1:]
    nothing = np.full(shape, np.nan)
    low, high, p = nothing, nothing, nothing
    if n >= FEWEST:
        sequences = clusters_of(np.arange(n))
        low, high = _interval(value[there], control[there], sequences, share=name in SHARES)
        p = false_discovery(p_of_zero(off, sequences))
    difference = _mean(off) if n else nothing
    above = (p < RATE) & (difference >= LEAST[name])
    numbers = (_mean(control[there]) if n else nothing, difference, low, high, p)
    return {part: _column(one) for part, one in zip(PARTS, numbers)} | {
        "above": pl.Series(above.ravel(), dtype=pl.Boolean),
        "n": pl.Series(np.full(above.size, n), dtype=pl.Int64),
    }


def _interval(value: np.ndarray, control: np.ndarray, sequences: Clusters, *, share: bool) -> Ends:
    """Student's t of the differences; where all of them are the same, the hybrid of the two shares' own intervals
    (Newcombe), which has a width."""
    low, high = mean_interval(value - control, sequences)
    if not share:
        return low, high
    (a, b), (c, d) = share_interval(value, sequences), share_interval(control, sequences)
    one, other = value.mean(0), control.mean(0)
    flat = high - low < FLAT
    low = np.where(flat, one - other - np.hypot(one - a, d - other), low)
    high = np.where(flat, one - other + np.hypot(b - one, other - c), high)
    return low, high


def _mean(values: np.ndarray) -> np.ndarray:
    """Over the sequences that have the score; NaN where none has."""
    there = ~np.isnan(values).any(axis=(1, 2))
    return values[there].mean(0) if there.any() else np.full(values.shape[1:], np.nan)


def _column(values: np.ndarray) -> pl.Series:
    return pl.Series(np.asarray(values, np.float64).ravel(), dtype=pl.Float64).fill_nan(None)


def has_control(frame: pl.DataFrame, column: str) -> bool:
    """Whether a table says of a score which heads are above its control."""
    return f"{column}_above" in frame.columns


def in_words(frame: pl.DataFrame, column: str) -> str:
    """Which heads are above their control in a score, or that none is, with what that rests on, in one sentence."""
    named = frame.filter(pl.col(f"{column}_above")).sort(f"{column}_difference", descending=True, maintain_order=True)
    n, heads, what = int(frame[f"{column}_n"].max() or 0), frame.height, column.replace("_", " ")
    if n < FEWEST:
        return (
            f"None is named for {what}: that takes {FEWEST} sequences with a control, and there "
            f"{'is' if n == 1 else 'are'} {n}."
        )
    least = f"by {LEAST[column]:g} or more (n = {n} sequences, {RATE:.0%} false discovery rate over {heads} heads"
    if named.is_empty():
        return f"None: no head's {what} is above its control {least})."
    wrong = f"{RATE * named.height:.2g} expected to be false)"
    names = ", ".join(f"{a}.{b}" for a, b in named.select("layer", "head").head(8).iter_rows())
    more = f" and {named.height - 8} more" if named.height > 8 else ""
    return f"Above the control in {what} {least}, at most {wrong}: {names}{more}."
