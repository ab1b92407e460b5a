"""Figures of what pruning does: the answers, by kind of conflict, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl

from probes.knowledge_conflict.config import BASELINES
from probes.knowledge_conflict.figure_style import CONTEXT, KINDS, MEMORY, OTHER, items_of
from workbench.figures import style as theme
from workbench.figures import traces
from workbench.figures.layout import dressed, sheet, ticks, x_axis, y_axis
from workbench.figures.run_tables import finite, model_name, need, numbers


def pruning(run: Any) -> go.Figure:
    """Rates of memory, context and other answers against the number of pruned heads, with random heads of the same
    layers."""
    frame = need(run, "pruning", ("role", "k", "heads", "draw", "memory_rate", "context_rate", "other_rate"))
    roles = [r for r in ("context", "memory") if r in frame["role"].to_list()]
    roles += [r for r in frame["role"].unique(maintain_order=True).to_list() if r not in (*roles, None, "none")]
    beside = _baseline_places(frame)
    ks = sorted({*frame.filter(pl.col("heads").is_in(["top", "random"]))["k"].to_list()})
    fig = sheet(
        [f"{role} heads pruned" for role in roles],
        title=f"Answers of {model_name(run)} as heads are pruned",
        x="pruned heads (k), or a baseline" if beside else "pruned heads (k)",
        x_ticks=ticks([*ks, *beside.values()], [*map(str, ks), *beside], keep=True) if beside else None,
        y="share of answers",
        interval="95 % Wilson over subjects; random heads the range over draws",
        note="Solid: the named heads. Dashed: random heads of the same layers."
        + (" Beside them, for the same answers: what is asked or decoded instead." if beside else ""),
        n=items_of(run, test=True),
    )
    ablation = (
        frame["ablation"].drop_nulls().unique(maintain_order=True).to_list() if "ablation" in frame.columns else []
    )
    if len(ablation) > 1:
        frame = frame.filter(pl.col("ablation") == ablation[0])
    unpruned = frame.filter(pl.col("k") == 0, pl.col("heads") == "top")
    for i, role in enumerate(roles):
        own = frame.filter((pl.col("role") == role) & (pl.col("k") > 0))
        for number, (kind, style) in enumerate((*KINDS, ("other", OTHER))):
            column = f"{kind}_rate"
            start = unpruned[column].cast(pl.Float64).mean() if not unpruned.is_empty() else None
            for group in ("random", "top"):
                data = _per_k(own.filter(pl.col("heads") == group), column, ends=(f"{kind}_low", f"{kind}_high"))
                if data.is_empty():
                    continue
                k, y, low, high = (numbers(data, c) for c in ("k", "mean", "low", "high"))
                if start is not None:
                    k, y, low, high = _from_unpruned(unpruned, column, (k, y, low, high), f"{kind}_low", f"{kind}_high")
                look = style if group == "top" else theme.Style(style.colour, "dash", f"{style.symbol}-open")
                name = f"{kind} answers" if group == "top" else f"{kind} answers, random heads"
                traces.add_curve(
                    fig,
                    i,
                    k,
                    y,
                    name=name,
                    style=look,
                    legend=i == 0 and group == "top",
                    low=low,
                    high=high,
                    hover="k = %{x}: %{y:.1%}",
                )
            for name, at in beside.items():
                data = frame.filter(pl.col("role") == role, pl.col("heads") == name)
                traces.add_curve(
                    fig,
                    i,
                    [at + 0.12 * (number - 1) * _gap(ks)] * data.height,  # side by side, so that no interval hides
                    numbers(data, column),
                    name=f"{kind} answers, {name}",
                    style=style,
                    legend=False,
                    low=numbers(data, f"{kind}_low"),
                    high=numbers(data, f"{kind}_high"),
                    hover=f"{name}: %{{y:.1%}}",
                )
        traces.level_axis(fig, i)
        if beside:
            x_axis(fig, i).range = [-0.3 * _gap(ks), max(beside.values()) + 0.6 * _gap(ks)]
        else:
            traces.whole_numbers(x_axis(fig, i), numbers(frame, "k"))
        y_axis(fig, i).tickformat = ".0%"
    return dressed(fig)


def groups(run: Any) -> go.Figure:
    """Answers that follow the side meant, on every kind of conflict: as the model is, with the chosen heads pruned,
    with random heads."""
    frame = need(run, "groups", ("role", "k", "heads", "column", "group", "n", "memory_rate", "context_rate"))
    wanted = [
        (role, side) for role, side in (("context", "memory"), ("memory", "context")) if role in frame["role"].to_list()
    ]
    kinds = frame.select("column", "group").unique(maintain_order=True).rows()
    several = len({column for column, _ in kinds}) > 1
    sizes = dict(zip(frame.select("column", "group").rows(), frame["n"]))
    names = [(f"{column}: {group}" if several else group) + f" ({sizes[column, group]})" for column, group in kinds]
    fig = sheet(
        [f"{role} heads pruned" for role, _ in wanted],
        title=f"Kinds of conflict, {model_name(run)}",
        x=[f"share of {side} answers" for _, side in wanted],
        y_ticks=ticks(range(len(names)), names, keep=True),
        share_x=False,
        row=1.6,
        aspect=0.1 * len(names),
        interval="95 % Wilson over subjects, random heads over subjects and draws; none below five subjects",
        note="Test items by the file's own columns, the number of subjects in brackets.",
        n=items_of(run, test=True),
    )
    colours = dict(KINDS)
    for i, (role, side) in enumerate(wanted):
        looks = (
            ("as it is", (frame["k"] == 0), theme.Style(theme.NEUTRAL, "solid", "circle"), -0.22),
            (
                "random heads pruned",
                (frame["heads"] == "random"),
                theme.Style(theme.NEUTRAL, "dash", "circle-open"),
                0.0,
            ),
            (f"heads pruned, for {side}", (frame["k"] > 0) & (frame["heads"] == "top"), colours[side], 0.22),
        )
        for name, chosen, style, shift in looks:
            own = frame.filter(chosen & (frame["role"] == role))
            if own.is_empty():
                continue
            at = [kinds.index(pair) for pair in own.select("column", "group").iter_rows()]
            traces.add_spots(
                fig,
                i,
                numbers(own, f"{side}_rate"),
                np.asarray(at) + shift,
                low=numbers(own, f"{side}_low"),
                high=numbers(own, f"{side}_high"),
                name=name,
                style=style,
                labels=[names[j] for j in at],
                legend=i == 0 or chosen is looks[2][1],
            )
        x_axis(fig, i).range = [-0.08, 1.08]  # the last label of one panel keeps clear of the first of the next
        x_axis(fig, i).tickformat = ".0%"
        y_axis(fig, i).range = [len(names) - 0.5, -0.5]
    return dressed(fig)


def cost(run: Any) -> go.Figure:
    """What pruning costs: accuracy on clean prompts (and perplexity on neutral text) against the number of pruned
    heads."""
    frame = finite(
        need(run, "pruning", ("role", "k", "heads", "clean_accuracy")), "clean_accuracy", what="clean accuracy"
    )
    measures = [("clean_accuracy", "accuracy on clean prompts")]
    measures += [(c, "perplexity on neutral text") for c in ("perplexity", "neutral_perplexity") if c in frame.columns][
        :1
    ]
    roles = [r for r in frame["role"].unique(maintain_order=True).to_list() if r in ("memory", "context")]
    fig = sheet(
        [""] * len(measures),
        title=f"The cost of pruning {model_name(run)}",
        x="pruned heads (k)",
        y=[label for _, label in measures],
        share_y=False,
        interval="95 % Wilson over subjects; random heads the range over draws",
        n=items_of(run, test=True),
    )
    for i, (column, _) in enumerate(measures):
        unpruned = frame.filter(pl.col("k") == 0, pl.col("heads") == "top")
        start = unpruned[column].cast(pl.Float64).mean()
        ends = ("clean_low", "clean_high") if column == "clean_accuracy" else ("", "")
        for role in roles:
            style = MEMORY if role == "memory" else CONTEXT
            for group in ("top", "random"):
                own = frame.filter((pl.col("role") == role) & (pl.col("heads") == group) & (pl.col("k") > 0))
                data = _per_k(own, column, ends=ends)
                if data.is_empty():
                    continue
                k, y, low, high = (numbers(data, c) for c in ("k", "mean", "low", "high"))
                if start is not None:
                    k, y, low, high = _from_unpruned(unpruned, column, (k, y, low, high), *ends)
                top = group == "top"
                traces.add_curve(
                    fig,
                    i,
                    k,
                    y,
                    name=f"{role} heads" if top else f"random, layers of {role} heads",
                    style=style if top else theme.Style(style.colour, "dash", f"{style.symbol}-open"),
                    legend=i == 0,
                    low=low,
                    high=high,
                    hover="k = %{x}: %{y:.3g}",
                )
        if column == "clean_accuracy":
            traces.level_axis(fig, i)
            y_axis(fig, i).tickformat = ".0%"
    return dressed(fig)


def _baseline_places(frame: pl.DataFrame) -> dict[str, float]:
    """Where on the axis of k what stands beside pruning is drawn: to the right of the largest."""
    names = [name for name in (*BASELINES, "dual run") if name in frame["heads"].to_list()]
    ks = frame.filter(pl.col("heads").is_in(["top", "random"]))["k"].to_list()
    return {name: max(ks) + (n + 1) * _gap(ks) for n, name in enumerate(names)}


def _gap(ks: Sequence[int]) -> float:
    """Room between the places beside the axis of k."""
    return max(1.0, max(ks) / 4)


def _per_k(frame: pl.DataFrame, column: str, *, ends: tuple[str, str]) -> pl.DataFrame:
    """Per k: the mean over draws, with their range, or with the interval of the only draw."""
    value = pl.col(column).cast(pl.Float64)
    frame = frame.filter(value.is_finite())
    own = frame.height > 0 and set(ends) <= set(frame.columns) and frame["k"].n_unique() == frame.height
    low, high = (pl.col(ends[0]).min(), pl.col(ends[1]).max()) if own else (value.min(), value.max())
    return frame.group_by("k").agg(value.mean().alias("mean"), low=low, high=high).sort("k")


def _from_unpruned(unpruned: pl.DataFrame, column: str, curve, low: str, high: str):
    """A curve (k, value, low, high) with the point where nothing is pruned put in front."""
    start = unpruned[column].cast(pl.Float64).mean()
    first = (0, start, *(unpruned[c].mean() if c in unpruned.columns else start for c in (low, high)))
    return tuple(np.append(a, b) for a, b in zip(first, curve))
