"""Two-dimensional maps of points, such as UMAP of activations."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import polars as pl

from workbench.figures import style as theme
from workbench.figures import traces
from workbench.figures.layout import axis, dressed, sheet
from workbench.figures.run_tables import numbers


def map_figure(
    maps: list[tuple[str, pl.DataFrame]],
    *,
    colour: str | None,
    title: str,
    n: int | str | None = None,
    label: str = "",
    size: int = 4000,
) -> go.Figure:
    """Two-dimensional maps, one panel each: (name, table with x and y). ``colour``: a column of numbers (a scale) or of
    names (a colour each, seven at most and the rest grey). At most ``size`` points a map, evenly spaced over the
    rows."""
    fig = sheet(
        [name for name, _ in maps], title=title, share_x=False, share_y=False, aspect=0.9, columns=2, bare=True, n=n
    )
    thin = [
        f if f.height <= size else f[np.unique(np.linspace(0, f.height - 1, size).astype(int)).tolist()]
        for _, f in maps
    ]
    values = [
        pl.DataFrame() if colour is None else f.select(pl.col(colour).cast(pl.Float64, strict=False)) for f in thin
    ]
    numeric = colour is not None and all(
        v[colour].null_count() < v.height and v[colour].n_unique() > 12 for v in values
    )
    if numeric:
        every = np.concatenate([numbers(v, colour) for v in values])
        traces.colour_scale(fig, traces.limits(every, low=float(np.nanmin(every))), label or colour.replace("_", " "))
    for i, frame in enumerate(thin):
        if numeric:
            fig.add_scatter(
                x=numbers(frame, "x"),
                y=numbers(frame, "y"),
                mode="markers",
                showlegend=False,
                marker={"color": numbers(values[i], colour), "coloraxis": "coloraxis", "opacity": 0.8},
                customdata=frame["row"].to_list() if "row" in frame.columns else None,
                hovertemplate="%{marker.color:.3g}<extra></extra>",
                **axis(i),
            )
        else:
            _named(fig, i, frame, "x", "y", colour)
    return dressed(fig)


def _named(fig, i, frame, x, y, colour) -> None:
    values = frame[colour].cast(pl.String).fill_null("none").to_list() if colour else ["texts"] * frame.height
    counts = {name: values.count(name) for name in dict.fromkeys(values)}
    common = sorted(counts, key=lambda name: -counts[name])[:7]
    looks = theme.sequence(sorted(common))
    groups = [(name, looks[name]) for name in sorted(common)]
    if len(counts) > len(common):
        groups.insert(0, ("others", theme.Style(theme.NEUTRAL)))
    for name, style in groups:
        where = np.array([v == name if name != "others" else v not in looks for v in values])
        own = [traces.safe(v) for v, w in zip(values, where) if w]
        traces.add_points(
            fig,
            i,
            numbers(frame, x)[where],
            numbers(frame, y)[where],
            name=name,
            style=style,
            hover=own,
            legend=i == 0,
            opacity=0.75,
        )
