"""Sums of parts as bars: the waterfall of a logit, what feeds a feature, and single effects side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
import polars as pl

from workbench.core.errors import InputError
from workbench.explorer.waterfall import Waterfall
from workbench.figures import style as theme
from workbench.figures import traces
from workbench.figures.layout import dressed, sheet, ticks

Step = tuple[str, float]  # a name and what it adds
ONCE = ("embedding", "bias", "decoder_bias", "error")  # parts that are named as they are


def waterfall_figure(found: Waterfall, *, said: str, heads: int = 0, features: int = 8, title: str = "") -> go.Figure:
    """Embedding, each layer's attention and MLP and the biases, one after the other up to the target's logit. With
    `heads`, attention is split into the `heads` largest of the model and the rest of each layer; of the features of an
    autoencoder the `features` largest stand apart."""
    cap = "" if found.capped is None else f" before the soft-cap of {found.capped:g}"
    note = (
        f"Parts of the residual stream read off through the final norm at its scale there ({found.scale:.3g}); "
        f"bars run from the sum of the parts above, blue up, red down."
    )
    return _waterfall(steps(found.parts, heads, features), found.total, f"logit of {said}{cap}", note, title)


def sources_figure(table: pl.DataFrame, *, feature: int, heads: int = 8, title: str = "") -> go.Figure:
    """What a feature's pre-activation is made of (`feature_sources`), the `heads` largest heads apart, one after the
    other up to it."""
    total = float(table.filter(~pl.col("part").is_in(["head", "head_bias"]))["contribution"].sum())
    note = (
        f"What each part of the residual stream puts into the pre-activation of feature {feature}, through the encoder "
        f"at the scale that it has at the token; bars run from the sum of the parts above, blue up, red down."
    )
    return _waterfall(steps(table, heads, 0), total, f"pre-activation of feature {feature}", note, title)


def bars_figure(rows: Sequence[Step], *, x: str, note: str, title: str = "") -> go.Figure:
    """Effects side by side, the first at the top, blue up, red down. Raises InputError where there is none."""
    if not rows:
        raise InputError("There is nothing to draw: no feature is active at this token.")
    values = np.array([value for _, value in rows])
    return _bars([name for name, _ in rows], values, np.zeros(len(rows)), x, note, title)


def _waterfall(rows: Sequence[Step], total: float, x: str, note: str, title: str) -> go.Figure:
    values = np.array([value for _, value in rows])
    starts = np.append(np.cumsum(values) - values, 0.0)
    return _bars([*(name for name, _ in rows), "sum"], np.append(values, total), starts, x, note, title, sums=1)


def _bars(
    names: Sequence[str], values: np.ndarray, starts: np.ndarray, x: str, note: str, title: str, sums: int = 0
) -> go.Figure:
    """Bars from the top down; the last `sums` are grey."""
    at = np.arange(len(names))[::-1]
    colours = [theme.BLUE if value >= 0 else theme.RED for value in values[: len(values) - sums]]
    fig = sheet(title=title, x=x, y_ticks=ticks(at.tolist(), names, keep=True), aspect=0.9, note=note)
    fig.add_bar(
        x=values,
        base=starts,
        y=at,
        orientation="h",
        width=0.72,
        marker={"color": [*colours, *[theme.NEUTRAL] * sums]},
        customdata=[[name, traces.number(value)] for name, value in zip(names, values)],
        hovertemplate="%{customdata[0]}: %{customdata[1]}<extra></extra>",
        showlegend=False,
        xaxis="x",
        yaxis="y",
    )
    fig.update_layout(barmode="overlay", yaxis_range=[-0.6, len(names) - 0.4])
    return dressed(fig)


def steps(parts: pl.DataFrame, heads: int, features: int) -> list[Step]:
    """Names and contributions in the order of the pass: of features the `features` largest, of heads the `heads`
    largest of the model and the rest of each layer."""
    chosen = set(_largest(parts, "head", heads).select("layer", "head").iter_rows())
    apart = set(_largest(parts, "feature", features)["feature"]) if "feature" in parts.columns else set()
    found: list[Step] = []
    rest = parts.filter(pl.col("part") == "feature")
    for row in parts.iter_rows(named=True):
        part, layer, value = row["part"], row["layer"], row["contribution"]
        if part == "feature":
            found += [(f"feature {row['feature']}", value)] if row["feature"] in apart else []
            continue
        if not rest.is_empty():  # after the last feature
            others = rest.filter(~pl.col("feature").is_in(list(apart)))
            left = float(others["contribution"].sum())
            found = sorted(found, key=lambda step: -abs(step[1]))
            found += [(f"{others.height} other features", left)] if others.height else []
            rest = rest.clear()
        if part in ONCE:
            found.append((part.replace("_", " "), value))
        elif part == "mlp":
            found.append((f"{layer} MLP", value))
        elif part == "switched":
            found.append((f"{layer} switched features", value))
        elif part == "attention":
            own = parts.filter(pl.col("part") == "head", pl.col("layer") == layer)
            mine = [(head, v) for head, v in own.select("head", "contribution").iter_rows() if (layer, head) in chosen]
            found += [(f"head {layer}.{head}", v) for head, v in mine]
            name = f"{layer} attention" if not mine else f"{layer} other heads"
            found.append((name, value - sum(v for _, v in mine)))
    return found


def _largest(parts: pl.DataFrame, part: str, most: int) -> pl.DataFrame:
    return parts.filter(pl.col("part") == part).sort(pl.col("contribution").abs(), descending=True).head(most)
