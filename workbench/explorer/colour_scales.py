"""Where values lie on a colour scale: in proportion, by their root, or by their rank, and which of these shows most.

On a scale in proportion, one large value leaves all others the colour of nothing. The root spreads what is small, the
rank spreads everything evenly; both keep the order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from workbench.core.errors import InputError
from workbench.core.wording import number

AUTOMATIC = "automatic"
SCALES = (AUTOMATIC, "linear", "root", "rank")
CROWDED = 1 / 8  # of the scale: its two palest colours in nine


@dataclass(frozen=True)
class ColourScale:
    """`places`: where each value lies, from 0 to 1, None for a value that is missing or not finite. `name`: linear,
    root or rank. `ends`: the values at 0 and 1. `middle`: the value at 1/2 (None where that says nothing). Of a
    diverging scale zero is at 1/2."""

    places: tuple[float | None, ...]
    name: str
    ends: tuple[float, float]
    middle: float | None
    automatic: bool

    @property
    def in_words(self) -> str:
        """What a reader must know of it; nothing of a scale in proportion."""
        why = ", as three of four heads are near zero" if self.automatic else ""
        if self.name == "linear":
            return ""
        middle = "" if self.middle is None else f", half way: {number(self.middle)}"
        return f"{self.name} scale{why}{middle}"


def spread(
    values: Sequence[float | None], *, ends: tuple[float, float], scale: str = AUTOMATIC, diverging: bool = False
) -> ColourScale:
    """Lay values on a colour scale whose `ends` are the least and the greatest value (symmetric where it is
    `diverging`). Values beyond an end lie at it. "automatic" is linear, and root where three of four values lie within
    an eighth of the scale from zero. A rank is the share of the values below, ties halved; of a diverging scale it is
    that of the size, with the sign.

    Raises InputError for an unknown scale and for ends that are none."""
    if scale not in SCALES:
        raise InputError(f"A colour scale is {', '.join(SCALES)}, not '{scale}'.")
    low, high = ends
    if not (np.isfinite([low, high]).all() and low < high):
        raise InputError(f"The ends of a colour scale are two numbers, the lower first, not {low} and {high}.")
    raw = np.array([np.nan if v is None else v for v in values], dtype=np.float64)
    known = np.isfinite(raw)
    chosen = scale
    if scale == AUTOMATIC:
        chosen = "root" if _crowded(raw[known], ends) else "linear"
    at = np.full(raw.shape, np.nan)
    if diverging:
        size = np.minimum(np.abs(raw[known]) / max(abs(low), abs(high)), 1.0)
        size = {"linear": lambda: size, "root": lambda: np.sqrt(size), "rank": lambda: _ranks(size)}[chosen]()
        at[known] = 0.5 + 0.5 * np.sign(raw[known]) * size
        middle = None
    else:
        share = np.clip((raw[known] - low) / (high - low), 0.0, 1.0)
        share = {"linear": lambda: share, "root": lambda: np.sqrt(share), "rank": lambda: _ranks(share)}[chosen]()
        at[known] = share
        middle = {"linear": (low + high) / 2, "root": low + (high - low) / 4}.get(chosen)
        if chosen == "rank" and known.any():
            middle = float(np.median(raw[known]))
            ends = float(raw[known].min()), float(raw[known].max())
    places = tuple(None if np.isnan(v) else float(v) for v in at)
    return ColourScale(places, chosen, ends, middle, scale == AUTOMATIC and chosen != "linear")


def _crowded(values: np.ndarray, ends: tuple[float, float]) -> bool:
    most = max(abs(ends[0]), abs(ends[1]))
    return len(values) > 0 and float(np.quantile(np.abs(values), 0.75)) < CROWDED * most and ends[0] <= 0


def _ranks(values: np.ndarray) -> np.ndarray:
    """Mid-ranks from 0 to 1; 1/2 for values that are all the same."""
    if len(values) < 2:
        return np.full(len(values), 0.5)
    ordered = np.sort(values)
    below, upto = np.searchsorted(ordered, values, "left"), np.searchsorted(ordered, values, "right")
    return (below + upto - 1) / 2 / (len(values) - 1)
