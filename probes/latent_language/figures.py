"""Figures of latent languages: probability of every language over the layers, which one leads where, entropy, and what
a language's direction does to the answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl

from workbench.figures import style as theme
from workbench.figures import traces
from workbench.figures.layout import dressed, sheet, ticks, y_axis
from workbench.figures.run_tables import drawn, info, model_name, need, numbers
from workbench.stats.clusters import FEWEST

TASK = ("task", "source", "target")
COLUMNS = 2
PANELS = 8  # of one figure
READOUT = {
    "word": "probability of the whole word",
    "first": "probability of the word's first token",
    "set": "probability of a token that begins the word",
}
INTERVAL = f"95 % over concepts (score interval of clusters); none below {FEWEST}"


def languages(run: Any) -> go.Figure:
    """Probability of the concept's word in every language over the layers, a panel for each task."""
    frame, readout = _shown(run, "layers", ("layer", "language", "probability"))
    parts, left_out = _panels(frame)
    names = frame["language"].unique(maintain_order=True).to_list()
    looks = theme.sequence(names)
    fig = sheet(
        [panel_name(key) for key, _ in parts],
        title=f"Languages of the layers of {model_name(run)}",
        x="layer",
        y=READOUT[readout],
        x_ticks=ticks(range(int(frame["layer"].max()) + 1)),
        share_y=False,
        columns=COLUMNS,
        aspect=0.6,
        interval=INTERVAL,
        n=_counted(frame),
        note=" ".join(filter(None, ["Dotted: words of an unrelated concept in the target language.", left_out])),
    )
    seen: set[str] = set()
    for i, (key, part) in enumerate(parts):
        for name in names:
            own = part.filter(pl.col("language") == name).sort("layer")
            if own.is_empty():
                continue
            traces.add_curve(
                fig,
                i,
                numbers(own, "layer"),
                numbers(own, "probability"),
                name=name,
                style=looks[name],
                low=numbers(own, "ci_low"),
                high=numbers(own, "ci_high"),
                legend=name not in seen,
                markers=False,
                hover="layer %{x}: %{y:.3g}",
            )
            seen.add(name)
        _null(fig, i, part.filter(pl.col("language") == key[2]).sort("layer"), legend=i == 0)
        y_axis(fig, i).rangemode = "tozero"
    return dressed(fig)


def _null(fig: go.Figure, i: int, own: pl.DataFrame, *, legend: bool) -> None:
    if own.height and np.isfinite(numbers(own, "null_probability")).any():
        traces.add_curve(
            fig,
            i,
            numbers(own, "layer"),
            numbers(own, "null_probability"),
            name="unrelated concept",
            style=theme.Style(theme.NEUTRAL, "dot"),
            legend=legend,
            markers=False,
            hover="layer %{x}: %{y:.3g}",
        )


def language_map(run: Any) -> go.Figure:
    """Mean log-probability of every language at every layer; the one that leads is outlined."""
    frame, readout = _shown(run, "layers", ("layer", "language", "mean_log_p", "leads"))
    parts, left_out = _panels(frame)
    names = frame["language"].unique(maintain_order=True).to_list()
    layers = int(frame["layer"].max()) + 1
    fig = sheet(
        [panel_name(key) for key, _ in parts],
        title=f"Language by layer in {model_name(run)}",
        x="layer",
        y="",
        x_ticks=ticks(range(layers)),
        y_ticks=ticks(range(len(names)), names, keep=True),
        columns=COLUMNS,
        cells=(len(names), layers),
        aspect=min(0.9, max(0.14, len(names) / layers)),
        n=_counted(frame),
        note=" ".join(
            filter(
                None,
                [
                    "Outlined: the language with the largest mean probability at a layer; the colour is the mean",
                    f"logarithm ({READOUT[readout]}).",
                    left_out,
                ],
            )
        ),
    )
    grids = [_grid(part, names, layers) for _, part in parts]
    ends = traces.limits(np.concatenate([values.ravel() for values, _, _ in grids]), high=0.0)
    traces.colour_scale(fig, ends, "mean log-probability (nats)")
    for i, (values, custom, marked) in enumerate(grids):
        traces.add_cells(
            fig,
            i,
            values,
            custom=custom,
            hover="%{customdata[0]}, layer %{customdata[1]}: %{customdata[2]:.3g} (probability %{customdata[3]:.3g})",
            ends=ends,
            marked=marked,
            reverse=True,
        )
    return dressed(fig)


