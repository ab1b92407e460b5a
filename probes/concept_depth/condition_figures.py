"""Curves beside each other: noise, weight precision, strength of the penalty."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go
import polars as pl

from probes.concept_depth.figure_panels import (
    COLUMNS,
    INTERVAL,
    accuracy_axis,
    layers_of,
    on_a_page,
    panel_aspect,
    rows_tested,
)
from workbench.core.errors import InputError
from workbench.figures import style as theme
from workbench.figures import traces
from workbench.figures.layout import dressed, sheet, ticks, x_axis
from workbench.figures.run_tables import finite, model_name, need, numbers


def conditions(run: Any) -> go.Figure:
    """One panel per concept: its curve under every condition (noise, weight precision)."""
    frame = layers_of(run)
    names = frame["condition"].unique(maintain_order=True).to_list()
    if len(names) < 2:
        raise InputError("The run has one condition only: there is nothing to compare (set noise or precision).")
    concepts, left_out = on_a_page(frame["dataset"].unique(maintain_order=True).to_list())
    looks = theme.sequence(names)
    fig = sheet(
        concepts,
        title=f"Noise and precision: concepts in {model_name(run)}",
        x="layer",
        y="probe accuracy",
        x_ticks=ticks(range(int(frame["layer"].max()) + 1)),
        aspect=panel_aspect(len(concepts)),
        columns=COLUMNS,
        note=left_out,
        interval=INTERVAL,
        n=rows_tested(frame),
    )
    for i, concept in enumerate(concepts):
        for name in names:
            own = frame.filter((pl.col("dataset") == concept) & (pl.col("condition") == name)).sort("layer")
            if own.is_empty():
                continue
            traces.add_curve(
                fig,
                i,
                numbers(own, "layer"),
                numbers(own, "accuracy"),
                name=str(name),
                style=looks[name],
                legend=i == 0,
                low=numbers(own, "ci_low"),
                high=numbers(own, "ci_high"),
                markers=False,
                hover="layer %{x}: %{y:.3f}",
            )
        accuracy_axis(fig, i, frame)
    return dressed(fig)


def path(run: Any) -> go.Figure:
    """Peak accuracy against the strength of the penalty."""
    frame = finite(need(run, "path", ("dataset", "c", "layer", "accuracy")), "accuracy", what="accuracy")
    best = frame.group_by("dataset", "c", maintain_order=True).agg(pl.col("accuracy").max()).sort("c")
    if best["c"].n_unique() < 2:
        raise InputError("The table 'path' has one value of c only: there is no path to draw.")
    fig = sheet(
        title=f"Peak accuracy against the penalty, {model_name(run)}",
        x="C (inverse penalty)",
        y="accuracy of the best layer",
    )
    traces.log_axis(x_axis(fig, 0), numbers(best, "c"))
    for name, style in theme.sequence(best["dataset"].unique(maintain_order=True).to_list()).items():
        own = best.filter(pl.col("dataset") == name)
        traces.add_curve(fig, 0, numbers(own, "c"), numbers(own, "accuracy"), name=name, style=style)
    return dressed(fig)
