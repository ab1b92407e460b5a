"""Figures of what geometry goes along with: directions removed, n-grams, and numbers over checkpoints."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl

from probes.representation_geometry.figure_parts import texts_of
from probes.representation_geometry.training_steps import shade, step_axis
from workbench.core.errors import InputError
from workbench.figures import style as theme
from workbench.figures import traces
from workbench.figures.layout import dressed, sheet, ticks, y_axis
from workbench.figures.run_tables import finite, maybe, model_name, need, numbers


def eigen_ablation(run: Any) -> go.Figure:
    """Loss (and accuracy) with the top k eigen-directions kept or removed, against random directions."""
    frame = need(run, "ablation", ("directions", "k", "loss"))
    if "checkpoint" in frame.columns:  # the last one
        frame = frame.filter(pl.col("checkpoint") == frame["checkpoint"][-1])
    measures = [("loss", "next-token loss (nats)", "ci_low", "ci_high")]
    measures += [("accuracy", "accuracy", "accuracy_low", "accuracy_high")] if "accuracy" in frame.columns else []
    measures = [m for m in measures if np.isfinite(numbers(frame, m[0])).any()]
    edited = frame.filter((pl.col("directions") != "none") & (pl.col("k") > 0))
    if not measures or edited.is_empty():
        raise InputError("There is no ablation to draw: no eigen-direction was removed or kept.")
    fig = sheet(
        [""] * len(measures),
        title=f"Removing and keeping eigen-directions of {model_name(run)}",
        x="directions (k)",
        y=[m[1] for m in measures],
        share_y=False,
        interval="95 %, Student's t over texts, Wilson's for accuracy; of random directions, texts and draws both vary",
        n=f"{frame['n'].max()} texts" if "n" in frame.columns else None,
    )
    names = {
        "remove": "top k removed",
        "keep": "top k kept",
        "remove random": "random k removed",
        "keep random": "random k kept",
    }
    hues = {"remove": (theme.BLUE, "circle"), "keep": (theme.RED, "square")}
    for i, (measure, _, low, high) in enumerate(measures):
        for how in edited["directions"].unique(maintain_order=True).to_list():
            hue, symbol = hues.get(str(how).split()[0], (theme.OCHRE, "diamond"))
            style = (
                theme.Style(hue, "dash", f"{symbol}-open")
                if "random" in str(how)
                else theme.Style(hue, "solid", symbol)
            )
            own, ends = edited.filter(pl.col("directions") == how).sort("k"), (low, high)
            if own["k"].is_duplicated().any():  # several draws of random directions
                ends = (
                    ("draws_low", "draws_high") if measure == "loss" else ("accuracy_draws_low", "accuracy_draws_high")
                )
                there = [pl.col(end).first() for end in ends if end in own.columns]  # earlier runs have none
                own = own.group_by("k").agg(pl.col(measure).cast(pl.Float64).mean(), *there).sort("k")
            traces.add_curve(
                fig,
                i,
                numbers(own, "k"),
                numbers(own, measure),
                name=names.get(how, str(how)),
                style=style,
                legend=i == 0,
                low=numbers(own, ends[0]) if ends[0] in own.columns else None,
                high=numbers(own, ends[1]) if ends[1] in own.columns else None,
                hover="k = %{x}: %{y:.4g}",
            )
        whole = numbers(frame.filter(pl.col("directions") == "none"), measure)
        if np.isfinite(whole).any():
            level, ends = float(whole[np.isfinite(whole)][0]), [float(edited["k"].min()), float(edited["k"].max())]
            style = theme.Style(theme.NEUTRAL, "dot")  # in the legend: a label at the line would lie on a curve
            traces.add_curve(
                fig, i, ends, [level] * 2, name="unedited", style=style, legend=i == 0, markers=len({*ends}) < 2
            )
    return dressed(fig)


def memorisation(run: Any) -> go.Figure:
    """Spearman correlation of the model's and an n-gram model's token probabilities over training."""
    frame = need(run, "checkpoints", ("step", "memorisation")).filter(pl.col("step").is_not_null())
    frame = finite(frame, "memorisation", what="memorisation curve").sort("step")
    if frame.height < 2:
        raise InputError("The run has fewer than two checkpoints with a step: there is no memorisation curve to draw.")
    steps = numbers(frame, "step")
    fig = sheet(
        title=f"Agreement of {model_name(run)} with an n-gram model",
        x="training step",
        y="Spearman ρ over tokens",
        note="Beside it: agreement with how frequent each token is, which needs no n-gram longer than one",
        interval="95 % bootstrap over texts",
        n=texts_of(maybe(run, "ablation", ("n",))),
    )
    place = step_axis(fig, 0, steps)
    for column, name, style in (
        ("memorisation", "n-grams", theme.Style(theme.BLUE)),
        ("memorisation_of_frequency", "token frequency", theme.Style(theme.OCHRE, "dash", "diamond")),
    ):
        if not np.isfinite(numbers(frame, column)).any():
            continue
        traces.add_curve(
            fig,
            0,
            place(steps),
            numbers(frame, column),
            name=name,
            style=style,
            low=numbers(frame, f"{column}_low"),
            high=numbers(frame, f"{column}_high"),
            hover="step %{x}: %{y:.3f}",
        )
    shade(fig, 0, run, place)
    return dressed(fig)


def correlation(run: Any) -> go.Figure:
    """How geometry goes with loss, memorisation and task numbers over the checkpoints."""
    frame = finite(
        need(run, "correlation", ("measure", "against", "method", "value", "low", "high")), "value", what="correlation"
    )
    pairs = list(dict.fromkeys(frame.select("measure", "against").rows()))
    short = {"rankme": "RankMe", "rankme_singular": "RankMe (singular)", "alpha": "α"}
    rows = [f"{short.get(m, m)} and {a}" for m, a in pairs]
    fig = sheet(
        title=f"Geometry of {model_name(run)} against what it can do, over training",
        x="correlation over checkpoints",
        y_ticks=ticks(range(len(rows)), rows, keep=True),
        row=1.9,
        aspect=0.1 * len(rows),
        interval="95 % bootstrap over checkpoints, which are a time series: read those of the differences",
        n=f"{frame['n'].max()} checkpoints" if "n" in frame.columns else None,
    )
    methods = frame["method"].unique(maintain_order=True).to_list()
    for j, (method, style) in enumerate(theme.sequence(methods).items()):
        own = frame.filter(pl.col("method") == method)
        at = (
            np.array([pairs.index(p) for p in own.select("measure", "against").rows()])
            + (j - (len(methods) - 1) / 2) * 0.2
        )
        traces.add_spots(
            fig,
            0,
            numbers(own, "value"),
            at,
            low=numbers(own, "low"),
            high=numbers(own, "high"),
            name=method,
            style=theme.Style(style.colour, "solid", theme.SYMBOLS[j % len(theme.SYMBOLS)]),
            labels=[rows[round(p)] for p in at],
        )
    traces.add_rule(fig, 0, x=0, dash="dot")
    fig.layout.xaxis.range = [-1.05, 1.05]
    y_axis(fig, 0).range = [len(rows) - 0.5, -0.5]
    return dressed(fig)
