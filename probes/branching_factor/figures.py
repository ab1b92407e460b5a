"""Figures of the branching-factor probe: how many next steps a model considers, along the output and between models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl

from probes.branching_factor.control_figures import feedback, random_prefix
from probes.branching_factor.drawn_conditions import (
    INTERVAL,
    LABEL,
    PER_BYTE,
    joined,
    looks,
    measure_of,
    prompt_names,
    size,
    tokenizers_of,
    with_condition,
)
from probes.branching_factor.forking_figures import forking_choices, forking_tokens
from probes.branching_factor.position_figures import compare, positions
from probes.branching_factor.sentence_figures import sentence_importance
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

__all__ = ["CHOICES", "FIGURES", "compare", "figures"]


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
        interval="95 % t over the samples of each prompt",
        n=size(run),
        note=joined(
            f"The {len(order)} prompts with the largest values." if len(order) < frame["prompt"].n_unique() else "",
            tokenizers_of([run]),
        ),
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
    column, *ends, label = measure_of(run)
    frame = finite(need(run, "conditions", ("condition", column, *ends)), column, what=label)
    if frame.height < 2:
        raise InputError("The run has one condition only: there is nothing to compare (choose a study).")
    names = frame["condition"].to_list()
    fig = sheet(
        title=f"{label.capitalize()} by condition, {model_name(run)}",
        x=label,
        y_ticks=ticks(range(len(names)), names, keep=True, lines=2),
        row=2.3 if _long(names) else 1.4,
        aspect=0.08 * len(names),
        interval=INTERVAL,
        n=size(run),
        note=tokenizers_of([run]),
    )
    low, high = (numbers(frame, end) for end in ends)
    for j, (name, style) in enumerate(looks(names).items()):
        value = numbers(frame, column)[[j]]
        look = {"name": name, "style": style, "labels": [name], "legend": False}
        traces.add_spots(fig, 0, value, [j], low=low[[j]], high=high[[j]], **look)
    if column == "bf":
        traces.add_rule(fig, 0, x=1, dash="dot")
    y_axis(fig, 0).range = [len(names) - 0.5, -0.5]
    _maybe_log(fig, np.concatenate([numbers(frame, column), high]), which="x")
    return dressed(fig)


def ratio(run: Any) -> go.Figure:
    """How many times larger one condition's branching factor is than another's: a panel for each of the others."""
    frame = need(run, "comparisons", ("a", "b", "ratio", "ratio_low", "ratio_high"))
    said, column, label = tokenizers_of([run]), "ratio", "branching factors"
    if said and "per_byte_ratio" in frame.columns:
        column, label = "per_byte_ratio", PER_BYTE
    frame = finite(frame, column, what="ratio")
    over = frame["b"].unique(maintain_order=True).to_list()
    parts = [frame.filter(pl.col("b") == name) for name in over]
    most = max(part.height for part in parts)
    fig = sheet(
        [f"over {name}" for name in over],
        title=f"Ratios of {label}, {model_name(run)}",
        x=f"ratio of {label}",
        y_ticks=[ticks(range(part.height), part["a"], keep=True, lines=2) for part in parts],
        share_y=False,
        row=2.3 if _long(frame["a"].to_list()) else 1.5,
        columns=2,
        aspect=0.08 * most + 0.05,
        interval="95 % t over prompts (paired)",
        n=f"{frame['prompts'].max()} prompts" if "prompts" in frame.columns else None,
        note=said,
    )
    top = np.nanmax(np.concatenate([numbers(frame, column), numbers(frame, f"{column}_high"), [1.0]]))
    for i, part in enumerate(parts):
        traces.add_bars(
            fig,
            i,
            np.arange(part.height),
            numbers(part, column),
            name="ratio",
            style=[theme.colour(a) for a in part["a"]],
            horizontal=True,
            legend=False,
            low=numbers(part, f"{column}_low"),
            high=numbers(part, f"{column}_high"),
            width=0.55,
            labels=[f"{a} / {over[i]}" for a in part["a"]],
        )
        traces.add_rule(fig, i, x=1, dash="dash")
        y_axis(fig, i).range = [most - 0.4, -0.6]
        x_axis(fig, i).range = [0, 1.06 * top]
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
        note=tokenizers_of([run]),
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
        interval="95 % of runs with so many samples of the same prompts (subsets of the samples taken, scaled for "
        "their overlap)",
        n=size(run),
        note=tokenizers_of([run]),
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
    "random_prefix": random_prefix,
    "feedback": feedback,
    "forking_tokens": forking_tokens,
    "sentence_importance": sentence_importance,
    "enough": enough,
    "tree": tree,
}
CHOICES = {"tree": tree_choices, "forking_tokens": forking_choices}


def figures(run: Any) -> dict[str, go.Figure]:
    """Every figure that the tables of the run allow."""
    return drawn(run, FIGURES)


def _long(names: Sequence[str]) -> bool:
    """Whether a name takes two lines beside an axis of a narrow figure."""
    return max(map(len, names)) > 16


def _maybe_log(fig: go.Figure, values: np.ndarray, *, which: str) -> None:
    values = values[np.isfinite(values) & (values > 0)]
    if len(values) and values.max() / values.min() > 12:
        traces.log_axis(x_axis(fig, 0) if which == "x" else y_axis(fig, 0), values)
