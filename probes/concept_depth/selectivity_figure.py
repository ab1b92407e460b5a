"""Accuracy over layers beyond what can be learned by heart."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go
import polars as pl

from probes.concept_depth.figure_panels import (
    COLUMNS,
    on_a_page,
    panel_aspect,
    rows_tested,
)
from workbench.figures import style as theme
from workbench.figures import traces
from workbench.figures.layout import dressed, sheet, ticks
from workbench.figures.run_tables import finite, model_name, need, numbers


def selectivity(run: Any) -> go.Figure:
    """Accuracy minus that on control tasks, which give every word type a random label, over layers."""
    frame = finite(
        need(run, "layers", ("dataset", "condition", "layer", "selectivity")), "selectivity", what="selectivity"
    )
    condition = frame["condition"][0]
    frame = frame.filter(pl.col("condition") == condition)
    concepts, left_out = on_a_page(frame["dataset"].unique(maintain_order=True).to_list())
    fig = sheet(
        concepts,
        title=f"Selectivity of the probes on {model_name(run)}",
        x="layer",
        y="selectivity",
        x_ticks=ticks(range(int(frame["layer"].max()) + 1)),
        aspect=panel_aspect(len(concepts)),
        columns=COLUMNS,
        note="Accuracy minus that on control tasks: a random label for every word type. Dotted: no more than by heart. "
        f"{left_out}".strip(),
        interval="95 % of a difference: over independent groups of test rows and over control tasks; none below five",
        n=rows_tested(frame),
    )
    for i, name in enumerate(concepts):
        own = frame.filter(pl.col("dataset") == name).sort("layer")
        traces.add_curve(
            fig,
            i,
            numbers(own, "layer"),
            numbers(own, "selectivity"),
            name="selectivity",
            style=theme.Style(theme.BLUE),
            low=numbers(own, "selectivity_low"),
            high=numbers(own, "selectivity_high"),
            legend=False,
            hover="layer %{x}: %{y:.3f}",
        )
        traces.add_rule(fig, i, y=0, dash="dot")
    return dressed(fig)
