"""What the model answers when the direction that the probe reads is taken away."""

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
        value = pl.col("separation").cast(pl.Float64)
        drawn_at = (
            here.filter(pl.col("direction") == "random")
            .group_by("layer")
            .agg(value.mean(), low=value.min(), high=value.max())
        )
        own = here.filter(pl.col("direction") == "probe").sort("layer")
        for name, style, data, ends in (
            ("random direction", random, drawn_at.sort("layer"), ("low", "high")),
            ("probe direction", probe, own, ("separation_low", "separation_high")),
        ):
            if not data.is_empty():
                traces.add_curve(
                    fig,
                    i,
                    numbers(data, "layer"),
                    numbers(data, "separation"),
                    name=name,
                    style=style,
                    legend=i == 0,
                    low=numbers(data, ends[0]),
                    high=numbers(data, ends[1]),
                    hover="layer %{x}: %{y:.3f}",
                )
        base = here.filter(pl.col("direction") == "none")
        if not base.is_empty():
            traces.add_rule(fig, i, y=float(base["separation"][0]), dash="dot")
        layers = sorted(set(here.filter(pl.col("layer") >= 0)["layer"].to_list()))
        if layers:
            x_axis(fig, i).range = [min(layers) - 0.5, max(layers) + 0.5]
            x_axis(fig, i).update(tickmode="linear", dtick=max(1, len(layers) // 6), tick0=0)
    return dressed(fig)
