"""Figures of the branching-factor probe: how many next steps a model considers, along the output and between models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl

from probes.branching_factor.drawn_conditions import INTERVAL, LABEL, looks, prompt_names, size, with_condition
from probes.branching_factor.study_figures import (
    complexity,
    impact,
    nudging,
    openings,
    resampling,
    signature,
    verbalised,
)
from probes.branching_factor.tree_figures import tree, tree_choices
from workbench.core.errors import InputError
from workbench.figures import style as theme
from workbench.figures import traces
from workbench.figures.layout import dressed, sheet, ticks, x_axis, y_axis
from workbench.figures.run_tables import drawn, finite, model_name, need, numbers

ENDS = {"bf_prefix": ("ci_low", "ci_high"), "bf_window": ("window_low", "window_high")}  # intervals of the curves


def positions(run: Any) -> go.Figure:
    """Branching factor along the output: of everything up to a position, in windows, and how many samples are still
    going."""
    frame = with_condition(need(run, "positions", ("position", "bf_prefix")), run)
    return _positions(frame, f"Branching factor of {model_name(run)} along the output", n=size(run))


def prompts(run: Any) -> go.Figure:
    """Branching factor of every prompt, with its interval."""
    frame = finite(with_condition(need(run, "prompts", ("prompt", "bf")), run), "bf", what=LABEL)
    conditions = frame["condition"].unique(maintain_order=True).to_list()
    names = prompt_names(frame)
    order = (
        frame.group_by("prompt", maintain_order=True)
        .agg(pl.col("bf").max())
        .sort("bf", descending=True)["prompt"]
        .to_list()
    )
    order = order[:30]
    fig = sheet(
        title=f"Branching factor of each prompt, {model_name(run)}",
        x=LABEL,
        y_ticks=ticks(range(len(order)), [names[p] for p in order], keep=True),
        row=max(1.0, 0.55 * len(conditions)),
        aspect=0.05 * len(order),
        interval="95 % bootstrap over samples",
        n=size(run),
        note=f"The {len(order)} prompts with the largest values." if len(order) < frame["prompt"].n_unique() else "",
    )
    apart = min(0.25, 0.8 / len(conditions))
    for j, (name, style) in enumerate(looks(conditions).items()):
        own = frame.filter((pl.col("condition") == name) & pl.col("prompt").is_in(order))
        at = np.array([order.index(p) for p in own["prompt"]]) + (j - (len(conditions) - 1) / 2) * apart
        traces.add_spots(
            fig,
            0,
            numbers(own, "bf"),
            at,
            low=numbers(own, "ci_low"),
            high=numbers(own, "ci_high"),
            name=name,
            style=style,
            labels=[names[p] for p in own["prompt"]],
        )
    traces.add_rule(fig, 0, x=1, dash="dot")
    y_axis(fig, 0).range = [len(order) - 0.5, -0.5]
    _maybe_log(fig, numbers(frame, "bf"), which="x")
    return dressed(fig)


def conditions(run: Any) -> go.Figure:
    """Branching factor of every condition (model, nudge, setting), with its interval."""
    frame = finite(need(run, "conditions", ("condition", "bf", "ci_low", "ci_high")), "bf", what=LABEL)
    if frame.height < 2:
        raise InputError("The run has one condition only: there is nothing to compare (choose a study).")
    names = frame["condition"].to_list()
    fig = sheet(
        title=f"Branching factor by condition, {model_name(run)}",
        x=LABEL,
        y_ticks=ticks(range(len(names)), names, keep=True),
        row=1.4,
        aspect=0.08 * len(names),
        interval=INTERVAL,
        n=size(run),
    )
    for j, (name, style) in enumerate(looks(names).items()):
        own = frame.filter(pl.col("condition") == name)
        traces.add_spots(
            fig,
            0,
            numbers(own, "bf"),
            [j],
            low=numbers(own, "ci_low"),
            high=numbers(own, "ci_high"),
            name=name,
            style=style,
            labels=[name],
            legend=False,
        )
    traces.add_rule(fig, 0, x=1, dash="dot")
    y_axis(fig, 0).range = [len(names) - 0.5, -0.5]
    _maybe_log(fig, np.concatenate([numbers(frame, "bf"), numbers(frame, "ci_high")]), which="x")
    return dressed(fig)


def ratio(run: Any) -> go.Figure:
    """How many times larger one condition's branching factor is than another's."""
    frame = finite(need(run, "comparisons", ("a", "b", "ratio", "ratio_low", "ratio_high")), "ratio", what="ratio")
    names = [f"{a} / {b}" for a, b in zip(frame["a"], frame["b"])]
    fig = sheet(
        title=f"Ratios of branching factors, {model_name(run)}",
        x="ratio of branching factors",
        y_ticks=ticks(range(len(names)), names, keep=True),
        row=1.5,
        aspect=0.08 * len(names),
        interval="95 % bootstrap over prompts (paired) and samples",
        n=f"{frame['prompts'].max()} prompts" if "prompts" in frame.columns else None,
    )
    values = numbers(frame, "ratio")
    traces.add_bars(
        fig,
        0,
        np.arange(len(names)),
        values,
        name="ratio",
        style=[theme.colour(a) for a in frame["a"]],
        horizontal=True,
        legend=False,
        low=numbers(frame, "ratio_low"),
        high=numbers(frame, "ratio_high"),
        width=0.55,
        labels=names,
    )
    traces.add_rule(fig, 0, x=1, dash="dash")
    y_axis(fig, 0).range = [len(names) - 0.4, -0.6]
    top = np.nanmax(np.concatenate([values, numbers(frame, "ratio_high"), [1.0]]))
    fig.layout.xaxis.range = [0, 1.06 * top]
    return dressed(fig)


def entropy(run: Any) -> go.Figure:
    """How the entropy of single steps is distributed."""
    frame = with_condition(need(run, "samples", ("entropy",)), run)
    column = "step_entropy" if "step_entropy" in frame.columns else "entropy"
    if isinstance(frame[column].dtype, pl.List):
        frame = frame.select("condition", column).explode(column)
    frame = finite(frame, column, what="entropy")
    names = frame["condition"].unique(maintain_order=True).to_list()
    values = numbers(frame, column)
    edges = np.linspace(0, max(float(values.max()), 0.1) * 1.0001, 41)
    fig = sheet(
        title=f"Entropy of single steps of {model_name(run)}"
        if column == "step_entropy"
        else f"Mean entropy of the samples of {model_name(run)}",
        x="entropy (nats)",
        y="share of steps" if column == "step_entropy" else "share of samples",
        n=f"{frame.height} {'steps' if column == 'step_entropy' else 'samples'}",
    )
    for name, style in looks(names[:7]).items():
        own = numbers(frame.filter(pl.col("condition") == name), column)
        traces.add_histogram(fig, 0, own, edges=edges, name=name, style=style)
    return dressed(fig)


def enough(run: Any) -> go.Figure:
    """The branching factor and its interval against the number of samples."""
    frame = finite(with_condition(need(run, "enough", ("samples", "bf", "ci_low", "ci_high")), run), "bf", what=LABEL)
    if frame["samples"].n_unique() < 2:
        raise InputError("The table 'enough' has one number of samples only: there is no curve to draw.")
    names = frame["condition"].unique(maintain_order=True).to_list()
    fig = sheet(
        title=f"How many samples are enough, {model_name(run)}",
        x="samples per prompt",
        y=LABEL,
        interval="95 % of runs with so many samples (subsets of the samples taken, scaled for their overlap)",
    )
    for name, style in looks(names[:7]).items():
        own = frame.filter(pl.col("condition") == name).sort("samples")
        traces.add_curve(
            fig,
            0,
            numbers(own, "samples"),
            numbers(own, "bf"),
            name=name,
            style=style,
            low=numbers(own, "ci_low"),
            high=numbers(own, "ci_high"),
            hover="%{x} samples: %{y:.4g}",
        )
    return dressed(fig)


def compare(runs: Sequence[Any]) -> go.Figure:
    """Several runs in one figure: branching factor along the output, the first condition of each."""
    frames = []
    for run in runs:
        frame = with_condition(need(run, "positions", ("position", "bf_prefix")), run)
        name = model_name(run)
        if any(name == f["condition"][0] for f in frames):
            name = f"{name} ({getattr(run, 'id', len(frames))})"
        frames.append(frame.filter(pl.col("condition") == frame["condition"][0]).with_columns(condition=pl.lit(name)))
    return _positions(pl.concat(frames, how="diagonal_relaxed"), "Branching factor along the output")


FIGURES = {
    "positions": positions,
    "conditions": conditions,
    "ratio": ratio,
    "prompts": prompts,
    "entropy": entropy,
    "complexity": complexity,
    "impact": impact,
    "nudging": nudging,
    "signature": signature,
    "verbalised": verbalised,
    "resampling": resampling,
    "openings": openings,
    "enough": enough,
    "tree": tree,
}
CHOICES = {"tree": tree_choices}


def figures(run: Any) -> dict[str, go.Figure]:
    """Every figure that the tables of the run allow."""
    return drawn(run, FIGURES)


def _positions(frame: pl.DataFrame, title: str, n: str | None = None) -> go.Figure:
    frame = finite(frame, "bf_prefix", what=LABEL)
    panels = [("up to here", "bf_prefix", LABEL)]
    if "bf_window" in frame.columns and np.isfinite(numbers(frame, "bf_window")).any():
        panels.append(("in windows", "bf_window", LABEL))
    if "alive" in frame.columns and frame.group_by("condition").agg(pl.col("alive").n_unique())["alive"].max() > 1:
        panels.append(("samples still going", "alive", "share of samples"))
    names = frame["condition"].unique(maintain_order=True).to_list()
    fig = sheet(
        [p[0] for p in panels],
        title=title,
        x="position in the output (tokens)",
        y=[p[2] for p in panels],
        share_y=False,
        aspect=0.75,
        interval=INTERVAL if any(np.isfinite(numbers(frame, low)).any() for low, _ in ENDS.values()) else "",
        n=n,
    )
    for i, (_, column, _) in enumerate(panels):
        values = []
        for name, style in looks(names).items():
            own = frame.filter(pl.col("condition") == name).sort("position")
            y = numbers(own, column)
            y = y / y.max() if column == "alive" else y
            values.append(y)
            low, high = ENDS.get(column, (None, None))
            traces.add_curve(
                fig,
                i,
                numbers(own, "position"),
                y,
                name=name,
                style=style,
                legend=i == 0,
                markers=False,
                low=numbers(own, low) if low else None,
                high=numbers(own, high) if high else None,
                hover="position %{x}: %{y:.3g}",
            )
        if column == "alive":
            traces.level_axis(fig, i)
        elif np.nanmax(np.concatenate(values)) > 12:
            traces.log_axis(y_axis(fig, i), np.concatenate(values))
    return dressed(fig)


def _maybe_log(fig: go.Figure, values: np.ndarray, *, which: str) -> None:
    values = values[np.isfinite(values) & (values > 0)]
    if len(values) and values.max() / values.min() > 12:
        traces.log_axis(x_axis(fig, 0) if which == "x" else y_axis(fig, 0), values)
