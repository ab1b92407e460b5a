"""Figures of the bigram subnetwork: how well it agrees with the bigrams, where it is, what each layer's part does, the
search, and rotations."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl

from workbench.core.errors import InputError
from workbench.figures import style as theme
from workbench.figures import traces
from workbench.figures.layout import dressed, sheet, ticks, y_axis
from workbench.figures.run_tables import drawn, finite, maybe, model_name, need, numbers

NAMES = {
    "subnetwork": "subnetwork",
    "full": "full model",
    "random": "random masks",
    "complement": "without the subnetwork",
    "random complement": "without random masks",
    "unigram": "token frequency",
}
HUES = {"subnetwork": theme.BLUE, "complement": theme.RED, "full": theme.NEUTRAL, "unigram": theme.NEUTRAL}
ORDER = ("attention q", "attention k", "attention v", "attention o", "mlp gate", "mlp in", "mlp out")


def _texts(run: Any) -> str | None:
    frame = maybe(run, "evaluation", ("n",))
    return None if frame is None or frame.is_empty() else f"{frame['n'].max()} texts"


def agreement(run: Any) -> go.Figure:
    """r with the bigrams, and the next token's surprisal, of the subnetwork and all that it is held against."""
    frame = need(run, "evaluation", ("model", "correlation", "ci_low", "ci_high", "surprisal"))
    kinds = [kind for kind in NAMES if kind in frame["model"].to_list()]
    frame = pl.concat([frame.filter(pl.col("model") == kind) for kind in kinds])
    names = [NAMES[kind] for kind in kinds]
    fig = sheet(
        ["", ""],
        title=f"Bigrams in {model_name(run)}",
        x=["Pearson's r with bigram surprisal", "surprisal of the next token (nats)"],
        y_ticks=ticks(range(len(names)), names, keep=True),
        share_x=False,
        columns=2,
        row=1.6,
        aspect=0.14 * len(names),
        note="Of random masks: the mean over draws, which vary in the interval as texts do",
        interval="95 %: of r bootstrap over texts, of surprisal Student's t over texts",
        n=_texts(run),
    )
    panels = (("correlation", "ci_low", "ci_high"), ("surprisal", "surprisal_low", "surprisal_high"))
    for i, (value, low, high) in enumerate(panels):
        for row, kind in enumerate(kinds):
            own = frame[row : row + 1]
            traces.add_spots(
                fig,
                i,
                numbers(own, value),
                [row],
                low=numbers(own, low),
                high=numbers(own, high),
                name=NAMES[kind],
                style=theme.Style(HUES.get(kind, theme.OCHRE), "solid", "circle"),
                labels=[NAMES[kind]],
                legend=False,
            )
        y_axis(fig, i).range = [len(kinds) - 0.5, -0.5]
    return dressed(fig)


def parameters(run: Any) -> go.Figure:
    """The share of every matrix of every layer that the subnetwork keeps."""
    frame = need(run, "parameters", ("module", "layer", "share"))
    there = frame["module"].unique(maintain_order=True).to_list()
    modules = [name for name in ORDER if name in there] + [name for name in there if name not in ORDER]
    layers = int(frame["layer"].max()) + 1
    values = np.full((len(modules), layers), np.nan)
    for module, layer, share in frame.select("module", "layer", "share").iter_rows():
        values[modules.index(module), layer] = share
    if not np.nanmax(values) > 0:
        raise InputError("The subnetwork keeps no weight: there is nothing to draw.")
    fig = sheet(
        title=f"Where the bigram subnetwork of {model_name(run)} is",
        x="layer",
        x_ticks=ticks(range(layers)),
        y_ticks=ticks(range(len(modules)), modules, keep=True),
        aspect=min(0.6, max(0.2, len(modules) / layers)),
        cells=values.shape,
        note="Share of the weights of each matrix that are kept; biases, norms and embeddings are never masked",
    )
    ends = traces.limits(values)
    row, column = np.indices(values.shape)
    custom = np.empty((*values.shape, 3), dtype=object)
    custom[..., 0] = np.array([traces.safe(name) for name in modules], dtype=object)[row]
    custom[..., 1], custom[..., 2] = column, values
    traces.colour_scale(fig, ends, "share kept")
    hover = "%{customdata[0]}, layer %{customdata[1]}: %{customdata[2]:.4f}"
    traces.add_cells(fig, 0, values, custom=custom, hover=hover, ends=ends, reverse=True)
    return dressed(fig)


