"""Two-dimensional maps of points, such as UMAP of activations."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import polars as pl

from workbench.figures import style as theme
from workbench.figures import traces
from workbench.figures.layout import axis, dressed, sheet, wrap
from workbench.figures.run_tables import numbers

WIDE, LINES = 60, 4  # of the text that is shown of a point


def map_figure(
    maps: list[tuple[str, pl.DataFrame]],
    *,
    colour: str | None,
    title: str,
    n: int | str | None = None,
    label: str = "",
    size: int = 4000,
    axes: tuple[str, str] = ("", ""),
    diverging: bool = False,
) -> go.Figure:
    """Two-dimensional maps, one panel each: (name, table with x and y, and where it has them ``row``, which goes with
    clicks, and ``text``, which is shown on hover). ``colour``: a column of numbers (a scale, ``diverging`` about zero)
    or of names (a colour each, seven at most and the rest grey). At most ``size`` points a map, evenly spaced over the
    rows. ``axes``: what the directions are; without, they mean nothing and are not drawn."""
    bare = axes == ("", "")
    fig = sheet(
        [name for name, _ in maps],
        title=title,
        share_x=False,
        share_y=False,
        aspect=0.9 if bare else 0.62,
        columns=2,
        bare=bare,
        n=n,
        x=axes[0],
        y=axes[1],
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
        ends = traces.limits(every, diverging=True) if diverging else traces.limits(every, low=float(np.nanmin(every)))
        traces.colour_scale(fig, ends, label or colour.replace("_", " "), diverging=diverging)
    for i, frame in enumerate(thin):
        if numeric:
            _scaled(fig, i, frame, numbers(values[i], colour))
        else:
            _named(fig, i, frame, colour)
    return dressed(fig)


def _scaled(fig: go.Figure, i: int, frame: pl.DataFrame, values: np.ndarray) -> None:
    """Points on the colour scale; grey ones, below, where there is no value."""
    known = np.isfinite(values)
    for where, colour in ((~known, {"color": theme.MISSING}), (known, {"coloraxis": "coloraxis"})):
        if not where.any():
            continue
        own = frame.filter(pl.Series(where))
        shown = values[where]
        fig.add_scatter(
            x=numbers(own, "x"),
            y=numbers(own, "y"),
            mode="markers",
            showlegend=False,
            marker={**({"color": shown} if "coloraxis" in colour else {}), **colour, "opacity": 0.8},
            customdata=_rows(own),
            text=_hover(own, [traces.number(value) for value in shown]),
            hovertemplate="%{text}<extra></extra>",
            **axis(i),
        )


def _named(fig: go.Figure, i: int, frame: pl.DataFrame, colour: str | None) -> None:
    """Points in the colour of their name."""
    values = frame[colour].cast(pl.String).fill_null("none").to_list() if colour else ["texts"] * frame.height
    counts = {name: values.count(name) for name in dict.fromkeys(values)}
    common = sorted(counts, key=lambda name: -counts[name])[:7]
    looks = theme.sequence(sorted(common))
    groups = [(name, looks[name]) for name in sorted(common)]
    if len(counts) > len(common):
        groups.insert(0, ("others", theme.Style(theme.NEUTRAL)))
    for name, style in groups:
        where = np.array([v == name if name != "others" else v not in looks for v in values])
        own = frame.filter(pl.Series(where))
        traces.add_points(
            fig,
            i,
            numbers(own, "x"),
            numbers(own, "y"),
            name=name,
            style=style,
            hover=_hover(own, [traces.safe(v) for v, w in zip(values, where) if w] if colour else []),
            custom=_rows(own),
            legend=i == 0 and colour is not None,
            opacity=0.75,
        )


def _rows(frame: pl.DataFrame) -> list[int] | None:
    return frame["row"].to_list() if "row" in frame.columns else None


def _hover(frame: pl.DataFrame, values: list[str]) -> list[str]:
    """What is said of each point: its value (written for Plotly already), its row, the beginning of its text."""
    heads = values or [""] * frame.height
    if "row" in frame.columns:
        heads = [" · ".join(filter(None, [head, f"row {row}"])) for head, row in zip(heads, frame["row"])]
    if "text" not in frame.columns:
        return heads
    texts = ["<br>".join(traces.safe(line) for line in _lines(text)) for text in frame["text"].cast(pl.String)]
    return ["<br>".join(filter(None, [head, text])) for head, text in zip(heads, texts)]


def _lines(text: str | None) -> list[str]:
    """A text in at most LINES lines."""
    lines = wrap(text or "", WIDE)
    return lines if len(lines) <= LINES else [*lines[: LINES - 1], f"{lines[LINES - 1]} …"]
