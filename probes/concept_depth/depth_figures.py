"""All concepts of a run at a glance: accuracy by layer, and the depths of its points."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl

from probes.concept_depth.figure_panels import (
    POINTS,
    layers_of,
    rows_tested,
)
from workbench.core.errors import InputError
from workbench.figures import style as theme
from workbench.figures import traces
from workbench.figures.layout import dressed, sheet, ticks, x_axis, y_axis
from workbench.figures.run_tables import model_name, need, numbers


def concept_map(run: Any) -> go.Figure:
    """Accuracy of every concept at every layer, the concepts ordered by where they become readable."""
    frame = layers_of(run)
    conditions = frame["condition"].unique(maintain_order=True).to_list()
    first = frame.filter(pl.col("condition") == conditions[0])
    names = [
        name
        for name, _ in sorted(
            ((n, _readable_at(first, n)) for n in first["dataset"].unique(maintain_order=True)),
            key=lambda item: item[1],
        )
    ]
    names += [n for n in frame["dataset"].unique(maintain_order=True).to_list() if n not in names]
    layers = list(range(int(frame["layer"].max()) + 1))
    fig = sheet(
        [str(c) if len(conditions) > 1 else "" for c in conditions],
        title=f"Concepts by layer in {model_name(run)}",
        x="layer",
        y="",
        x_ticks=ticks(layers),
        y_ticks=ticks(range(len(names)), names, keep=True),
        aspect=min(0.9, max(0.14, len(names) / max(len(layers), 1))),
        cells=(len(names), len(layers)),
        columns=2,
        n=rows_tested(frame),
        note="Concepts are ordered by the layer at which they reach nine tenths of their gain; those that no layer "
        "tells from shuffled labels stand last.",
    )
    ends = (min(0.5, float(numbers(frame, "accuracy").min())), 1.0)
    traces.colour_scale(fig, ends, "probe accuracy")
    for i, condition in enumerate(conditions):
        values = np.full((len(names), len(layers)), np.nan)
        for name, layer, accuracy in (
            frame.filter(pl.col("condition") == condition).select("dataset", "layer", "accuracy").iter_rows()
        ):
            values[names.index(name), layer] = np.nan if accuracy is None else accuracy
        row, column = np.indices(values.shape)
        custom = np.empty((*values.shape, 3), dtype=object)
        custom[..., 0] = np.array([traces.safe(n) for n in names], dtype=object)[row]
        custom[..., 1], custom[..., 2] = column, values
        labels = np.vectorize(lambda v: f"{v:.2f}".lstrip("0") if np.isfinite(v) else "")(values)
        traces.add_cells(
            fig,
            i,
            values,
            custom=custom,
            hover="%{customdata[0]}, layer %{customdata[1]}: %{customdata[2]:.3f}",
            ends=ends,
            labels=labels,
            reverse=True,
        )
    return dressed(fig)


def _readable_at(frame: pl.DataFrame, name: str) -> tuple[float, str]:
    """The first layer at nine tenths of the way from the first accuracy to the peak; for a concept that is never above
    chance, whose gain is noise, behind all others."""
    own = frame.filter(pl.col("dataset") == name).sort("layer")
    judged = "p" in own.columns and own["p"].is_not_null().any()
    if judged and not own["above_chance"].any():
        return float("inf"), name
    accuracy = numbers(own, "accuracy")
    reached = np.flatnonzero(accuracy >= accuracy[0] + 0.9 * (accuracy.max() - accuracy[0]))
    return float(numbers(own, "layer")[reached[0]]), name


def points(run: Any) -> go.Figure:
    """The depths of every concept, with their intervals: jump and the readings of the converging point."""
    frame = need(run, "depth", ("dataset", "condition", "jump", "converge_stable"))
    shown = [k for k in POINTS if k in frame.columns]
    if not any(np.isfinite(numbers(frame, k)).any() for k in shown):
        raise InputError(
            "No concept has a jump or a converging point that shuffled labels do not show: no depth to draw."
        )
    conditions = frame["condition"].unique(maintain_order=True).to_list()
    rows = frame["dataset"].unique(maintain_order=True).to_list()
    fig = sheet(
        [str(c) if len(conditions) > 1 else "" for c in conditions],
        title=f"Depth of concepts in {model_name(run)}",
        x="relative depth",
        y_ticks=ticks(range(len(rows)), rows, keep=True),
        row=min(2.6, 40 / len(rows)),
        aspect=min(0.85, 0.1 * len(rows)),
        columns=2,
        interval="95 % bootstrap over independent groups, among resamples that have the point; none below five groups",
        note="Points that shuffled labels show too, or that a curve does not have, are not drawn.",
        n=rows_tested(frame),
    )
    for i, condition in enumerate(conditions):
        here = frame.filter(pl.col("condition") == condition)
        at = np.array([rows.index(d) for d in here["dataset"]])
        for j, (key, style) in enumerate(theme.sequence(shown).items()):
            label, symbol = POINTS[key]
            traces.add_spots(
                fig,
                i,
                numbers(here, key),
                at + (j - (len(shown) - 1) / 2) * 0.14,
                name=label,
                labels=here["dataset"].to_list(),
                style=theme.Style(style.colour, "solid", symbol),
                legend=i == 0,
                low=numbers(here, f"{key}_low"),
                high=numbers(here, f"{key}_high"),
            )
        x_axis(fig, i).range = [-0.03, 1.03]
        y_axis(fig, i).range = [len(rows) - 0.5, -0.5]
    return dressed(fig)
