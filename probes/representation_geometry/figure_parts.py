"""What several figures of geometry share: which measures, checkpoints and texts there are, and what is said of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from workbench.figures import style as theme
from workbench.figures.run_tables import finite, need, numbers

INTERVAL = "95 % spread at this number of texts (bootstrap over texts); no bias of a finite sample is in it"
MEASURES = {
    "rankme": ("RankMe (covariance eigenvalues)", "ci_low", "ci_high"),
    "alpha": ("α of the spectrum", "alpha_low", "alpha_high"),
    "rankme_singular": ("RankMe (singular values, uncentred)", "rankme_singular_low", "rankme_singular_high"),
    "participation_ratio": ("participation ratio", "participation_ratio_low", "participation_ratio_high"),
    "stable_rank": ("stable rank", "stable_rank_low", "stable_rank_high"),
}


def layer_table(run: Any) -> pl.DataFrame:
    frame = need(run, "layers", ("checkpoint", "step", "layer", "rankme", "alpha"))
    frame = frame.with_columns(pl.col("checkpoint").cast(pl.String).fill_null("model"))
    return finite(frame, "rankme", what="RankMe")


def measures_of(frame: pl.DataFrame) -> list[str]:
    return [m for m in MEASURES if m in frame.columns and np.isfinite(numbers(frame, m)).any()]


def checkpoints_of(frame: pl.DataFrame) -> list[str]:
    order = frame.group_by("checkpoint", maintain_order=True).agg(pl.col("step").min())
    return order.sort("step", nulls_last=True, maintain_order=True)["checkpoint"].to_list()


def ordered(count: int) -> list[str]:
    """Colours of things in an order (layers, checkpoints): along the sequential scale, its palest part left out."""
    if count == 1:
        return [theme.BLUE]
    # rounding to known stops keeps a dark form for every colour
    stops = np.linspace(2, len(theme.SEQUENTIAL) - 1, count).round().astype(int)
    return [theme.SEQUENTIAL[s] for s in stops]


def name_of(frame: pl.DataFrame, key: str) -> str:
    step = frame["step"][0]
    return f"step {step}" if step is not None else key.rstrip("/").rsplit("/", 1)[-1]


def texts_of(frame: pl.DataFrame | None) -> str | None:
    if frame is None or "n" not in frame.columns or frame["n"].max() is None:
        return None
    return f"{frame['n'].max()} texts"


def last_point(frame: pl.DataFrame | None) -> str:
    """For a note: where the last layer was read, as far as the table says so."""
    if frame is None or frame.is_empty() or "site" not in frame.columns:
        return ""
    final = frame.filter(pl.col("layer") == frame["layer"].max())["site"][-1] == "final_norm"
    return f"The last layer is read {'after' if final else 'before'} the final norm"


def white_features(frame: pl.DataFrame) -> str:
    """For a note: the null of RankMe and alpha, which is one for all layers and checkpoints."""
    said = []
    for name, column in (("RankMe", "rankme_null"), ("α", "alpha_null")):
        value = numbers(frame, column)
        if np.isfinite(value).any():
            said.append(f"{name} {value[np.isfinite(value)][-1]:.3g}")
    return f"White Gaussian features of the same number and width: {', '.join(said)}" if said else ""