def _grid(part: pl.DataFrame, names: list[str], layers: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values, what hovering says and what is outlined, each [languages, layers, …]."""
    values, marked = np.full((len(names), layers), np.nan), np.zeros((len(names), layers), bool)
    custom = np.empty((len(names), layers, 4), dtype=object)
    for g, name in enumerate(names):
        custom[g, :, 0] = traces.safe(name)
        custom[g, :, 1] = range(layers)
        custom[g, :, 2:] = np.nan
    rows = part.select("language", "layer", "mean_log_p", "probability", "leads").iter_rows()
    for name, layer, log_p, probability, leads in rows:
        g = names.index(name)
        values[g, layer], marked[g, layer] = np.nan if log_p is None else log_p, bool(leads)
        custom[g, layer, 2:] = values[g, layer], probability
    return values, custom, marked


def entropy(run: Any) -> go.Figure:
    """Entropy of what each layer would say next, of every task."""
    frame, _ = _shown(run, "layers", ("layer", "language", "entropy"))
    parts, left_out = _panels(frame)
    fig = sheet(
        title=f"Entropy over the layers of {model_name(run)}",
        x="layer",
        y="entropy (nats)",
        x_ticks=ticks(range(int(frame["layer"].max()) + 1)),
        aspect=0.5,
        n=_counted(frame),
        note=left_out,
    )
    looks = theme.sequence([panel_name(key) for key, _ in parts])
    for key, part in parts:
        own = part.group_by("layer").agg(pl.col("entropy").first()).sort("layer")
        traces.add_curve(
            fig,
            0,
            numbers(own, "layer"),
            numbers(own, "entropy"),
            name=panel_name(key),
            style=looks[panel_name(key)],
            markers=False,
            hover="layer %{x}: %{y:.2f} nats",
        )
    fig.layout.yaxis.rangemode = "tozero"
    return dressed(fig)


def steering(run: Any) -> go.Figure:
    """What adding the direction of another language does to the log-odds of its words, beside random directions."""
    frame = need(run, "steering", ("layer", "direction", "log_odds", "towards"))
    parts, left_out = _panels(frame)
    strength = info(run, "config", "strength", default=1.0)
    fig = sheet(
        [f"{panel_name(key)}, to {traces.safe(part['towards'][0])}" for key, part in parts],
        title=f"Answers of {model_name(run)} turned to another language",
        x="layer at which the direction is added",
        y="change of log-odds (nats)",
        x_ticks=ticks(range(int(frame["layer"].max()) + 1)),
        share_y=False,
        columns=COLUMNS,
        aspect=0.6,
        interval=f"95 % over concepts (t interval of clusters); none below {FEWEST}",
        n=_counted(frame),
        note=" ".join(
            filter(
                None,
                [
                    f"The difference of mean states, times {strength:g}, at the last token. Dashed: where the two",
                    "languages are even. Grey: random directions of the same length, mean and range.",
                    left_out,
                ],
            )
        ),
    )
    for i, (_, part) in enumerate(parts):
        told = part.filter(direction="language").sort("layer")
        drawn_at_random = (
            part.filter(direction="random")
            .group_by("layer")
            .agg(
                pl.col("log_odds").mean(),
                pl.col("log_odds").min().alias("least"),
                pl.col("log_odds").max().alias("most"),
            )
            .sort("layer")
        )
        for name, own, style, ends in (
            ("random directions", drawn_at_random, theme.Style(theme.NEUTRAL, "dot"), ("least", "most")),
            ("language", told, theme.Style(theme.BLUE), ("log_odds_low", "log_odds_high")),
        ):
            traces.add_curve(
                fig,
                i,
                numbers(own, "layer"),
                numbers(own, "log_odds"),
                name=name,
                style=style,
                low=numbers(own, ends[0]),
                high=numbers(own, ends[1]),
                legend=i == 0,
                hover="layer %{x}: %{y:.2f}",
            )
        base = numbers(told, "base_log_odds")
        if len(base) and np.isfinite(base[0]) and base[0] < 0:
            traces.add_rule(fig, i, y=-float(base[0]))
    return dressed(fig)


def translators(run: Any) -> go.Figure:
    """How far what is read off each layer is from the model's own distribution, as it is and through its translator."""
    frame = need(run, "translators", ("layer", "kl_logit", "kl_tuned")).sort("layer")
    fig = sheet(
        title=f"Translators of the layers of {model_name(run)}",
        x="layer",
        y="distance to the model's own (KL, nats)",
        x_ticks=ticks(range(int(frame["layer"].max()) + 1)),
        aspect=0.5,
        n=f"{frame['held_out_tokens'][0]:,} tokens held out",
    )
    for name, column, style in (
        ("as it is", "kl_logit", theme.Style(theme.NEUTRAL)),
        ("through its translator", "kl_tuned", theme.Style(theme.BLUE)),
    ):
        values = numbers(frame, column)
        traces.add_curve(fig, 0, numbers(frame, "layer"), values, name=name, style=style, hover="layer %{x}: %{y:.3g}")
    fig.layout.yaxis.rangemode = "tozero"
    return dressed(fig)


BUILDERS = {
    "languages": languages,
    "language_map": language_map,
    "entropy": entropy,
    "steering": steering,
    "translators": translators,
}


def figures(run: Any) -> dict[str, go.Figure]:
    """Every figure that the run's tables allow."""
    return drawn(run, BUILDERS)


def panel_name(key: tuple[str, str, str]) -> str:
    """``translation, french → german``."""
    task, source, target = (traces.safe(part) for part in key)
    return f"{task}, {target}" if source == target else f"{task}, {source} → {target}"


def _shown(run: Any, table: str, columns: tuple[str, ...]) -> tuple[pl.DataFrame, str]:
    """The rows of the read-out and the lens that are shown, with at least one language that has words, and the
    read-out."""
    frame = need(run, table, (*TASK, "lens", "readout", *columns))
    readout, lens = info(run, "config", "show", default="word"), frame["lens"][0]
    return frame.filter(lens=lens, readout=readout), readout


def _panels(frame: pl.DataFrame) -> tuple[list[tuple[tuple[str, str, str], pl.DataFrame]], str]:
    """The rows of each task, at most PANELS of them, and a sentence about those left out."""
    parts = [(key, part) for key, part in frame.group_by(TASK, maintain_order=True)]
    said = f"{len(parts) - PANELS} tasks are not drawn." if len(parts) > PANELS else ""
    return parts[:PANELS], said


def _counted(frame: pl.DataFrame) -> str | None:
    n = frame["n"].drop_nulls()
    if n.is_empty():
        return None
    low, high = int(n.min()), int(n.max())
    return f"{high} concepts" if low == high else f"{low} to {high} concepts"