def layers(run: Any) -> go.Figure:
    """Each layer's part of the subnetwork, and how far r falls without it."""
    frame = need(run, "layers", ("layer", "of_subnetwork", "drop")).sort("layer")
    x = numbers(frame, "layer")
    judged = np.isfinite(numbers(frame, "drop")).any()
    labels = ["share of the subnetwork"] + (["fall of r without the layer's part"] if judged else [])
    fig = sheet(
        [""] * len(labels),
        title=f"Layers of the bigram subnetwork of {model_name(run)}",
        x="layer",
        y=labels,
        x_ticks=ticks(range(len(x))),
        share_y=False,
        columns=2,
        note="Beside it: without as many of its weights drawn at random from all layers" if judged else "",
        interval="95 % bootstrap over texts" if judged else "",
        n=_texts(run),
    )
    blue, ochre = theme.Style(theme.BLUE), theme.Style(theme.OCHRE, "dash", "diamond")
    shares = numbers(frame, "of_subnetwork")
    traces.add_curve(fig, 0, x, shares, name="share", style=blue, legend=False, hover="layer %{x}: %{y:.3f}")
    y_axis(fig, 0).rangemode = "tozero"
    if judged:
        ends = {"low": numbers(frame, "drop_low"), "high": numbers(frame, "drop_high")}
        drop, random = numbers(frame, "drop"), numbers(frame, "drop_random")
        traces.add_curve(fig, 1, x, drop, name="the layer's part", style=blue, **ends, hover="layer %{x}: %{y:.3f}")
        traces.add_curve(fig, 1, x, random, name="random, of its size", style=ochre, hover="layer %{x}: %{y:.3f}")
    return dressed(fig)


def search(run: Any) -> go.Figure:
    """Loss, size and agreement over the steps of the search that was kept."""
    frame = need(run, "search", ("attempt", "step", "loss", "active", "correlation"))
    frame = frame.filter(pl.col("attempt") == frame["attempt"].max()).sort("step")
    panels = (
        ("loss", "cross-entropy (nats)", False),
        ("active", "weights above 0", True),
        ("correlation", "r, texts of the search", False),
    )
    fig = sheet(
        [""] * len(panels),
        title=f"Search for bigrams in {model_name(run)}",
        x="step",
        y=[label for _, label, _ in panels],
        share_y=False,
        note="The loss is of the soft masks on the step's own texts; r is of the hard masks, on texts of the search: "
        "what counts is the figure of held-out texts",
    )
    steps = numbers(frame, "step")
    for i, (column, _, logarithmic) in enumerate(panels):
        values = numbers(frame, column)
        if logarithmic:
            values = np.where(values > 0, values, np.nan)
            traces.log_axis(y_axis(fig, i), values)
        style = theme.Style(theme.BLUE)
        traces.add_curve(
            fig, i, steps, values, name=column, style=style, legend=False, markers=False, hover="step %{x}: %{y:.4g}"
        )
    return dressed(fig)


def rotations(run: Any) -> go.Figure:
    """How far linear maps from each layer's states turn, to the input embeddings and to the last states."""
    frame = finite(need(run, "rotations", ("model", "after_blocks", "to_input", "to_output")), "to_input", what="angle")
    kinds = frame["model"].unique(maintain_order=True).to_list()
    fig = sheet(
        ["to the input embeddings", "to the last states"],
        title=f"Rotations over the layers of {model_name(run)}",
        x="blocks behind the states",
        y="median angle of eigenvalues (°)",
        columns=2,
        n=f"{frame['n'].max():,} tokens",
        note="Of ridge maps with penalty 1; 90° is a map that has nothing to do with the identity",
    )
    hues = {"full": theme.Style(theme.NEUTRAL, "dot", "square"), "random": theme.Style(theme.OCHRE, "dash", "diamond")}
    for i, column in enumerate(("to_input", "to_output")):
        for kind in kinds:
            own = frame.filter(pl.col("model") == kind).sort("after_blocks")
            traces.add_curve(
                fig,
                i,
                numbers(own, "after_blocks"),
                numbers(own, column),
                name=NAMES.get(kind, kind) if kind != "random" else "random mask",
                style=hues.get(kind, theme.Style(theme.BLUE)),
                legend=i == 0,
                hover="after %{x} blocks: %{y:.1f}°",
            )
    return dressed(fig)


FIGURES = {
    "agreement": agreement,
    "parameters": parameters,
    "layers": layers,
    "search": search,
    "rotations": rotations,
}


def figures(run: Any) -> dict[str, go.Figure]:
    """Every figure that the tables of the run allow."""
    return drawn(run, FIGURES)
