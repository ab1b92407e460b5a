"""Figures of attention heads: the map over layers and heads, the sorted scores, one map against another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
import polars as pl

from workbench.core.errors import InputError
from workbench.figures import style as theme
from workbench.figures import traces
from workbench.figures.layout import about, axis, dressed, sheet, ticks
from workbench.figures.run_tables import numbers


def grid(frame: pl.DataFrame, column: str, shape: tuple[int, int]) -> np.ndarray:
    """A column of a table with ``layer`` and ``head`` as an array [layers, heads], NaN where the table has no row."""
    values = np.full(shape, np.nan)
    values[frame["layer"].to_numpy(), frame["head"].to_numpy()] = numbers(frame, column)
    return values


def shape_of(frame: pl.DataFrame, n_layers: int | None = None, n_heads: int | None = None) -> tuple[int, int]:
    """(layers, heads) of the model, from what is known of it or from the largest numbers in the table."""
    layers, heads = int(frame["layer"].max()) + 1, int(frame["head"].max()) + 1
    return max(layers, n_layers or 0), max(heads, n_heads or 0)


def head_map(
    frame: pl.DataFrame,
    *,
    value: str = "score",
    label: str = "score",
    n_layers: int | None = None,
    n_heads: int | None = None,
    n_kv_heads: int | None = None,
    diverging: bool = False,
    low: float | None = None,
    high: float | None = None,
    marked: str | None = None,
    more: Sequence[str] = (),
    title: str = "",
    note: str = "",
    interval: str = "",
    n: int | str | None = None,
) -> go.Figure:
    """One cell per head: layers upwards, heads to the right, lines between the groups that share a key and value.

    ``frame``: a table with ``layer``, ``head`` and the column ``value``; ``more``: further columns for the hover text;
    ``marked``: a boolean column whose heads are outlined. ``diverging``: zero in the middle of the scale. ``low``,
    ``high``: ends of the scale (give both maps the same to compare two runs). A click reports customdata (layer, head,
    group), and ``layout.meta["heads"]`` says which column is drawn. Raises InputError for a table without rows or
    without a finite value.
    """
    if frame.is_empty():
        raise InputError("The table of heads is empty: there is no head map to draw.")
    shape = shape_of(frame, n_layers, n_heads)
    values = grid(frame, value, shape)
    ends = traces.limits(values, diverging=diverging, low=low, high=high)
    per_group = shape[1] // n_kv_heads if n_kv_heads and shape[1] % n_kv_heads == 0 else 1
    layer, head = np.indices(shape)
    extra = [grid(frame, column, shape) for column in more]
    custom = np.stack([layer, head, head // per_group, values, *extra], axis=-1).astype(object)
    custom[..., :3] = custom[..., :3].astype(int)
    grouped = 1 < per_group < shape[1]
    hover = "layer %{customdata[0]}, head %{customdata[1]}"
    hover += " (key/value group %{customdata[2]})" if grouped else ""
    hover += f"<br>{traces.safe(label)}: %{{customdata[3]:.3f}}"
    hover += "".join(
        f"<br>{traces.safe(column.replace('_', ' '))}: %{{customdata[{4 + i}]:.3f}}" for i, column in enumerate(more)
    )
    mark = np.nan_to_num(grid(frame, marked, shape)).astype(bool) if marked and marked in frame.columns else None
    if grouped:
        note = " ".join(filter(None, [note, "Vertical lines separate the heads that share a key and value."]))
    fig = sheet(
        title=title,
        x="head",
        y="layer",
        x_ticks=ticks(range(shape[1])),
        y_ticks=ticks(range(shape[0])),
        aspect=min(1.15, max(0.16, shape[0] / shape[1])),
        cells=shape,
        note=note,
        interval=interval,
        n=n,
    )
    traces.colour_scale(fig, ends, label, diverging=diverging)
    traces.add_cells(fig, 0, values, custom=custom, hover=hover, ends=ends, diverging=diverging, marked=mark)
    if grouped:
        for boundary in range(per_group, shape[1], per_group):
            fig.add_shape(
                type="line",
                x0=boundary - 0.5,
                x1=boundary - 0.5,
                y0=-0.5,
                y1=shape[0] - 0.5,
                line={"color": theme.MUTED},
                **_refs(0),
            )
    return dressed(about(fig, heads=value))


def add_links(fig: go.Figure, frame: pl.DataFrame, *, weight: str, group: str = "kind", most: int = 20) -> int:
    """Arrows between the heads of a `head_map`, and how many they are: the ``most`` links of the table with the largest
    ``weight``, one colour for each value of ``group``. ``frame``: ``source_layer``, ``source_head``, ``target_layer``,
    ``target_head``, and these two columns; of several links of a pair the strongest is drawn."""
    pair = ["source_layer", "source_head", "target_layer", "target_head", group]
    frame = frame.filter(pl.col(weight).is_finite()).sort(weight, descending=True, maintain_order=True)
    frame = frame.unique(pair, keep="first", maintain_order=True).head(most)
    looks = theme.sequence(sorted(frame[group].unique().to_list()))
    for name, look in looks.items():
        rows = frame.filter(pl.col(group) == name)
        ends = rows.select("source_head", "source_layer", "target_head", "target_layer").to_numpy().astype(float)
        gaps = np.full(len(ends), np.nan)
        text = [
            f"{a}.{b} → {c}.{d}<br>{traces.safe(weight.replace('_', ' '))} {traces.number(value)}"
            for a, b, c, d, value in rows.select(
                "source_layer", "source_head", "target_layer", "target_head", weight
            ).iter_rows()
        ]
        fig.add_scatter(
            x=np.stack([ends[:, 0], ends[:, 2], gaps], 1).ravel(),
            y=np.stack([ends[:, 1], ends[:, 3], gaps], 1).ravel(),
            mode="lines+markers",
            name=traces.safe(name),
            showlegend=True,
            line={"color": look.colour, "width": 1.4},
            marker={"color": look.colour, "symbol": "arrow", "angleref": "previous", "size": [0, 9, 0] * len(ends)},
            text=[line for each in text for line in (each, each, "")],
            hovertemplate="%{text}<extra></extra>",
            **axis(0),
        )
    return frame.height


def ranked(
    frame: pl.DataFrame,
    *,
    value: str = "score",
    label: str = "score",
    threshold: float | None = None,
    name_top: int = 5,
    title: str = "",
    interval: str = "",
    n: int | str | None = None,
) -> go.Figure:
    """Scores sorted from the highest, with their intervals, the threshold and the share of heads above it."""
    frame = frame.filter(pl.col(value).is_finite()).sort(value, "layer", "head", descending=[True, False, False])
    if frame.is_empty():
        raise InputError(f"There is no score curve to draw: the column '{value}' holds no finite number.")
    total, scores = frame.height, numbers(frame, value)
    rank = np.arange(1, total + 1)
    few = ticks(rank) if total <= 12 else None
    fig = sheet(title=title, x="head, by rank", y=label, x_ticks=few, aspect=0.6, interval=interval, n=n)
    custom = frame.select("layer", "head").to_numpy()
    banded = {"ci_low", "ci_high"} <= set(frame.columns)
    traces.add_curve(
        fig,
        0,
        rank,
        scores,
        name=label,
        style=theme.Style(theme.BLUE),
        legend=False,
        markers=total <= 64,
        low=numbers(frame, "ci_low") if banded else None,
        high=numbers(frame, "ci_high") if banded else None,
        custom=custom,
        hover="rank %{x}: layer %{customdata[0]}, head %{customdata[1]}<br>" + traces.safe(label) + " %{y:.3f}",
    )
    top = float(np.nanmax(np.concatenate([scores, numbers(frame, "ci_high")]))) if banded else float(scores.max())
    named = [f"{int(a)}.{int(b)}  {s:.3f}" for (a, b), s in zip(custom[:name_top], scores)]
    lines = []
    if threshold is not None:
        traces.add_rule(fig, 0, y=threshold, text=f"threshold {threshold:g}")
        above = int((scores > threshold).sum())
        lines.append(f"<b>{above} of {total} heads above ({above / total:.1%})</b>")
    lines += (["highest (layer.head):"] + named) if named else []
    traces.add_note(fig, 0, "<br>".join(lines))
    if total > 1:
        fig.layout.xaxis.range = [1 - 0.02 * total, total + 0.02 * total]
    lowest = np.concatenate([scores, numbers(frame, "ci_low")]) if banded else scores
    least = min(0.0, float(np.nanmin(lowest)))
    ends = [least - 0.05 * (top - least or 1), top + 0.08 * (top - least or 1)]
    if threshold is not None and threshold > least:  # its line and its label stay below the words in the corner
        ends[1] = max(ends[1], ends[0] + (threshold - ends[0]) / 0.62)
    fig.layout.yaxis.range = ends
    return dressed(fig)


def against(
    a: pl.DataFrame,
    b: pl.DataFrame,
    *,
    value: str = "score",
    names: tuple[str, str],
    label: str = "score",
    correlation: str = "",
    title: str = "",
) -> go.Figure:
    """Each head's score in one run against its score in another (same model shape), with the diagonal."""
    both = a.select("layer", "head", pl.col(value).alias("a")).join(
        b.select("layer", "head", pl.col(value).alias("b")), on=["layer", "head"]
    )
    both = both.filter(pl.col("a").is_finite() & pl.col("b").is_finite())
    if both.is_empty():
        raise InputError("The two runs have no head in common: their maps cannot be compared.")
    x, y = both["a"].to_numpy(), both["b"].to_numpy()
    fig = sheet(title=title, x=f"{label}, {names[0]}", y=f"{label}, {names[1]}", aspect=0.9, n=both.height)
    low, high = min(0.0, x.min(), y.min()), max(x.max(), y.max(), 1e-9)
    pad = 0.05 * (high - low)
    fig.add_shape(
        type="line",
        x0=low,
        y0=low,
        x1=high,
        y1=high,
        line={"color": theme.MUTED, "dash": "dash"},
        layer="below",
        **_refs(0),
    )
    custom = both.select("layer", "head").to_numpy()
    hover = [f"layer {i}, head {j}<br>{u:.3f} against {v:.3f}" for (i, j), u, v in zip(custom, x, y)]
    traces.add_points(
        fig, 0, x, y, name="heads", style=theme.Style(theme.BLUE), hover=hover, heads=custom, legend=False, opacity=0.6
    )
    fig.layout.xaxis.range = fig.layout.yaxis.range = [low - pad, high + pad]
    if correlation:
        traces.add_note(fig, 0, correlation, x=0.0)
    return dressed(fig)


def _refs(i: int) -> dict[str, str]:
    panel = axis(i)
    return {"xref": panel["xaxis"], "yref": panel["yaxis"]}
