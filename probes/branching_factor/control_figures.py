"""Figures of the controls: random tokens put into outputs, and feedback on answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
import polars as pl

from probes.branching_factor.drawn_conditions import INTERVAL, LABEL
from workbench.figures import style as theme
from workbench.figures import traces
from workbench.figures.layout import dressed, sheet, ticks, y_axis
from workbench.figures.run_tables import finite, model_name, need, numbers

INSERTED = {"nothing": "nothing", "own": "its own tokens", "shuffled": "its own, shuffled", "random": "random tokens"}
FEEDBACK = {"control": "the answer holds", "adversarial": "it does not hold", "noise": "random letters"}


def random_prefix(run: Any) -> go.Figure:
    """Branching factor of what follows nothing, the model's own, shuffled and random tokens, and what the last two
    change."""
    frame = finite(need(run, "random_prefix", ("offset", "inserted", "bf", "difference")), "bf", what=LABEL)
    offsets = frame["offset"].unique(maintain_order=True).to_list()
    width = int(frame["tokens"].max())
    fig = _sheet(
        frame,
        title=f"After {width} inserted tokens, {model_name(run)}",
        names=[f"after {t} tokens" for t in offsets],
        other="its own tokens",
        room=2.0,
        note="Outputs that are longer than the offset and the inserted tokens.",
    )
    kinds = [kind for kind in INSERTED if kind in frame["inserted"].to_list()]
    styles = theme.sequence([INSERTED[kind] for kind in kinds])
    for j, kind in enumerate(kinds):
        own = frame.filter(pl.col("inserted") == kind)
        at = [offsets.index(t) + (j - (len(kinds) - 1) / 2) * 0.18 for t in own["offset"]]
        _spots(fig, own, at, INSERTED[kind], styles[INSERTED[kind]], labels=[f"after {t}" for t in own["offset"]])
    return _finished(fig, len(offsets))


def feedback(run: Any) -> go.Figure:
    """Branching factor of the answer to each kind of feedback, and what it differs by from that to the control."""
    frame = finite(need(run, "feedback", ("feedback", "bf", "difference")), "bf", what=LABEL)
    names = [FEEDBACK.get(kind, kind) for kind in frame["feedback"]]
    fig = _sheet(
        frame,
        title=f"The answer to feedback, {model_name(run)}",
        names=names,
        other="the control",
        room=1.5,
        note="All three are written alike; only what the feedback says differs.",
    )
    styles = theme.sequence(names)
    for j, name in enumerate(names):
        _spots(fig, frame[[j]], [j], name, styles[name], labels=[name], legend=False)
    return _finished(fig, len(names))


def _sheet(frame: pl.DataFrame, *, title: str, names: Sequence[str], other: str, room: float, note: str) -> go.Figure:
    """Two panels with the same names on their y axes: the branching factors, and their differences."""
    return sheet(
        [LABEL, f"less that after {other}"],
        title=title,
        x=["BF", "difference of BF"],
        y_ticks=ticks(range(len(names)), names, keep=True),
        share_x=False,
        row=room,
        aspect=0.15 * len(names) + 0.2,
        interval=f"{INTERVAL}; differences paired",
        n=f"{frame['prompts'].max()} prompts",
        rows=f"{frame['rows'].max()} outputs" if frame["rows"].max() != frame["prompts"].max() else None,
        note=note,
    )


def _spots(fig: go.Figure, own: pl.DataFrame, at: Sequence[float], name: str, style: theme.Style, **more: Any) -> None:
    for i, (value, low, high) in enumerate(
        (("bf", "ci_low", "ci_high"), ("difference", "difference_low", "difference_high"))
    ):
        shown = {"legend": i == 0} | more
        ends = {"low": numbers(own, low), "high": numbers(own, high)}
        traces.add_spots(fig, i, numbers(own, value), at, name=name, style=style, **ends, **shown)


def _finished(fig: go.Figure, count: int) -> go.Figure:
    traces.add_rule(fig, 0, x=1, dash="dot")
    traces.add_rule(fig, 1, x=0, dash="dash")
    for i in range(2):
        y_axis(fig, i).range = [count - 0.5, -0.5]
    return dressed(fig)
