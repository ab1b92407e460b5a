"""Probes of every concept on every other one."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl

from probes.concept_depth.figure_panels import (
    clusters_in,
)
from workbench.figures import traces
from workbench.figures.layout import dressed, sheet, ticks
from workbench.figures.run_tables import finite, model_name, need


def transfer(run: Any) -> go.Figure:
    """AUC of the probes of every concept on every other, in the layer where the first one's own curve is highest."""
    frame = need(run, "transfer", ("train", "test", "layer", "picked", "auc", "above_chance")).filter(pl.col("picked"))
    frame = finite(frame, "auc", what="transfer")
    names = list(dict.fromkeys([*frame["train"].to_list(), *frame["test"].to_list()]))
    layer = dict(frame.select("train", "layer").iter_rows())
    values, marked = np.full((len(names), len(names)), np.nan), np.zeros((len(names), len(names)), dtype=bool)
    for train, test, auc, above in frame.select("train", "test", "auc", "above_chance").iter_rows():
        values[names.index(train), names.index(test)] = auc
        marked[names.index(train), names.index(test)] = above
    rows = [f"{name} (layer {layer[name]})" if name in layer else name for name in names]
    fig = sheet(
        title=f"Probes of one concept on another in {model_name(run)}",
        x="tested on",
        y="fitted on",
        x_ticks=ticks(range(len(names)), names, keep=True),
        y_ticks=ticks(range(len(names)), rows, keep=True),
        cells=values.shape,
        aspect=min(0.7, max(0.2, 0.07 * len(names))),
        n=clusters_in(frame, "n"),
        note="AUC; 0.5 is chance. Each row in the layer where the first concept's own curve is highest. Outlined: "
        "above probes of its shuffled labels (p below 0.05, adjusted over layers; at least 0.05 above). No interval "
        "is drawn; the table has them.",
    )
    ends = (0.0, 1.0)
    traces.colour_scale(fig, ends, "AUC")
    row, column = np.indices(values.shape)
    safe = np.array([traces.safe(n) for n in names], dtype=object)
    custom = np.empty((*values.shape, 3), dtype=object)
    custom[..., 0], custom[..., 1], custom[..., 2] = safe[row], safe[column], values
    traces.add_cells(
        fig,
        0,
        values,
        custom=custom,
        hover="%{customdata[0]} → %{customdata[1]}: %{customdata[2]:.3f}",
        ends=ends,
        labels=np.vectorize(lambda v: f"{v:.2f}".lstrip("0") if np.isfinite(v) else "")(values),
        marked=marked,
        reverse=True,
    )
    return dressed(fig)
