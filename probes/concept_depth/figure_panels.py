"""What the figures of concept depth share: their panels, axes, and what a caption says of n."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl

from workbench.figures import traces
from workbench.figures.layout import y_axis
from workbench.figures.run_tables import finite, need, numbers

INTERVAL = (
    "95 %, over independent groups of test rows (rows where they have none): of a share for accuracy, of a mean for "
    "the separation of answers, bootstrap for what has no formula; none below five groups"
)
PANELS = 21  # of a set each: what a page, or a screen, holds
COLUMNS = 3
# what the points of the depth table are called in a figure, and their marker
POINTS = {
    "jump": ("jump", "triangle-up"),
    "comprehension": ("accuracy 0.7", "x"),
    "converge_stable": ("converged (flat from here)", "square"),
    "converge_after_jump": ("first flat step after the jump", "diamond"),
    "converge_literal": ("last flat step (as written)", "circle"),
}
MARKED = ("jump", "converge_stable")


def layers_of(run: Any) -> pl.DataFrame:
    """The table of layers, without rows that have no accuracy. Raises InputError where there is none."""
    frame = need(run, "layers", ("dataset", "condition", "layer", "accuracy", "ci_low", "ci_high"))
    return finite(frame, "accuracy", what="accuracy")


def rows_tested(frame: pl.DataFrame) -> str | None:
    """What n is: independent groups, and the rows that are in them."""
    if "n_test" not in frame.columns:
        return None
    rows = _span(frame["n_test"])
    if "n" not in frame.columns:
        return f"{rows} test rows"
    several = frame["dataset"].n_unique() > 1
    return f"{_span(frame['n'])} independent groups ({rows} test rows)" + (" per concept" if several else "")


def clusters_in(frame: pl.DataFrame, column: str) -> str | None:
    """What n is, from a column that counts groups."""
    return None if column not in frame.columns else f"{_span(frame[column])} independent groups of test rows"


def _span(values: pl.Series) -> str:
    low, high = values.min(), values.max()
    return f"{low}" if low == high else f"{low} to {high}"


def on_a_page(names: Sequence[str], most: int = PANELS) -> tuple[list[str], str]:
    """The concepts that have a panel, and what the caption says of the others."""
    rest = list(names[most:])
    others = (
        "" if not rest else f"Not drawn: {len(rest)} further concepts ({traces.safe(rest[0])}, …), see `concept_map`."
    )
    return list(names[:most]), others


def panel_aspect(panels: int) -> float:
    """Height over width of a panel, so that all of them fit a screen."""
    rows = -(-panels // COLUMNS)
    return min(0.75, max(0.25, 640 / rows - 34) / 265)


def accuracy_axis(fig: go.Figure, i: int, frame: pl.DataFrame) -> None:
    """From below chance to 1: the whole range would hide what happens above chance."""
    lows = np.concatenate([numbers(frame, c) for c in ("accuracy", "ci_low", "control_low")])
    least = min(0.45, float(np.nanmin(lows)) - 0.02)
    y_axis(fig, i).range = [max(-0.03, least), 1.03]
