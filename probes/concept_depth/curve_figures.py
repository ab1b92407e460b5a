"""Accuracy over layers: the concepts of a run, and several models over relative depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl

from probes.concept_depth.above_chance import HAS_NONE
from probes.concept_depth.figure_panels import (
    COLUMNS,
    INTERVAL,
    MARKED,
    POINTS,
    accuracy_axis,
    layers_of,
    on_a_page,
    panel_aspect,
    rows_tested,
)
from workbench.figures import style as theme
from workbench.figures import traces
from workbench.figures.layout import dressed, sheet, ticks
from workbench.figures.run_tables import maybe, model_name, numbers


def curves(run: Any) -> go.Figure:
    """Accuracy over layers, a small panel for every concept: with its interval, the shuffled labels beside it, and the
    points that these do not show."""
    frame = layers_of(run)
    condition = frame["condition"][0]
    frame = frame.filter(pl.col("condition") == condition)
    names = frame["dataset"].unique(maintain_order=True).to_list()
    points = maybe(run, "depth", ("dataset", "condition", *MARKED))
    n_layers = int(frame["layer"].max()) + 1
    shown, left_out = on_a_page(names)
    fig = sheet(
        shown,
        title=f"Where concepts become readable in {model_name(run)}",
        x="layer",
        y="probe accuracy",
        x_ticks=ticks(range(n_layers)),
        aspect=panel_aspect(len(shown)),
        columns=COLUMNS,
        interval=INTERVAL,
        note=" ".join(
            (
                "Grey: the same probes on shuffled labels, mean and the range of 95 % of the courses.",
                "Triangle: jump. Square: converged. Points that shuffled labels show too are not drawn; the words say",
                "why there is no jump.",
                f"Condition: {traces.safe(condition)}." if condition != "clean" else "",
                left_out,
            )
        ).strip(),
        n=rows_tested(frame),
    )
    for i, name in enumerate(shown):
        own = frame.filter(pl.col("dataset") == name).sort("layer")
        x, y = numbers(own, "layer"), numbers(own, "accuracy")
        _control(fig, i, own)
        traces.add_curve(
            fig,
            i,
            x,
            y,
            name="probe",
            style=theme.Style(theme.BLUE),
            low=numbers(own, "ci_low"),
            high=numbers(own, "ci_high"),
            legend=i == 0,
            markers=n_layers < 4,
            hover="layer %{x}: %{y:.3f}",
        )
        if points is not None:
            found = points.filter((pl.col("dataset") == name) & (pl.col("condition") == condition))
            _mark_points(fig, i, found, dict(zip(x.tolist(), y)), n_layers, name, theme.Style(theme.BLUE))
            _say_why_not(fig, i, found, y)
        accuracy_axis(fig, i, frame)
    return dressed(fig)


def compare(runs: Sequence[Any]) -> go.Figure:
    """Several models over relative depth, one panel per concept (the first condition of each run)."""
    frames = {}
    for run in runs:
        name, frame = model_name(run), layers_of(run)
        label = name if name not in frames else f"{name} ({getattr(run, 'id', len(frames))})"
        frames[label] = frame.filter(pl.col("condition") == frame["condition"][0])
    concepts = list(dict.fromkeys(d for f in frames.values() for d in f["dataset"].to_list()))
    shared = [c for c in concepts if sum(c in f["dataset"].to_list() for f in frames.values()) > 1] or concepts
    looks = theme.styles(frames)
    shared, left_out = on_a_page(shared)
    fig = sheet(
        shared,
        title="Where concepts become readable",
        x="relative depth",
        y="probe accuracy",
        aspect=panel_aspect(len(shared)),
        columns=COLUMNS,
        note=left_out,
        interval=INTERVAL,
    )
    seen: set[str] = set()
    for i, concept in enumerate(shared):
        for name, frame in frames.items():
            own = frame.filter(pl.col("dataset") == concept).sort("layer")
            if own.is_empty():
                continue
            depth = numbers(own, "layer") / (int(frame["layer"].max()) + 1)
            traces.add_curve(
                fig,
                i,
                depth,
                numbers(own, "accuracy"),
                name=name,
                style=looks[name],
                legend=name not in seen,
                markers=False,
                low=numbers(own, "ci_low"),
                high=numbers(own, "ci_high"),
                hover="depth %{x:.2f}: %{y:.3f}",
            )
            seen.add(name)
        accuracy_axis(fig, i, pl.concat([f.select("accuracy", "ci_low") for f in frames.values()]))
    return dressed(fig)


def _say_why_not(fig: go.Figure, i: int, points: pl.DataFrame, accuracy: np.ndarray) -> None:
    """Words in place of a jump that there is none of: where the curve leaves room for them."""
    if "jump_says" not in points.columns or points.is_empty():
        return
    said = str(points["jump_says"][0])
    if said.startswith("—, ") and said != HAS_NONE:
        room_above = np.nanmax(accuracy[len(accuracy) // 2 :]) < 0.75
        traces.add_note(fig, i, said.removeprefix("—, "), y=1.0 if room_above else 0.0)


def _mark_points(
    fig: go.Figure, panel: int, points: pl.DataFrame, accuracy: dict, n_layers: int, name: str, style: theme.Style
) -> None:
    """Mark those points of one curve, `accuracy` by layer, that it has."""
    for key in MARKED if points.height else ():
        depth = points[key][0]
        if depth is None or not np.isfinite(depth):
            continue
        layer = round(depth * n_layers)
        label, symbol = POINTS[key]
        traces.add_points(
            fig,
            panel,
            [layer],
            [accuracy[layer]] if layer in accuracy else [],
            name=name,
            style=theme.Style(style.colour, "solid", symbol),
            hover=[f"{traces.safe(name)}: {label} at layer {layer}"],
            legend=False,
            opacity=1,
            large=True,
        )


def _control(fig: go.Figure, i: int, own: pl.DataFrame) -> None:
    """The course on shuffled labels of one concept, with the range of the courses."""
    if "control_accuracy" not in own.columns or not np.isfinite(numbers(own, "control_accuracy")).any():
        return
    traces.add_curve(
        fig,
        i,
        numbers(own, "layer"),
        numbers(own, "control_accuracy"),
        name="shuffled labels",
        style=theme.Style(theme.NEUTRAL, "dot"),
        low=numbers(own, "control_low"),
        high=numbers(own, "control_high"),
        legend=i == 0,
        markers=False,
        hover="layer %{x}: %{y:.3f}",
    )
