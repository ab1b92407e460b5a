"""The features of an autoencoder as figures: a map over tokens, and passages coloured by one of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
import polars as pl

from workbench.core.errors import InputError
from workbench.core.wording import cut
from workbench.explorer.parts_drawn import bars_figure
from workbench.figures import traces
from workbench.figures.layout import dressed, sheet, ticks

MOST = 48  # tokens that are named


def grid_of(table: pl.DataFrame, features: Sequence[int], tokens: int) -> np.ndarray:
    """Activations [features, tokens] from the table of `read_features`, 0 where a feature is off."""
    place = {feature: i for i, feature in enumerate(features)}
    found = np.zeros((len(features), tokens))
    mine = table.filter(pl.col("feature").is_in(list(features)))
    for position, feature, activation in mine.select("position", "feature", "activation").iter_rows():
        found[place[feature], position] = activation
    return found


def feature_map_figure(
    table: pl.DataFrame, features: Sequence[int], tokens: Sequence[str], *, site: str, title: str = ""
) -> go.Figure:
    """Activations of some features over the tokens, the first at the top. Raises InputError where there is none."""
    if not features:
        raise InputError("No feature is active there.")
    values = grid_of(table, features, len(tokens))[::-1]
    names = [str(feature) for feature in features][::-1]
    custom = np.full((*values.shape, 3), "", object)
    for row, name in enumerate(names):
        custom[row] = [
            (name, f"{i} {traces.safe(text, 24)}", traces.number(values[row, i])) for i, text in enumerate(tokens)
        ]
    ends = traces.limits(values)
    fig = sheet(
        title=title,
        x="token",
        y="feature",
        x_ticks=ticks(range(len(tokens)), [cut(text, 12) for text in tokens], keep=len(tokens) <= MOST),
        y_ticks=ticks(range(len(names)), names, keep=True),
        aspect=min(1.2, max(0.3, 0.5 * len(names) / max(1, len(tokens)))),
        cells=values.shape,
        note=f"Features of an autoencoder of {site}; colour: activation.",
    )
    traces.colour_scale(fig, ends, "activation")
    hover = "feature %{customdata[0]}, token %{customdata[1]}<br>activation: %{customdata[2]}"
    traces.add_cells(fig, 0, values, custom=custom, hover=hover, ends=ends)
    return dressed(fig)


def passages_figure(table: pl.DataFrame, *, feature: int, beside: int = 5, title: str = "") -> go.Figure:
    """Passages (`top_passages`) below each other, the strongest at the top: each one's strongest token in the middle,
    up to `beside` tokens on either side, coloured by the activation. Raises InputError where there is none."""
    if table.is_empty():
        raise InputError(f"Feature {feature} is active in none of the texts.")
    shape = table.height, 2 * beside + 1
    values, words, custom = np.full(shape, np.nan), np.full(shape, "", object), np.full((*shape, 2), "", object)
    for row, one in enumerate(table.reverse().iter_rows(named=True)):
        for i, (text, value) in enumerate(zip(one["tokens"], one["activations"])):
            column = one["start"] + i - one["peak"] + beside
            if 0 <= column < shape[1]:
                values[row, column], words[row, column] = value, traces.safe(text, 12)
                custom[row, column] = traces.safe(text, 24), traces.number(value)
    ends = traces.limits(values)
    fig = sheet(
        title=title,
        x="tokens from the strongest on",
        y_ticks=ticks(range(shape[0]), [f"text {row}" for row in table["row"]][::-1], keep=True),
        x_ticks=ticks(range(shape[1]), [str(i - beside).replace("-", "−") for i in range(shape[1])]),
        aspect=min(0.8, max(0.2, 0.5 * shape[0] / shape[1])),
        cells=shape,
        note=f"The passages in which feature {feature} is most active, one a text; colour: its activation.",
    )
    traces.colour_scale(fig, ends, f"activation of feature {feature}")
    hover = "%{customdata[0]}<br>activation: %{customdata[1]}"
    traces.add_cells(fig, 0, values, custom=custom, hover=hover, ends=ends, labels=words)
    return dressed(fig)


def writes_figure(table: pl.DataFrame, *, feature: int, title: str = "") -> go.Figure:
    """The tokens that a feature raises and lowers (`feature_writes`), for one unit of activation."""
    rows = [*table.filter(pl.col("side") == "up").iter_rows(named=True)]
    rows += [*table.filter(pl.col("side") == "down").reverse().iter_rows(named=True)]
    named = [
        (cut(repr(row["text"])[1:-1] if row["text"] is not None else str(row["id"]), 24), row["per_unit"])
        for row in rows
    ]
    note = (
        f"Tokens that feature {feature} raises and lowers most, along the direct path through the final norm at its "
        f"scale at the token, less the mean over the vocabulary."
    )
    return bars_figure(named, x=f"logit for one unit of feature {feature}", note=note, title=title)


def effects_figure(table: pl.DataFrame, *, said: str, most: int = 16, title: str = "") -> go.Figure:
    """The features with the largest direct effects (`feature_effects`)."""
    rows = [(f"feature {f}", v) for f, v in table.select("feature", "direct_effect").head(most).iter_rows()]
    note = f"{said} less its value without what the feature writes at the token, all else as it is."
    return bars_figure(rows, x=f"direct effect on {said}", note=note, title=title)


def fed_figure(table: pl.DataFrame, *, head: tuple[int, int], most: int = 16, title: str = "") -> go.Figure:
    """The features that one head feeds most (`head_features`)."""
    rows = [(f"feature {f}", v) for f, v in table.select("feature", "contribution").head(most).iter_rows()]
    name = f"{head[0]}.{head[1]}"
    note = f"What head {name} puts into the pre-activations of the active features at the token, through the encoder."
    return bars_figure(rows, x=f"pre-activation from head {name}", note=note, title=title)
