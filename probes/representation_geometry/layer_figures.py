"""Figures of RankMe, alpha and the other measures: over layers, and over training."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl

from probes.representation_geometry.figure_parts import (
    INTERVAL,
    MEASURES,
    checkpoints_of,
    last_point,
    layer_table,
    measures_of,
    name_of,
    ordered,
    texts_of,
    white_features,
)
from probes.representation_geometry.training_steps import logarithmic, shade, step_axis, step_scale
from workbench.core.errors import InputError
from workbench.figures import style as theme
from workbench.figures import traces
from workbench.figures.layout import dressed, sheet, ticks
from workbench.figures.run_tables import maybe, model_name, numbers


def layers(run: Any) -> go.Figure:
    """RankMe, α and the other measures over layers, one curve per checkpoint."""
    frame = layer_table(run)
    shown = measures_of(frame)
    keys = checkpoints_of(frame)
    colours = ordered(len(keys))
    last = frame.filter(pl.col("checkpoint") == keys[-1])
    if last["layer"].n_unique() < 2:
        raise InputError("The run measured one layer only: there is no course over layers to draw.")
    fig = sheet(
        [""] * len(shown),
        title=f"Geometry of {model_name(run)} over layers",
        x="layer",
        y=[MEASURES[m][0] for m in shown],
        x_ticks=ticks(range(int(frame["layer"].max()) + 1)),
        share_y=False,
        aspect=0.75,
        note=". ".join(filter(None, [last_point(frame), white_features(frame)])),
        interval=INTERVAL,
        n=texts_of(frame),
    )
    for i, measure in enumerate(shown):
        for j, key in enumerate(keys):
            own = frame.filter(pl.col("checkpoint") == key).sort("layer")
            if not np.isfinite(numbers(own, measure)).any():
                continue
            _, low, high = MEASURES[measure]
            traces.add_curve(
                fig,
                i,
                numbers(own, "layer"),
                numbers(own, measure),
                name=name_of(own, key),
                legend=i == 0 and len(keys) <= 8,
                style=theme.Style(colours[j]),
                low=numbers(own, low),
                high=numbers(own, high),
                hover="layer %{x}: %{y:.4g}",
            )
    if len(keys) > 8:
        step_scale(fig, frame)
    return dressed(fig)


def trajectory(run: Any) -> go.Figure:
    """RankMe and α over training steps, phases shaded."""
    frame = layer_table(run)
    layer = int(frame["layer"].max())
    frame = frame.filter((pl.col("layer") == layer) & pl.col("step").is_not_null()).sort("step")
    if frame["step"].n_unique() < 2:
        raise InputError("The run has fewer than two checkpoints with a step: there is no trajectory to draw.")
    shown = [(frame, m, *MEASURES[m]) for m in measures_of(frame)[:2]]
    loss = maybe(run, "checkpoints", ("step", "loss"))
    if loss is not None and np.isfinite(numbers(loss, "loss")).any():
        shown.append(
            (
                loss.filter(pl.col("step").is_not_null()).sort("step"),
                "loss",
                "next-token loss (nats)",
                "loss_low",
                "loss_high",
            )
        )
    steps = numbers(frame, "step")
    said = [last_point(frame), white_features(frame)]
    said += ["Step 0 is drawn at the left edge"] if steps.min() == 0 and logarithmic(steps) else []
    fig = sheet(
        [""] * len(shown),
        title=f"Geometry of {model_name(run)} over training, layer {layer}",
        x="training step",
        y=[label for _, _, label, _, _ in shown],
        share_y=False,
        aspect=0.55 if len(shown) == 1 else 0.7,
        interval=INTERVAL + ("; of the loss, 95 %, Student's t over its texts" if shown[-1][1] == "loss" else ""),
        n=texts_of(frame),
        note=". ".join(filter(None, said)),
    )
    for i, (table, measure, label, low, high) in enumerate(shown):
        place = step_axis(fig, i, steps)
        traces.add_curve(
            fig,
            i,
            place(numbers(table, "step")),
            numbers(table, measure),
            name=label,
            style=theme.Style(theme.BLUE),
            legend=False,
            low=numbers(table, low),
            high=numbers(table, high),
            hover="step %{x}: %{y:.4g}",
        )
        shade(fig, i, run, place)
    return dressed(fig)
