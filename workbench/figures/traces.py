"""The pieces that figures are made of: cells, curves with bands, bars with intervals, points, rules.

Pure functions: they add to the panels of a :func:`workbench.figures.layout.sheet`, take numpy arrays and plain lists,
and know nothing of runs. Cells are bars rather than a heat map: they keep their place at every size, stay vectors in a
PDF, and report clicks (Plotly's Heatmap does not, in Streamlit).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from workbench.core.errors import InputError
from workbench.core.wording import significant
from workbench.figures import style as theme
from workbench.figures.layout import CELL_MARK, CELL_TEXT, HEAD_POINTS, LARGE, axis, x_axis, y_axis
from workbench.figures.plotly_text import safe

FEW = 25  # up to so many points a curve also has markers


def number(value: float) -> str:
    """A number for a label: three significant digits, a true minus sign, 'n/a' for a missing one."""
    if value is None or not np.isfinite(value):
        return "n/a"
    return significant(value, 3).replace("-", "−")


def limits(values: np.ndarray, *, diverging: bool = False, low: float | None = None, high: float | None = None):
    """The ends of a colour scale: symmetric about zero for a diverging one, otherwise from zero (or the least
    value)."""
    finite = np.asarray(values, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    if not len(finite):
        raise InputError("There is nothing to colour: no value is a finite number.")
    if diverging:
        most = max(abs(float(finite.min())), abs(float(finite.max())))
        most = high if high is not None else most or 1.0
        return -most, most
    low = min(0.0, float(finite.min())) if low is None else low
    high = float(finite.max()) if high is None else high
    return (low, high) if high > low else (low, low + 1.0)


def colour_scale(fig: go.Figure, ends: tuple[float, float], label: str, *, diverging: bool = False) -> None:
    """The colour axis that all cells of a figure share."""
    fig.update_layout(
        coloraxis={
            "colorscale": theme.scale(theme.DIVERGING if diverging else theme.SEQUENTIAL),
            "cmin": ends[0],
            "cmax": ends[1],
            "colorbar": {"title": {"text": safe(label)}},
        }
    )


def add_cells(
    fig: go.Figure,
    i: int,
    values: np.ndarray,
    *,
    custom: np.ndarray,
    hover: str,
    ends: tuple[float, float],
    diverging: bool = False,
    marked: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    reverse: bool = False,
) -> None:
    """A grid of cells: ``values`` [rows, columns], NaN for a cell without one (grey). Row 0 is at the bottom, at the
    top with ``reverse``. ``custom`` [rows, columns, m] goes with clicks and into the ``hover`` template. ``marked``
    [rows, columns]: outlined cells. ``labels`` [rows, columns]: text inside the cells, left out by the layout where it
    cannot be read."""
    rows, columns = values.shape
    y, x = np.indices(values.shape)
    known = np.isfinite(values)
    for where, fill in ((known, None), (~known, theme.MISSING)):
        if not where.any():
            continue
        edge = marked[where] if marked is not None else np.zeros(int(where.sum()), bool)
        marker: dict = {"color": fill} if fill else {"color": values[where], "coloraxis": "coloraxis"}
        marker["line"] = {"color": theme.INK, "width": np.where(edge, 1.6, 0.0)}
        fig.add_bar(
            x=x[where],
            y=np.full(int(where.sum()), 0.93),
            base=y[where] - 0.465,
            width=0.93,
            marker=marker,
            customdata=custom[where],
            hovertemplate=hover + "<extra></extra>",
            showlegend=False,
            meta=CELL_MARK if edge.any() else None,
            selected={"marker": {"opacity": 1}},
            unselected={"marker": {"opacity": 1}},
            **axis(i),
        )
    if labels is not None:
        colours = theme.DIVERGING if diverging else theme.SEQUENTIAL
        span = ends[1] - ends[0]
        ink = [
            theme.ink_on(theme.colour_at(colours, (v - ends[0]) / span) if np.isfinite(v) else theme.MISSING)
            for v in values.ravel()
        ]
        fig.add_scatter(
            x=x.ravel(),
            y=y.ravel(),
            mode="text",
            text=labels.ravel().tolist(),
            textposition="middle center",
            textfont={"color": ink},
            hoverinfo="skip",
            showlegend=False,
            meta=CELL_TEXT,
            **axis(i),
        )
    fig.update_layout(barmode="overlay", bargap=0)
    x_axis(fig, i).update(range=[-0.5, columns - 0.5], showgrid=False, showline=False, ticks="")
    y_axis(fig, i).update(
        range=[rows - 0.5, -0.5] if reverse else [-0.5, rows - 0.5], showgrid=False, showline=False, ticks=""
    )


def add_curve(
    fig: go.Figure,
    i: int,
    x: Sequence[float],
    y: Sequence[float],
    *,
    name: str,
    style: theme.Style,
    low: Sequence[float] | None = None,
    high: Sequence[float] | None = None,
    legend: bool = True,
    markers: bool | None = None,
    step: bool = False,
    hover: str | None = None,
    custom: np.ndarray | None = None,
) -> None:
    """A line with its interval: a band, or bars where there are fewer than three points. NaN breaks the line."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    order = np.argsort(x, kind="stable")
    x, y = x[order], y[order]
    name = safe(name)
    error = None
    if low is not None and high is not None:
        low, high = np.asarray(low, dtype=np.float64)[order], np.asarray(high, dtype=np.float64)[order]
        good = np.isfinite(low) & np.isfinite(high) & np.isfinite(y)
        if good.sum() < 3:
            error = {
                "type": "data",
                "symmetric": False,
                "array": high - y,
                "arrayminus": y - low,
                "color": style.colour,
            }
        else:
            _band(fig, i, x, low, high, good, name, style)
    shown = markers if markers is not None else len(x) <= FEW
    fig.add_scatter(
        x=x,
        y=y,
        mode="lines+markers" if shown else "lines",
        name=name,
        legendgroup=name,
        showlegend=legend,
        line={"color": style.colour, "dash": style.dash, "shape": "hv" if step else "linear"},
        marker={"color": style.colour, "symbol": style.symbol},
        error_y=error,
        customdata=custom[order] if custom is not None else None,
        hovertemplate=(hover or "%{x:.4g}: %{y:.4g}") + f"<extra>{name}</extra>",
        **axis(i),
    )


