"""Figures of the layer-redundancy probe: similarities over layers, what they hide, and what is lost without modules."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl

from workbench.core.errors import InputError
from workbench.figures import style as theme
from workbench.figures import traces
from workbench.figures.layout import dressed, sheet, ticks
from workbench.figures.run_tables import drawn, finite, info, model_name, need, numbers

KINDS = {"attention": "attention", "mlp": "MLP", "block": "block", "joint": "attention and MLPs together"}
ORDERS = {
    "similarity": ("highest similarity", theme.Style(theme.BLUE)),
    "iterative": ("highest, measured anew each time", theme.Style(theme.PURPLE, "dash", "diamond")),
    "consecutive": ("most alike stretch of blocks", theme.Style(theme.GREEN, "dot", "cross")),
    "first": ("first in a pass", theme.Style(theme.OCHRE, "dashdot", "triangle-up")),
    "last": ("last in a pass", theme.Style(theme.RED, "dash", "triangle-down")),
    "random": ("random", theme.Style(theme.NEUTRAL, "dash", "square")),
}


def similarity(run: Any) -> go.Figure:
    """Similarity of every module over the layers, and the one that updates of its length would have in a random
    direction."""
    frame = _layers(run)
    kinds = _kinds(frame)
    fig = sheet(
        [KINDS[kind] for kind in kinds],
        title=f"Similarity of the stream before and after modules of {model_name(run)}",
        x="layer",
        y="cosine",
        x_ticks=ticks(range(int(frame["layer"].max()) + 1)),
        aspect=0.8,
        interval="95 %, Student's t over texts",
        n=_texts(frame),
        note="1: the module leaves the direction of the stream as it is. Dashed: updates as long, at a right angle to "
        "the stream, as random ones nearly are",
    )
    for i, kind in enumerate(kinds):
        own = frame.filter(pl.col("component") == kind).sort("layer")
        for column, name, style, ends in (
            ("similarity", "measured", theme.Style(theme.BLUE), ("ci_low", "ci_high")),
            ("null", "random direction", theme.Style(theme.NEUTRAL, "dash", "square"), None),
        ):
            traces.add_curve(
                fig,
                i,
                numbers(own, "layer"),
                numbers(own, column),
                name=name,
                style=style,
                legend=i == 0,
                low=numbers(own, ends[0]) if ends else None,
                high=numbers(own, ends[1]) if ends else None,
                hover="layer %{x}: %{y:.4f}",
            )
        first = own.sort("rank").head(max(1, own.height // 4))
        traces.add_points(
            fig,
            i,
            numbers(first, "layer"),
            numbers(first, "similarity"),
            name="the quarter that goes first",
            style=theme.Style(theme.RED, "solid", "diamond"),
            hover=[f"layer {row['layer']}: dropped as number {row['rank']}" for row in first.iter_rows(named=True)],
            legend=i == 0,
            large=own.height <= 12,
        )
    return dressed(fig)


def tokens(run: Any) -> go.Figure:
    """Importance (1 − similarity) over all tokens, without first tokens, without sinks, and as the mean over texts."""
    frame = _layers(run)
    kinds = _kinds(frame)
    shown = {
        "similarity": ("all tokens", theme.Style(theme.BLUE)),
        "without_first": ("without first tokens", theme.Style(theme.RED, "dash", "square")),
        "without_sinks": ("without sinks", theme.Style(theme.OCHRE, "dot", "diamond")),
        "text_mean": ("mean over texts", theme.Style(theme.GREEN, "dashdot", "cross")),
    }
    fig = sheet(
        [KINDS[kind] for kind in kinds],
        title=f"Which tokens the importance of modules of {model_name(run)} is of",
        x="layer",
        y="importance (1 − cosine)",
        x_ticks=ticks(range(int(frame["layer"].max()) + 1)),
        aspect=0.8,
        n=_texts(frame),
        note="Tokens that carry a massive activation are hardly turned by any module: with them importance is lower",
    )
    for i, kind in enumerate(kinds):
        own = frame.filter(pl.col("component") == kind).sort("layer")
        for column, (name, style) in shown.items():
            values = 1 - numbers(own, column)
            if np.isfinite(values).any():
                traces.add_curve(
                    fig,
                    i,
                    numbers(own, "layer"),
                    values,
                    name=name,
                    style=style,
                    legend=i == 0,
                    hover="layer %{x}: %{y:.4g}",
                )
    return dressed(fig)


def scale(run: Any) -> go.Figure:
    """What a cosine does not see: how much modules change the length of the stream."""
    frame = _layers(run)
    kinds = _kinds(frame)
    styles = theme.styles(KINDS[kind] for kind in kinds)
    fig = sheet(
        ["change, beside the stream", "fitted scale"],
        title=f"Length of what modules of {model_name(run)} write",
        x="layer",
        y=["|y − x| / |x|", "c of the nearest c·x"],
        x_ticks=ticks(range(int(frame["layer"].max()) + 1)),
        share_y=False,
        n=_texts(frame),
        note="Red: the module changes the length of the stream by a tenth or more and by more than it turns it, so its "
        "similarity says too little of what dropping it does",
    )
    for i, column in enumerate(("norm_change", "scale")):
        for kind in kinds:
            own = frame.filter(pl.col("component") == kind).sort("layer")
            traces.add_curve(
                fig,
                i,
                numbers(own, "layer"),
                numbers(own, column),
                name=KINDS[kind],
                style=styles[KINDS[kind]],
                legend=i == 0,
                hover="layer %{x}: %{y:.4g}",
            )
        flagged = frame.filter(pl.col("rescales"))
        if flagged.height:
            traces.add_points(
                fig,
                i,
                numbers(flagged, "layer"),
                numbers(flagged, column),
                name="rescales the stream",
                style=theme.Style(theme.RED, "solid", "x"),
                hover=[f"{KINDS[r['component']]} {r['layer']} rescales" for r in flagged.iter_rows(named=True)],
                legend=i == 0,
            )
    traces.add_rule(fig, 1, y=1.0)
    return dressed(fig)


def dropping(run: Any) -> go.Figure:
    """Loss against the number of dropped modules: by similarity, random, first, last."""
    return _dropped(run, "loss", "next-token loss (nats)", ("ci_low", "ci_high"), "Loss")


def accuracy(run: Any) -> go.Figure:
    """Next-token accuracy against the number of dropped modules, and the share of right choices where some were asked
    for."""
    frame = need(run, "dropping", ("choice_accuracy",))
    if np.isfinite(numbers(frame, "choice_accuracy")).any():
        label, ends = "share of right choices", ("choice_low", "choice_high")
        return _dropped(run, "choice_accuracy", label, ends, "Right choices")
    return _dropped(run, "accuracy", "next-token accuracy", ("accuracy_low", "accuracy_high"), "Accuracy")


def speed(run: Any) -> go.Figure:
    """Loss against the speed that is counted, by what is dropped."""
    frame = finite(need(run, "dropping", ("component", "n", "order", "loss", "speed")), "loss", what="loss")
    own = frame.filter(pl.col("order") == "similarity")
    if own.is_empty():
        raise InputError("No modules were dropped by similarity: there is no speed to draw.")
    whole = frame.filter(pl.col("order") == "none")
    fig = sheet(
        [""],
        title=f"Loss and speed of {model_name(run)} without modules",
        x="speed (multiply-adds of the whole model over those that are left)",
        y="next-token loss (nats)",
        interval="95 %, Student's t over texts",
        n=_texts(frame),
        note=f"Counted for a text of {info(run, 'config', 'speed_length', default='?')} tokens or the longest that the "
        "model reads; modules of highest similarity are dropped",
    )
    styles = theme.styles(KINDS[c] for c in own["component"].unique(maintain_order=True).to_list())
    for component in own["component"].unique(maintain_order=True).to_list():
        rows = pl.concat([whole, own.filter(pl.col("component") == component).sort("n")])
        traces.add_curve(
            fig,
            0,
            numbers(rows, "speed"),
            numbers(rows, "loss"),
            name=KINDS[component],
            style=styles[KINDS[component]],
            low=numbers(rows, "ci_low"),
            high=numbers(rows, "ci_high"),
            markers=True,
            hover="%{x:.2f}×: loss %{y:.3f}",
        )
    return dressed(fig)


def _dropped(run: Any, measure: str, label: str, ends: tuple[str, str], title: str) -> go.Figure:
    """One panel a kind, one curve an order; every curve begins with the whole model."""
    frame = finite(need(run, "dropping", ("component", "n", "order", measure, *ends)), measure, what=label)
    kinds = [kind for kind in KINDS if (frame["component"] == kind).any()]
    if not kinds:
        raise InputError("No modules were dropped: there is nothing to draw.")
    whole = frame.filter(pl.col("order") == "none")
    draws = int(frame.filter(pl.col("order") == "random")["draws"].max() or 0)
    fig = sheet(
        [KINDS[kind] for kind in kinds],
        title=f"{title} of {model_name(run)} without modules",
        x="modules dropped",
        y=label,
        share_x=False,
        columns=2,
        interval=f"95 % over texts, of random modules over their {draws} draws too",
        n=_texts(frame),
        note="What is dropped was chosen on other texts",
    )
    for i, kind in enumerate(kinds):
        own = frame.filter(pl.col("component") == kind)
        for order, (name, style) in ORDERS.items():
            rows = own.filter(pl.col("order") == order).sort("n")
            if rows.is_empty():
                continue
            rows = pl.concat([whole, rows])
            traces.add_curve(
                fig,
                i,
                numbers(rows, "n"),
                numbers(rows, measure),
                name=name,
                style=style,
                legend=i == 0 or order == "consecutive",
                low=numbers(rows, ends[0]),
                high=numbers(rows, ends[1]),
                markers=True,
                hover="%{x} dropped: %{y:.3f}",
            )
    return dressed(fig)


def _layers(run: Any) -> pl.DataFrame:
    columns = ("component", "layer", "similarity", "null", "norm_change", "scale", "rescales", "rank")
    return finite(need(run, "layers", columns), "similarity", what="similarity")


def _kinds(frame: pl.DataFrame) -> list[str]:
    return [kind for kind in KINDS if (frame["component"] == kind).any()]


def _texts(frame: pl.DataFrame) -> str:
    return f"{frame['texts'].max()} texts"


FIGURES = {
    "similarity": similarity,
    "dropping": dropping,
    "tokens": tokens,
    "scale": scale,
    "accuracy": accuracy,
    "speed": speed,
}


def figures(run: Any) -> dict[str, go.Figure]:
    """Every figure that the tables of the run allow."""
    return drawn(run, FIGURES)
