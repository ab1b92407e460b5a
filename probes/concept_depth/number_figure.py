"""How well numbers are read, layer by layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl

from probes.concept_depth.figure_panels import COLUMNS, on_a_page, panel_aspect, rows_tested
from workbench.figures import style as theme
from workbench.figures import traces
from workbench.figures.layout import dressed, sheet, ticks, y_axis
from workbench.figures.run_tables import finite, model_name, need, numbers

_LEAST = -0.5  # R² below it is drawn at the edge: that a probe is worse than the mean is all there is to see


def number_curves(run: Any) -> go.Figure:
    """R² over layers, a small panel for every set of numbers, with its interval and the shuffled numbers beside it."""
    frame = finite(need(run, "numbers", ("dataset", "condition", "layer", "r2", "control_r2")), "r2", what="R²")
    condition = frame["condition"][0]
    frame = frame.filter(pl.col("condition") == condition)
    shown, left_out = on_a_page(frame["dataset"].unique(maintain_order=True).to_list())
    fig = sheet(
        shown,
        title=f"Where numbers become readable in {model_name(run)}",
        x="layer",
        y="R² of held-out rows",
        x_ticks=ticks(range(int(frame["layer"].max()) + 1)),
        aspect=panel_aspect(len(shown)),
        columns=COLUMNS,
        interval="95 %, Student's t over independent groups of test rows (rows where they have none), of log(1 − R²); "
        "none below five groups",
        note="Grey: the same probes on shuffled numbers, mean and the range of 95 % of the courses. Dotted: the mean "
        f"of the rows fitted on. {left_out}".strip(),
        n=rows_tested(frame),
    )
    probe, shuffled = theme.Style(theme.BLUE), theme.Style(theme.NEUTRAL, "dot")
    lows = []
    for i, name in enumerate(shown):
        own = frame.filter(pl.col("dataset") == name).sort("layer")
        courses = [("shuffled numbers", shuffled, "control_r2", "control_low", "control_high")]
        courses += [("probe", probe, "r2", "r2_low", "r2_high")]
        for label, style, value, low, high in courses:
            if not np.isfinite(numbers(own, value)).any():
                continue
            traces.add_curve(
                fig,
                i,
                numbers(own, "layer"),
                numbers(own, value),
                name=label,
                style=style,
                low=numbers(own, low),
                high=numbers(own, high),
                legend=i == 0,
                markers=False,
                hover="layer %{x}: %{y:.3f}",
            )
            lows += [numbers(own, value), numbers(own, low)]
        traces.add_rule(fig, i, y=0, dash="dot")
    least = max(_LEAST, min(-0.1, float(np.nanmin(np.concatenate(lows))) - 0.05))
    for i in range(len(shown)):
        y_axis(fig, i).range = [least, 1.05]
    return dressed(fig)
