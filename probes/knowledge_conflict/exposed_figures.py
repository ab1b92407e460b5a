"""Figures of activation patching and of paths between heads: grids of cells, outlined where they are told from 0."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl

from probes.knowledge_conflict.config import FALSE_DISCOVERIES
from workbench.figures import traces
from workbench.figures.layout import dressed, sheet, ticks
from workbench.figures.run_tables import finite, model_name, need

PLACES = {
    "subject_context": "context subject",
    "attribute_context": "context attribute",
    "subject_question": "question subject",
    "last": "last token",
}
COMPONENTS = {"residual": "residual stream", "attention": "attention output", "mlp": "MLP output"}
THROUGH = {"q": "query", "k": "keys", "v": "values"}
MARKED = f"Outlined: told from 0 at a false discovery rate of {FALSE_DISCOVERIES:.0%}, and of the least size. "
LABEL = "memory − context importance"


def patching(run: Any) -> go.Figure:
    """Memory minus context importance of every layer at the names and at the last position, one panel per component."""
    frame = need(run, "patching", ("component", "layer", "position", "score", "p_adjusted", "shown", "n"))
    frame = finite(frame, "score", what="patched positions")
    components = [name for name in COMPONENTS if name in frame["component"].to_list()]
    places = [name for name in PLACES if name in frame["position"].to_list()]
    shape = (int(frame["layer"].max()) + 1, len(places))  # pyright: ignore[reportOperatorIssue, reportArgumentType]
    fig = sheet(
        [COMPONENTS[name] for name in components],
        title=f"Where {model_name(run)} carries memory and context",
        x="position replaced",
        y="layer",
        x_ticks=ticks(range(len(places)), [PLACES[name] for name in places], keep=True),
        y_ticks=ticks(range(shape[0])),
        aspect=min(1.4, max(0.5, shape[0] / 8)),
        cells=shape,
        note=f"Total effect of one activation of the corrupted prompt; {MARKED}",
        n=_of(frame),
    )
    ends = traces.limits(frame["score"].to_numpy(), diverging=True)
    traces.colour_scale(fig, ends, LABEL, diverging=True)
    for i, component in enumerate(components):
        own = frame.filter(pl.col("component") == component)
        rows = [(layer, places.index(place)) for layer, place in own.select("layer", "position").iter_rows()]
        names = [[f"layer {layer}, {PLACES[name]}" for name in places] for layer in range(shape[0])]
        _cells(fig, i, own, rows, names, ends)
    return dressed(fig)


def paths(run: Any) -> go.Figure:
    """Memory minus context importance of every path from a sender to a receiver, one panel for its query, keys and
    values."""
    columns = ("sender_layer", "sender_head", "receiver_layer", "receiver_head", "through", "sender", "score")
    frame = finite(need(run, "paths", (*columns, "p_adjusted", "shown", "n")), "score", what="paths between heads")
    senders = [
        (kind, head)
        for kind in ("top", "random")
        for head in sorted(set(frame.filter(pl.col("sender") == kind).select(columns[:2]).iter_rows()))
    ]
    receivers = sorted(set(frame.select(columns[2:4]).iter_rows()))
    sides = [side for side in THROUGH if side in frame["through"].to_list()]
    fig = sheet(
        [f"through its {THROUGH[side]}" for side in sides],
        title=f"Which heads speak to which in {model_name(run)}",
        x="receiver (layer.head)",
        y="sender (layer.head)",
        x_ticks=ticks(range(len(receivers)), [f"{a}.{b}" for a, b in receivers], keep=len(receivers) <= 12),
        y_ticks=ticks(
            range(len(senders)), [f"{a}.{b}{' random' * (kind == 'random')}" for kind, (a, b) in senders], keep=True
        ),
        aspect=min(1.6, max(0.5, len(senders) / max(1, len(receivers)) / 2)),
        cells=(len(senders), len(receivers)),
        note=f"The path alone carries what the sender says on the corrupted prompt; {MARKED}Grey: not measured.",
        n=_of(frame),
    )
    ends = traces.limits(frame["score"].to_numpy(), diverging=True)
    traces.colour_scale(fig, ends, LABEL, diverging=True)
    at = {head: n for n, (_, head) in enumerate(senders)}
    names = [[f"{s[0]}.{s[1]} to {r[0]}.{r[1]}" for r in receivers] for _, s in senders]
    for i, side in enumerate(sides):
        own = frame.filter(pl.col("through") == side)
        rows = [(at[a, b], receivers.index((c, d))) for a, b, c, d in own.select(columns[:4]).iter_rows()]
        _cells(fig, i, own, rows, names, ends)
    return dressed(fig)


def _cells(
    fig: go.Figure, i: int, own: pl.DataFrame, rows: list[tuple[int, int]], names: list[list[str]], ends: tuple
) -> None:
    """The scores of `own` in the cells `rows`, outlined where they are shown."""
    shape = (len(names), len(names[0]))
    values, p, marked = np.full(shape, np.nan), np.full(shape, np.nan), np.zeros(shape, bool)
    for place, score, adjusted, shown in zip(rows, own["score"], own["p_adjusted"], own["shown"]):
        values[place], p[place], marked[place] = score, np.nan if adjusted is None else adjusted, bool(shown)
    custom = np.stack([np.array(names, dtype=object), values.astype(object), p.astype(object)], axis=-1)
    hover = f"%{{customdata[0]}}<br>{LABEL} %{{customdata[1]:+.3f}}<br>adjusted p %{{customdata[2]:.2g}}"
    traces.add_cells(fig, i, values, custom=custom, hover=hover, ends=ends, diverging=True, marked=marked)


def _of(frame: pl.DataFrame) -> str:
    """How many subjects and items the table is of, at most."""
    rows = f", {frame['rows'].max()} items" if "rows" in frame.columns else ""
    return f"{frame['n'].max()} subjects{rows}"
