"""A figure of one run's heads in the colours of another run: which of them are high in what that one measured?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl

from workbench.core import registry
from workbench.core.errors import InputError
from workbench.core.nearest_name import nearest
from workbench.figures import probe_name, traces
from workbench.figures import style as theme
from workbench.figures.layout import CELL_MARK, HEAD_POINTS, about
from workbench.figures.run_tables import finite, identity, info, maybe, model_name, source

OUTLINED = 10  # heads that are outlined on a map, where every cell has a colour of its own


def scores_of(run: Any, column: str | None = None) -> tuple[pl.DataFrame, str]:
    """What a run says of its heads: a table with layer, head and the column, and the column (the run's main score where
    None). Raises InputError where its probe scores no heads, the run has no such table, or there is no such column."""
    probe = registry.get(probe_name(run))
    offered = {}
    for table, columns in probe.head_scores.items():
        frame = maybe(run, table)
        if frame is not None:
            offered |= {name: frame for name in columns if name in frame.columns and _is_number(frame[name])}
    if not offered:
        raise InputError(f"The run {identity(run)} scores no heads: it cannot colour the heads of another.")
    column = next(iter(offered)) if column is None else column
    if column not in offered:
        raise InputError(
            f"The run {identity(run)} has no score of heads called '{column}'{nearest(column, offered)}; it has "
            f"{', '.join(offered)}."
        )
    frame = offered[column].select("layer", "head", pl.col(column).cast(pl.Float64))
    return finite(frame, column, what="score of heads"), column


def _is_number(column: pl.Series) -> bool:
    return column.dtype.is_numeric() or column.dtype == pl.Boolean


def coloured_by(fig: go.Figure, run: Any, other: Any, column: str | None = None) -> go.Figure:
    """A copy of a figure of ``run`` in which points that are heads have the colour of ``column`` of the run ``other``,
    and a map of heads outlines the ten that are highest in it.

    Raises InputError for a figure without heads, for runs of models of other shapes, and as :func:`scores_of`."""
    frame, column = scores_of(other, column)
    for what in ("layers", "heads"):
        mine, theirs = (info(one, "model", what) for one in (run, other))
        if None not in (mine, theirs) and mine != theirs:
            raise InputError(
                f"The model of the run {identity(run)} has {mine} {what}, that of {identity(other)} {theirs}: their "
                "heads are not the same."
            )
    values = {(layer, head): value for layer, head, value in frame.iter_rows()}
    made = go.Figure(fig)
    points = [trace for trace in made.data if trace.meta == HEAD_POINTS]
    cells = [trace for trace in made.data if trace.type == "bar"] if "heads" in (made.layout.meta or {}) else []
    if not points and not cells:
        raise InputError(f"This figure of the run {identity(run)} shows no heads that could be coloured.")
    label = f"{column}, {identity(other)}"
    if points:
        _coloured(made, points, values, label)
    if cells:
        _outlined(cells, values)
        about(made, note=_joined(made, f"Outlined: the {min(OUTLINED, len(values))} heads highest in {label}."))
    else:
        about(made, note=_joined(made, f"Colour: {label}; grey where it has no value."))
    return made


def all_coloured(figures: Mapping[str, go.Figure], run: Any, other: Any, column: str | None) -> dict[str, go.Figure]:
    """Those of the figures that show heads, coloured, by their names with the column's. Raises InputError where none
    does, and as :func:`coloured_by`."""
    column = scores_of(other, column)[1]
    with_heads = {name: fig for name, fig in figures.items() if shows_heads(fig)}
    if not with_heads:
        raise InputError(f"No figure of the run {identity(run)} shows heads that could be coloured.")
    return {f"{name}-by-{column}": coloured_by(fig, run, other, column) for name, fig in with_heads.items()}


def shows_heads(fig: go.Figure) -> bool:
    """Whether its cells or some of its points are heads."""
    return "heads" in (fig.layout.meta or {}) or any(trace.meta == HEAD_POINTS for trace in fig.data)


def _coloured(fig: go.Figure, points: list[Any], values: dict[tuple[int, int], float], label: str) -> None:
    """Points with a value in its colour; those without stay, grey, in a trace of their own."""
    traces.colour_scale(fig, traces.limits(np.array(list(values.values()))), label)
    symbols = [trace.marker.symbol for trace in points]
    for trace in points:
        if len(set(symbols)) < len(symbols):
            trace.showlegend = False  # a class that only its own colour told from the others
        found = np.array([values.get((int(head[0]), int(head[1])), np.nan) for head in trace.customdata])
        known = np.isfinite(found)
        said = [f"{text}<br>{traces.safe(label)}: {traces.number(v)}" for text, v in zip(trace.text, found)]
        parts = {name: np.asarray(getattr(trace, name), dtype=object) for name in ("x", "y", "customdata")}
        parts["text"] = np.array(said, dtype=object)
        if not known.all():
            grey = fig.add_trace(trace).data[-1]
            grey.update({name: list(part[~known]) for name, part in parts.items()}, showlegend=False)
            grey.marker.color = theme.MISSING
        trace.update({name: list(part[known]) for name, part in parts.items()})
        trace.marker.update(color=found[known], coloraxis="coloraxis", opacity=0.95)
        trace.marker.line = {"width": 0.5, "color": theme.MUTED}


def _outlined(cells: list[Any], values: dict[tuple[int, int], float]) -> None:
    top = set(sorted(values, key=lambda head: (-values[head], head))[:OUTLINED])
    for trace in cells:
        edge = [1.6 if (int(cell[0]), int(cell[1])) in top else 0.0 for cell in trace.customdata]
        trace.marker.line = {"color": theme.INK, "width": edge}
        trace.meta = CELL_MARK


def in_words(other: Any) -> str:
    """What the caption of such a figure says of the run that colours it."""
    return f"Coloured by {model_name(other)} ({source(other)}, run {identity(other)})."


def _joined(fig: go.Figure, sentence: str) -> str:
    return " ".join(filter(None, [str((fig.layout.meta or {}).get("note") or ""), sentence]))
