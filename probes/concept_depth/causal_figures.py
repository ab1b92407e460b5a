"""What the model answers when the direction that the probe reads is taken away, and when it is added."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go
import polars as pl

from probes.concept_depth.figure_panels import (
    COLUMNS,
    INTERVAL,
    PANELS,
    clusters_in,
    on_a_page,
    panel_aspect,
)
from workbench.figures import style as theme
from workbench.figures import traces
from workbench.figures.layout import dressed, sheet, x_axis
from workbench.figures.run_tables import finite, info, model_name, need, numbers


def causal(run: Any) -> go.Figure:
    """The model's own answer when the probe's direction is projected out, against random directions."""
    frame = finite(need(run, "causal", ("dataset", "layer", "direction", "separation")), "separation", what="answer")
    # each panel has its own layers below it
    concepts, left_out = on_a_page(frame["dataset"].unique(maintain_order=True).to_list(), PANELS - 2 * COLUMNS)
    site = info(run, "config", "site")
    where = (
        ""
        if site is None
        else f" ({site}; the residual stream still carries what is removed there)"
        if not str(site).startswith("resid")
        else f" ({site})"
    )
    fig = sheet(
        concepts,
        title=f"Answers of {model_name(run)} without the direction that the probe reads",
        x="layer of the projection",
        y="separation of the answers (logits)",
        aspect=0.6 * panel_aspect(len(concepts)),
        columns=COLUMNS,
        share_y=False,
        share_x=False,
        note=f"Dotted: the unedited model. Random directions: mean and range over draws. One token's state in one "
        f"layer is edited{where}. {left_out}".strip(),
        interval=INTERVAL,
        n=clusters_in(frame, "n"),
    )
    random, probe = theme.Style(theme.NEUTRAL, "dash", "square"), theme.Style(theme.BLUE)
    for i, concept in enumerate(concepts):
        here = frame.filter(pl.col("dataset") == concept)
        beside = 0.08 if here.filter(pl.col("layer") >= 0)["layer"].n_unique() == 1 else 0.0  # two points, not one
        value = pl.col("separation").cast(pl.Float64)
        drawn_at = (
            here.filter(pl.col("direction") == "random")
            .group_by("layer")
            .agg(value.mean(), low=value.min(), high=value.max())
        )
        own = here.filter(pl.col("direction") == "probe").sort("layer")
        for name, style, data, ends, off in (
            ("random direction", random, drawn_at.sort("layer"), ("low", "high"), -beside),
            ("probe direction", probe, own, ("separation_low", "separation_high"), beside),
        ):
            if not data.is_empty():
                traces.add_curve(
                    fig,
                    i,
                    numbers(data, "layer") + off,
                    numbers(data, "separation"),
                    name=name,
                    style=style,
                    legend=i == 0,
                    low=numbers(data, ends[0]),
                    high=numbers(data, ends[1]),
                    hover="layer %{x:.0f}: %{y:.3f}",
                )
        base = here.filter(pl.col("direction") == "none")
        if not base.is_empty():
            traces.add_rule(fig, i, y=float(base["separation"][0]), dash="dot")
        layers = sorted(set(here.filter(pl.col("layer") >= 0)["layer"].to_list()))
        if layers:
            x_axis(fig, i).range = [min(layers) - 0.5, max(layers) + 0.5]
            x_axis(fig, i).update(tickmode="linear", dtick=max(1, len(layers) // 6), tick0=0)
    return dressed(fig)


def steering(run: Any) -> go.Figure:
    """By how much the answers move between adding the probe's direction and taking it away, against random directions:
    over strengths where one layer was steered, else over layers, at the largest strength."""
    frame = need(run, "steering", ("dataset", "layer", "strength", "direction", "log_odds"))
    frame = finite(frame, "log_odds", what="steered answer")
    concepts, left_out = on_a_page(frame["dataset"].unique(maintain_order=True).to_list(), PANELS - 2 * COLUMNS)
    over_layers = frame.group_by("dataset").agg(pl.col("layer").n_unique())["layer"].max() > 1
    over, largest = ("layer", float(frame["strength"].max())) if over_layers else ("strength", 0.0)
    if over_layers:
        frame = frame.filter(strength=largest)
    layer_of = dict(frame.select("dataset", "layer").iter_rows())
    fig = sheet(
        concepts if over_layers else [f"{concept} (layer {layer_of[concept]})" for concept in concepts],
        title=f"Answers of {model_name(run)} steered with the direction that the probe reads",
        x="layer that is steered" if over_layers else "strength",
        y="Δ log-odds",
        aspect=0.6 * panel_aspect(len(concepts)),
        columns=COLUMNS,
        share_y=False,
        share_x=over_layers,
        note=(f"Strength: ±{largest:g}, i" if over_layers else "Strength: i")
        + "n standard deviations of the projection. Log-odds of the answer of class 1 with the direction added, minus "
        "those with it taken away. Random directions of the same length, each turned to be positive: mean and range "
        f"over draws. {left_out}".strip(),
        interval="95 %, Student's t over independent groups of test rows (rows where they have none); none below five",
        n=clusters_in(frame, "n"),
    )
    random, probe = theme.Style(theme.NEUTRAL, "dash", "square"), theme.Style(theme.BLUE)
    for i, concept in enumerate(concepts):
        here = frame.filter(pl.col("dataset") == concept).with_columns(pl.col("log_odds").cast(pl.Float64))
        size = pl.col("log_odds").abs()
        drawn_at = here.filter(direction="random").group_by(over).agg(size.mean(), low=size.min(), high=size.max())
        own = here.filter(direction="probe")
        for name, style, data, ends in (
            ("random direction", random, drawn_at.sort(over), ("low", "high")),
            ("probe direction", probe, own.sort(over), ("log_odds_low", "log_odds_high")),
        ):
            if not data.is_empty():
                traces.add_curve(
                    fig,
                    i,
                    numbers(data, over),
                    numbers(data, "log_odds"),
                    name=name,
                    style=style,
                    legend=i == 0,
                    low=numbers(data, ends[0]),
                    high=numbers(data, ends[1]),
                    hover=f"{over} %{{x}}: %{{y:.3f}}",
                )
        traces.add_rule(fig, i, y=0, dash="dot")
        at = sorted(set(numbers(here, over).tolist()))
        if over_layers:
            x_axis(fig, i).range = [min(at) - 0.5, max(at) + 0.5]
            x_axis(fig, i).update(tickmode="linear", dtick=max(1, len(at) // 6), tick0=0)
        else:
            x_axis(fig, i).range = [0, 1.1 * max(at)]
    return dressed(fig)
