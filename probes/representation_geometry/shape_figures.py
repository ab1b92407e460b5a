"""Figures of what `also` measures by layer, each beside its null: intrinsic dimension, mean cosine, curvature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl

from probes.representation_geometry.figure_parts import last_point
from probes.representation_geometry.training_steps import step_axis
from workbench.core.errors import InputError
from workbench.figures import style as theme
from workbench.figures import traces
from workbench.figures.layout import dressed, sheet, ticks
from workbench.figures.run_tables import finite, model_name, need, numbers

MEASURED, HALF, NULL = theme.Style(theme.BLUE), theme.Style(theme.BLUE, "dot", "circle-open"), theme.Style(theme.OCHRE)


@dataclass(frozen=True)
class Line:
    """A curve of a panel: the column it is of, those of its ends, its name and how it is drawn."""

    column: str
    name: str
    style: theme.Style
    low: str = ""
    high: str = ""


def dimension(run: Any) -> go.Figure:
    """Intrinsic dimension over layers (over training where there is one layer), at all and at half of the texts, beside
    that of Gaussian states with the same covariance."""
    frame = finite(need(run, "dimension", ("layer", "two_nn", "mle")), "two_nn", what="intrinsic dimension")
    k = frame["k"][-1]
    panels = {}
    for column, title in (("two_nn", "two neighbours"), ("mle", f"{k} neighbours")):
        panels[title] = [
            Line(column, "all texts", MEASURED, f"{column}_low", f"{column}_high"),
            Line(f"{column}_half", "half of the texts", HALF),
            Line(f"{column}_null", "Gaussian, same covariance", NULL, f"{column}_null_low", f"{column}_null_high"),
        ]
    return courses(
        frame,
        panels,
        title=f"Intrinsic dimension of the states of {model_name(run)}",
        y="intrinsic dimension",
        note="Both estimates are too low where the dimension is high, and depend on the number of texts",
        interval="95 % of random halves of the texts; of Gaussian states, the middle 95 % of the draws",
    )


def cosine(run: Any) -> go.Figure:
    """Mean cosine over pairs of texts, as they are and without their mean, beside states with random signs."""
    frame = finite(need(run, "cosine", ("layer", "cosine", "centred")), "cosine", what="mean cosine")
    panels = {
        title: [
            Line(column, "measured", MEASURED, f"{column}_low", f"{column}_high"),
            Line(f"{column}_null", "random signs", NULL, f"{column}_null_low", f"{column}_null_high"),
        ]
        for column, title in (("cosine", "states as they are"), ("centred", "their mean taken off"))
    }
    return courses(
        frame,
        panels,
        title=f"Mean cosine between texts of {model_name(run)}",
        y="mean cosine",
        note="Random signs: each state turned round or not by a coin",
        interval="95 % jackknife over texts; of random signs, the middle 95 % of the draws",
    )


def curvature(run: Any) -> go.Figure:
    """The angle between steps from token to token, beside shuffled states and shuffled tokens; and how much of it is
    gone since the first layer."""
    frame = finite(need(run, "curvature", ("layer", "curvature", "shuffled_tokens")), "curvature", what="curvature")
    lines = [
        Line(column, name, style, f"{column}_low", f"{column}_high")
        for column, name, style in (
            ("curvature", "text", MEASURED),
            ("shuffled_tokens", "tokens shuffled", NULL),
            ("shuffled_states", "states shuffled", theme.Style(theme.NEUTRAL, "dash", "diamond")),
        )
    ]
    panels = {"angle between steps": lines}
    if np.isfinite(numbers(frame, "from_first")).any():
        panels["straightening since layer 0"] = [
            Line("from_first", "text", MEASURED, "from_first_low", "from_first_high"),
            Line("from_first_shuffled", "tokens shuffled", NULL, "from_first_shuffled_low", "from_first_shuffled_high"),
        ]
    return courses(
        frame,
        panels,
        title=f"Curvature of texts through {model_name(run)}",
        y=["curvature (degrees)", "less than in layer 0 (degrees)"][: len(panels)],
        note="Tokens shuffled: the same tokens in another order through the model; states shuffled: its states in "
        "another order",
        interval="95 %, Student's t over texts",
    )


def courses(
    frame: pl.DataFrame,
    panels: dict[str, Sequence[Line]],
    *,
    title: str,
    y: str | Sequence[str],
    note: str,
    interval: str,
) -> go.Figure:
    """Panels of curves over the layers of the last checkpoint, or over training where one layer was measured. Raises
    InputError for a single layer of a single checkpoint."""
    last = frame.filter(pl.col("checkpoint") == frame["checkpoint"][-1]).sort("layer")
    over_layers = last["layer"].n_unique() > 1
    if over_layers:
        several = frame["checkpoint"].n_unique() > 1
        own, where = last, f", {last['checkpoint'][0]}" if several else ""
    else:
        own, where = frame.filter(pl.col("step").is_not_null()).sort("step"), f", layer {last['layer'][0]}"
        if own["step"].n_unique() < 2:
            raise InputError("One layer of one checkpoint was measured: there is no course to draw.")
    fig = sheet(
        list(panels),
        title=title + where,
        x="layer" if over_layers else "training step",
        y=y,
        x_ticks=ticks(range(int(own["layer"].max()) + 1)) if over_layers else None,
        share_y=isinstance(y, str),
        aspect=0.75,
        note=f"{note}. {last_point(own)}",
        interval=interval,
        n=f"{own['n'].max()} texts",
    )
    for i, lines in enumerate(panels.values()):
        at = numbers(own, "layer") if over_layers else step_axis(fig, i, numbers(own, "step"))(numbers(own, "step"))
        for line in lines:
            if not np.isfinite(numbers(own, line.column)).any():
                continue
            traces.add_curve(
                fig,
                i,
                at,
                numbers(own, line.column),
                name=line.name,
                style=line.style,
                legend=i == 0,
                low=numbers(own, line.low) if line.low else None,
                high=numbers(own, line.high) if line.high else None,
                hover=("layer" if over_layers else "step") + " %{x}: %{y:.4g}",
            )
    return dressed(fig)
