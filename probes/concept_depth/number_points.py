"""At which depth a number is read: the points of a curve of R² over layers.

There is no threshold of accuracy here; points are shares of the highest R² of the curve. `onset`: the first layer above
chance. `half_way` and `nine_tenths`: the first layer that reaches that share of the highest R². A curve has the two
where its highest R² is at least `LEAST`; they stand where their layer is above chance and where 95 % of the resampled
curves have them.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from probes.concept_depth.above_chance import (
    CEILING,
    FOUND,
    HAS_NONE,
    LEAST,
    LEVEL,
    NEVER,
    NOT_JUDGED,
    NULL_TOO,
    UNSURE,
    AboveChance,
)
from probes.concept_depth.depth_points import interval

SHARES = {"half_way": 0.5, "nine_tenths": 0.9}
NUMBER_DEPTH = {
    "dataset": pl.String,
    "condition": pl.String,
    "onset": pl.Float64,
    **{f"{name}{end}": pl.Float64 for name in SHARES for end in ("", "_low", "_high", "_share", "_by_rule")},
    **{f"{name}_says": pl.String for name in ("onset", *SHARES)},
    **dict.fromkeys(("peak_r2", "peak_low", "peak_high", "peak_control"), pl.Float64),
    **dict.fromkeys(("peak_layer", "peak_layer_low", "peak_layer_high", "layers_above_chance"), pl.Int64),
    **dict.fromkeys(("n_shuffles", "n_layers", "n", "n_test"), pl.Int64),
}


def share_points(curves: np.ndarray) -> dict[str, np.ndarray]:
    """`half_way` and `nine_tenths` of curves [..., d] → each [...], relative depth, or NaN where the highest R² is
    below `LEAST`."""
    best = curves.max(-1)
    found = {name: (curves >= share * best[..., None]).argmax(-1) / curves.shape[-1] for name, share in SHARES.items()}
    return {name: np.where(best >= LEAST, value, np.nan) for name, value in found.items()}


def row_of_number_points(curve: np.ndarray, resampled: np.ndarray | None, judged: AboveChance, shuffles: int) -> dict:
    """The points of a curve [L] with intervals over resampled curves [draws, L] (None: too few clusters for any), and
    words where they do not stand; `…_by_rule`: what the definition gives, whatever the null."""
    value, d = share_points(curve), len(curve)
    draws = share_points(resampled) if resampled is not None else None
    onset = int(judged.above.argmax()) / d if judged.above.any() else float("nan")
    first = FOUND if judged.above.any() else NEVER if judged.judged else NOT_JUDGED
    row: dict = {"onset": onset, "onset_says": first}
    for name in SHARES:
        depth = float(value[name])
        low, high, share = interval(draws[name]) if draws is not None else (float("nan"),) * 3
        said = _says(depth, float(value["nine_tenths"]), judged, d)
        if said in (FOUND, NOT_JUDGED) and share < 1 - LEVEL:
            said = UNSURE
        stands = said == FOUND or (said == NOT_JUDGED and not np.isnan(depth))
        row |= {name: depth if stands else float("nan"), f"{name}_by_rule": depth, f"{name}_says": said}
        row |= {f"{name}_low": low if stands else float("nan"), f"{name}_high": high if stands else float("nan")}
        row[f"{name}_share"] = share
    above = int(judged.above.sum()) if judged.judged else None
    return row | {"layers_above_chance": above, "n_shuffles": shuffles, "n_layers": d}


def _says(depth: float, nine_tenths: float, judged: AboveChance, d: int) -> str:
    if judged.judged and not judged.above.any():
        return NEVER
    if np.isnan(depth):
        return HAS_NONE
    if not judged.judged:
        return NOT_JUDGED
    if judged.above[0] and nine_tenths == 0:
        return CEILING
    return FOUND if judged.above[round(depth * d)] else NULL_TOO