def _band(fig, i, x, low, high, good, name, style) -> None:
    """The interval as one filled shape per unbroken stretch."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], good, [False]]).astype(int)))
    for start, end in edges.reshape(-1, 2):
        piece = slice(start, end)
        fig.add_scatter(
            x=np.concatenate([x[piece], x[piece][::-1]]),
            y=np.concatenate([high[piece], low[piece][::-1]]),
            mode="lines",
            fill="toself",
            fillcolor=theme.alpha(style.colour, 0.18),
            line={"width": 0, "color": style.colour},
            hoverinfo="skip",
            legendgroup=name,
            showlegend=False,
            name=name,
            **axis(i),
        )


def add_bars(
    fig: go.Figure,
    i: int,
    at: Sequence[float],
    values: Sequence[float],
    *,
    name: str,
    style: theme.Style | Sequence[str],
    low: Sequence[float] | None = None,
    high: Sequence[float] | None = None,
    width: float = 0.8,
    horizontal: bool = False,
    legend: bool = True,
    labels: Sequence[str] | None = None,
    faint: bool = False,
) -> None:
    """Bars from zero at the positions ``at``, with intervals. ``style``: of all, or one colour per bar. ``labels``: of
    the hover text."""
    at, values = np.asarray(at, dtype=np.float64), np.asarray(values, dtype=np.float64)
    colour = style.colour if isinstance(style, theme.Style) else list(style)
    if faint and isinstance(colour, str):
        colour = theme.alpha(colour, 0.45)
    error = None
    if low is not None and high is not None:
        low, high = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
        # an interval that misses its own value (a rounded table) must not give a negative length
        error = {
            "type": "data",
            "symmetric": False,
            "array": np.clip(high - values, 0, None),
            "arrayminus": np.clip(values - low, 0, None),
        }
    name = safe(name)
    along = {"x": values, "y": at} if horizontal else {"x": at, "y": values}
    value_at = "%{x:.4g}" if horizontal else "%{y:.4g}"
    fig.add_bar(
        **along,
        orientation="h" if horizontal else "v",
        width=width,
        name=name,
        legendgroup=name,
        showlegend=legend,
        marker={"color": colour},
        customdata=[safe(t) for t in labels] if labels is not None else None,
        hovertemplate=("%{customdata}: " if labels is not None else "") + value_at + f"<extra>{name}</extra>",
        **{"error_x" if horizontal else "error_y": error},
        **axis(i),
    )
    fig.update_layout(barmode="overlay")


def add_points(
    fig: go.Figure,
    i: int,
    x: Sequence[float],
    y: Sequence[float],
    *,
    name: str,
    style: theme.Style,
    hover: Sequence[str],
    custom: Sequence | None = None,
    heads: np.ndarray | None = None,
    legend: bool = True,
    opacity: float = 0.85,
    large: bool = False,
) -> None:
    """Points with a hover text each (already escaped); ``large`` ones mark something on a curve. ``heads`` [n, 2]: the
    layer and head of each, where the points are heads."""
    fig.add_scatter(
        x=np.asarray(x, dtype=np.float64),
        y=np.asarray(y, dtype=np.float64),
        mode="markers",
        name=safe(name),
        legendgroup=safe(name),
        showlegend=legend,
        marker={
            "color": style.colour,
            "symbol": style.symbol,
            "opacity": opacity,
        },
        text=list(hover),
        customdata=custom if heads is None else heads,
        meta=HEAD_POINTS if heads is not None else LARGE if large else None,
        hovertemplate="%{text}<extra></extra>",
        **axis(i),
    )


def add_spots(
    fig: go.Figure,
    i: int,
    x: Sequence[float],
    y: Sequence[float],
    *,
    name: str,
    style: theme.Style,
    low: Sequence[float],
    high: Sequence[float],
    labels: Sequence[str],
    legend: bool = True,
) -> None:
    """Points with horizontal intervals, beside names on the y axis; a point without a value is left out."""
    x, y, low, high = (np.asarray(v, dtype=np.float64) for v in (x, y, low, high))
    good = np.isfinite(x)
    text = [
        f"{safe(label)}: {number(v)}" + (f" [{number(a)}, {number(b)}]" if np.isfinite(a) and np.isfinite(b) else "")
        for label, v, a, b, g in zip(labels, x, low, high, good)
        if g
    ]
    fig.add_scatter(
        x=x[good],
        y=y[good],
        mode="markers",
        name=safe(name),
        legendgroup=safe(name),
        showlegend=legend,
        marker={"color": style.colour, "symbol": style.symbol},
        error_x={
            "type": "data",
            "symmetric": False,
            "array": np.clip(high - x, 0, None)[good],
            "arrayminus": np.clip(x - low, 0, None)[good],
            "color": style.colour,
            "width": 0,
        },
        text=text,
        hovertemplate="%{text}<extra></extra>",
        **axis(i),
    )


def stop_colour(value: float, ends: tuple[float, float]) -> str:
    """The stop of the sequential scale nearest to a value: lines need a colour of their own, and only stops have a dark
    form. The palest stops, which vanish on paper, are left out."""
    stops = theme.SEQUENTIAL[2:]
    if not np.isfinite(value):
        return theme.NEUTRAL
    return stops[round(min(max((value - ends[0]) / (ends[1] - ends[0]), 0), 1) * (len(stops) - 1))]


def add_rule(
    fig: go.Figure,
    i: int,
    *,
    x: float | None = None,
    y: float | None = None,
    text: str = "",
    dash: str = "dash",
    where: str = "right",
) -> None:
    """A reference line across panel i at the level ``y`` or at ``x``, with a short label: at the ``right`` or ``left``
    end of a level, to the right or left of the top of an upright line."""
    panel = axis(i)
    across, along = panel["xaxis"], panel["yaxis"]
    line = {"dash": dash, "color": theme.MUTED}
    words = {"text": safe(text), "showarrow": False, "font": {"color": theme.MUTED}}
    if y is not None:
        fig.add_shape(
            type="line", xref=f"{across} domain", yref=along, x0=0, x1=1, y0=y, y1=y, line=line, layer="below"
        )
        if text:
            fig.add_annotation(
                xref=f"{across} domain",
                yref=along,
                x=float(where == "right"),
                y=y,
                xanchor=where,
                yanchor="bottom",
                **words,
            )
    if x is not None:
        fig.add_shape(
            type="line", xref=across, yref=f"{along} domain", x0=x, x1=x, y0=0, y1=1, line=line, layer="below"
        )
        if text:
            beside = {"xanchor": "left", "xshift": 3} if where == "right" else {"xanchor": "right", "xshift": -3}
            fig.add_annotation(xref=across, yref=f"{along} domain", x=x, y=1, yanchor="top", **beside, **words)


def add_note(fig: go.Figure, i: int, text: str, *, x: float = 1.0, y: float = 1.0) -> None:
    """Words inside panel i, at a corner given in fractions of it (lines joined by <br>; what comes from
    data through `safe`)."""
    panel = axis(i)
    fig.add_annotation(
        text=text,
        xref=panel["xaxis"] + " domain",
        yref=panel["yaxis"] + " domain",
        x=x,
        y=y,
        xanchor="right" if x > 0.5 else "left",
        yanchor="top" if y > 0.5 else "bottom",
        align="right" if x > 0.5 else "left",
        showarrow=False,
        xshift=-4 if x > 0.5 else 4,
        yshift=-2 if y > 0.5 else 2,
    )


def add_histogram(
    fig: go.Figure,
    i: int,
    values: Sequence[float],
    *,
    edges: np.ndarray,
    name: str,
    style: theme.Style,
    legend: bool = True,
    share: bool = True,
) -> None:
    """The share (or count) of ``values`` between the ``edges``, as a filled outline, so that several can be laid over
    each other."""
    values = np.asarray(values, dtype=np.float64)
    counts, _ = np.histogram(values[np.isfinite(values)], edges)
    heights = counts / max(counts.sum(), 1) if share else counts
    name = safe(name)
    x = np.repeat(edges, 2)
    y = np.concatenate([[0], np.repeat(heights, 2), [0]])
    fig.add_scatter(
        x=x,
        y=y,
        mode="lines",
        fill="tozeroy",
        name=name,
        legendgroup=name,
        showlegend=legend,
        line={"color": style.colour, "dash": style.dash},
        fillcolor=theme.alpha(style.colour, 0.18),
        hovertemplate="%{x:.4g}: %{y:.4g}" + f"<extra>{name}</extra>",
        **axis(i),
    )


def add_area(fig: go.Figure, i: int, x0: float, x1: float, *, style: theme.Style, text: str = "") -> None:
    """A shaded stretch of the x axis with its name at the top (a training phase)."""
    panel = axis(i)
    fig.add_shape(
        type="rect",
        xref=panel["xaxis"],
        yref=panel["yaxis"] + " domain",
        x0=x0,
        x1=x1,
        y0=0,
        y1=1,
        fillcolor=theme.alpha(style.colour, 0.10),
        line={"width": 0},
        layer="below",
    )
    if text:
        log = x_axis(fig, i).type == "log"
        middle = (np.log10(max(x0, 1e-12)) + np.log10(max(x1, 1e-12))) / 2 if log else (x0 + x1) / 2
        fig.add_annotation(
            text=safe(text),
            xref=panel["xaxis"],
            yref=panel["yaxis"] + " domain",
            x=middle,
            y=1,
            xanchor="center",
            yanchor="bottom",
            showarrow=False,
            font={"color": theme.MUTED},
        )


def log_axis(target: go.layout.XAxis | go.layout.YAxis, values: Sequence[float]) -> None:
    """A logarithmic axis, labelled at powers of ten where three lie in the range of the values, else at 1, 2 and 5 of
    each, or at every digit (Plotly would write the digits smaller, one over another)."""
    values = np.asarray(values, dtype=np.float64)
    values = values[np.isfinite(values) & (values > 0)]
    target.update(type="log", dtick=1 if len(values) else None, exponentformat="power")
    if not len(values):
        return
    tens = 10.0 ** np.arange(np.floor(np.log10(values.min())), np.ceil(np.log10(values.max())) + 1)
    within = lambda marks: int(((marks >= values.min()) & (marks <= values.max())).sum())  # noqa: E731
    if within(tens) >= 3:
        return
    marks = np.outer(tens, [1, 2, 5]).ravel()
    marks = marks if within(marks) >= 3 else np.outer(tens, range(1, 10)).ravel()
    target.update(dtick=None, tickmode="array", tickvals=marks.tolist(), ticktext=[f"{mark:g}" for mark in marks])


def whole_numbers(target: go.layout.XAxis, values: Sequence[float]) -> None:
    """An axis of small counts: every one of them written, no halves between."""
    values = np.asarray(values, dtype=np.float64)
    values = values[np.isfinite(values)]
    if len(values) and np.ptp(values) <= 10:
        target.update(tickmode="linear", tick0=0, dtick=1)


def level_axis(fig: go.Figure, i: int, *, low: float = 0.0, high: float = 1.0) -> None:
    """A y axis for rates: the whole range, with room for a marker at its ends."""
    pad = 0.04 * (high - low)
    y_axis(fig, i).range = [low - pad, high + pad]
