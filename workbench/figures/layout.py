"""From what a figure shows to how it is laid out at a given width.

A builder makes a :func:`sheet` of panels, adds traces, and returns ``dressed(fig)``. What the layout needs to know is
kept in ``fig.layout.meta``, so that the same figure can be dressed again: dark for the screen, 3.25 inches wide for a
column, or for a slide. All lengths here are CSS pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import plotly.graph_objects as go

from workbench.core.errors import InputError
from workbench.figures import style as theme
from workbench.figures.figure_geometry import (
    CELL_MARK,
    CELL_TEXT,
    HEAD_POINTS,
    LARGE,
    arrange,
    arrange_table,
    axis,
    shorten,
    wrap,
    x_axis,
    y_axis,
)

__all__ = [
    "CELL_MARK",
    "CELL_TEXT",
    "HEAD_POINTS",
    "LARGE",
    "about",
    "axis",
    "dressed",
    "sheet",
    "shorten",
    "ticks",
    "wrap",
    "x_axis",
    "y_axis",
]


def ticks(
    values: Sequence[float], text: Sequence[str] | None = None, *, keep: bool = False, lines: int = 1
) -> dict[str, Any]:
    """Ticks of an axis whose positions mean things: names (``keep``: the panel grows until all fit) or whole numbers
    (every so many are written). ``lines``: a long name beside a y axis is broken into so many (a `row` of the sheet
    must have room for them) before it is cut."""
    values = [float(v) for v in values]
    return {
        "values": values,
        "text": [str(t) for t in text] if text is not None else [f"{v:g}" for v in values],
        "keep": keep,
        "lines": lines,
    }


def sheet(
    titles: Sequence[str] = ("",),
    *,
    title: str = "",
    x: str | Sequence[str] = "",
    y: str | Sequence[str] = "",
    x_ticks: dict | Sequence[dict | None] | None = None,
    y_ticks: dict | Sequence[dict | None] | None = None,
    share_x: bool = True,
    share_y: bool = True,
    aspect: float = 0.62,
    columns: int = 3,
    cells: tuple[int, int] | None = None,
    bare: bool = False,
    row: float = 1.0,
    note: str = "",
    interval: str = "",
    n: int | str | None = None,
    rows: int | str | None = None,
) -> go.Figure:
    """An empty figure of ``len(titles)`` panels; panel i has the axes ``axis(i)``.

    ``x``, ``y``, ``x_ticks``, ``y_ticks``: for all panels, or one per panel. ``share_*``: panels have the same range
    and only the outer ones are labelled. ``aspect``: height over width of a panel. ``columns``: at most so many side by
    side. ``cells``: (rows, columns) where the panel is a grid of cells. ``bare``: axes without ticks, for maps whose
    directions mean nothing. ``row``: room for each name of a y axis, in lines. ``note``, ``interval``: for the
    caption, as are ``n``, the number of independent clusters ("12 needles"), and ``rows``, how many rows they have.
    """
    count = len(titles)

    def each(value, kinds):
        return [value] * count if value is None or isinstance(value, kinds) else list(value)

    panels = [
        {"title": t, "x": a, "y": b, "x_ticks": c, "y_ticks": d}
        for t, a, b, c, d in zip(titles, each(x, str), each(y, str), each(x_ticks, dict), each(y_ticks, dict))
    ]
    fig = go.Figure(
        layout={"template": "none"}
    )  # building on Plotly's own template and replacing it later takes longer
    fig.layout.meta = {
        "panels": panels,
        "share_x": share_x,
        "share_y": share_y,
        "aspect": aspect,
        "columns": columns,
        "cells": list(cells) if cells else None,
        "bare": bare,
        "row": row,
        "title": title,
        "note": note,
        "interval": interval,
        "n": n,
        "rows": rows,
        "mode": "light",
    }
    for i in range(count):
        suffix = "" if i == 0 else str(i + 1)
        fig.layout[f"xaxis{suffix}"] = {"anchor": f"y{suffix}"}
        fig.layout[f"yaxis{suffix}"] = {"anchor": f"x{suffix}"}
        if share_x and i:
            fig.layout[f"xaxis{suffix}"].matches = "x"
        if share_y and i:
            fig.layout[f"yaxis{suffix}"].matches = "y"
    return fig


def about(fig: go.Figure, **more: Any) -> go.Figure:
    """Add to what the caption of a figure says (``note``, ``interval``, ``n``, ``title``)."""
    fig.layout.meta = {**(fig.layout.meta or {}), **more}
    return fig


def dressed(
    fig: go.Figure, *, mode: str = "light", preset: str = "screen", width: int | None = None, height: int | None = None
) -> go.Figure:
    """A copy of a figure of this package in ``mode`` (light, dark) at the size of ``preset`` (single, double, slide,
    screen).

    ``width``, ``height``: pixels, instead of those of the preset. A figure that was not made by :func:`sheet` gets the
    template and the size only. Raises InputError for an unknown mode or preset and for a figure that is already dark.
    """
    if mode not in theme.MODES:
        raise InputError(f"A figure is light or dark, not '{mode}'.")
    if preset not in theme.PRESETS:
        raise InputError(f"There is no figure size '{preset}'; the sizes are {', '.join(theme.PRESETS)}.")
    meta = fig.layout.meta if isinstance(fig.layout.meta, Mapping) else {}
    if meta.get("mode") == "dark":
        raise InputError("This figure is already in its dark form; dress the light one.")
    size = theme.PRESETS[preset]
    made = _copy(fig)
    width = width or size.width
    if "panels" in meta:
        meta = {**meta, **arrange(made, dict(meta), size, width, height or size.height)}
    elif "words" in meta:
        meta = {**meta, **arrange_table(made, dict(meta), size, width, height)}
    else:
        made.update_layout(height=height or size.height or round(width * 0.6))
    made.layout.meta = meta or None
    made.layout.width = None if size.fluid else width
    made.layout.autosize = size.fluid
    if mode == "dark":
        made = _copy(made, mode="dark")
        made.layout.meta = {**meta, "mode": "dark"}
    made.layout.template = _template(mode, preset)
    return made


def _copy(fig: go.Figure, mode: str = "light") -> go.Figure:
    """The figure without its template, in the colours of ``mode``. (Figure.to_plotly_json would turn arrays into
    text.)"""
    layout = {key: value for key, value in fig.layout.to_plotly_json().items() if key != "template"}
    data = [theme.in_mode(trace.to_plotly_json(), mode) for trace in fig.data]
    return go.Figure(data=data, layout={**theme.in_mode(layout, mode), "template": "none"})


@cache
def _template(mode: str, preset: str) -> go.layout.Template:
    return go.layout.Template(theme.template(mode, preset))
