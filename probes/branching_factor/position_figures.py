"""Figures of the branching factor along the output: of one run, and of several runs in one figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl

from probes.branching_factor.drawn_conditions import (
    INTERVAL,
    LABEL,
    PER_BYTE,
    joined,
    looks,
    size,
    tokenizers_of,
    with_condition,
)
from probes.branching_factor.two_runs import first_condition, paired
from workbench.figures import traces
from workbench.figures.layout import dressed, sheet, ticks, x_axis, y_axis
from workbench.figures.run_tables import finite, maybe, model_name, need, numbers
from workbench.stats.clusters import FEWEST

ENDS = {  # intervals of the curves
    "bf_cohort": ("cohort_low", "cohort_high"),
    "bf_window": ("window_low", "window_high"),
    "bf_prefix": ("ci_low", "ci_high"),
}
BANDED = 6  # conditions of which intervals are drawn; of more, they hide each other's curves (the table has them)
SHORT = "BF"  # y titles of low panels one above another must not touch


def positions(run: Any) -> go.Figure:
    """Branching factor along the output: in windows over one cohort of samples, of everything up to a position, and
    how many samples are still going."""
    frame = with_condition(need(run, "positions", ("position", "bf_prefix")), run)
    note = joined(_cohort_note(run), tokenizers_of([run]))
    return _positions(frame, f"Branching factor of {model_name(run)} along the output", note, n=size(run))


def compare(runs: Sequence[Any]) -> go.Figure:
    """Several runs in one figure, the first condition of each: the branching factor along the output; nats per byte
    where their models cut text into different tokens."""
    names = _run_names(runs)
    said = tokenizers_of(runs)
    if said and all(first_condition(run) is not None for run in runs):
        return _per_byte(runs, names, said)
    frames = []
    for run, name in zip(runs, names):
        frame = with_condition(need(run, "positions", ("position", "bf_prefix")), run)
        frames.append(frame.filter(pl.col("condition") == frame["condition"][0]).with_columns(condition=pl.lit(name)))
    counted = dict.fromkeys(filter(None, map(size, runs)))
    n = "; ".join(counted) or None
    return _positions(pl.concat(frames, how="diagonal_relaxed"), "Branching factor along the output", said, n=n)


def _per_byte(runs: Sequence[Any], names: list[str], said: str) -> go.Figure:
    """Nats per byte of every run, and of each over the first one's on the prompts that they share."""
    rows = [first_condition(run) for run in runs]
    fig = sheet(
        [PER_BYTE, f"over that of {names[0]}"],
        title="Nats per byte",
        x=["nats per byte", "ratio"],
        y_ticks=ticks(range(len(names)), names, keep=True),
        share_x=False,
        row=1.6,
        aspect=0.1 * len(names) + 0.1,
        interval="95 % t over prompts (right: paired, prompts that both runs have)",
        n="; ".join(dict.fromkeys(filter(None, map(size, runs)))) or None,
        note=said,
    )
    ratios = [paired(runs[0], run) for run in runs]
    for j, (name, style) in enumerate(looks(names).items()):
        row, ratio = rows[j], ratios[j]
        assert row is not None
        ends = [row.get(key) for key in ("nats_per_byte", "nats_per_byte_low", "nats_per_byte_high")]
        found = [ends, [1.0, np.nan, np.nan] if j == 0 else [ratio.value, ratio.low, ratio.high]]
        for i, (value, low, high) in enumerate(found):
            low, high = (np.nan if end is None else end for end in (low, high))
            look = {"name": name, "style": style, "labels": [name], "legend": False}
            traces.add_spots(fig, i, [np.nan if value is None else value], [j], low=[low], high=[high], **look)
    traces.add_rule(fig, 1, x=1, dash="dash")
    for i in range(2):
        y_axis(fig, i).range = [len(names) - 0.5, -0.5]
    top = np.nanmax([1.0, *(v for r in ratios for v in (r.value, r.high) if np.isfinite(v))])
    x_axis(fig, 1).range = [0, 1.06 * top]
    x_axis(fig, 0).rangemode = "tozero"
    return dressed(fig)


def _run_names(runs: Sequence[Any]) -> list[str]:
    """The model of each run, with the run's id where a model has several."""
    names: list[str] = []
    for run in runs:
        name = model_name(run)
        names.append(f"{name} ({getattr(run, 'id', len(names))})" if name in names else name)
    return names


def _cohort_note(run: Any) -> str:
    """Which samples the cohort's curve is of."""
    frame = maybe(run, "conditions", ("condition", "cohort_tokens", "cohort_prompts", "cohort_samples", "course"))
    frame = None if frame is None else frame.filter(pl.col("cohort_tokens") > 0)
    if frame is None or frame.is_empty():
        return ""
    rows = list(frame.select("condition", "cohort_samples", "cohort_prompts", "cohort_tokens", "course").iter_rows())
    parts = [
        f"{f'{name}: ' if len(rows) > 1 else ''}{samples} samples of {prompts} prompts that last {tokens} tokens"
        f" ({course.removeprefix('—, ')})"
        for name, samples, prompts, tokens, course in rows
    ]
    return f"Cohort: {'; '.join(parts)}."


def _positions(frame: pl.DataFrame, title: str, note: str, n: str | None = None) -> go.Figure:
    frame = finite(frame, "bf_prefix", what=LABEL)
    if "prompts" in frame.columns and "bf_cohort" in frame.columns:  # older tables count the prompts of the prefix
        few = pl.col("prompts").fill_null(FEWEST) < FEWEST
        frame = frame.with_columns(bf_window=pl.when(few).then(None).otherwise(pl.col("bf_window")))
    panels = _panels(frame)
    names = frame["condition"].unique(maintain_order=True).to_list()
    if any(column == "bf_window" for _, column, _ in panels) and "bf_cohort" in frame.columns:
        note = joined(f"Windows with fewer than {FEWEST} prompts are not drawn.", note)
    banded = len(names) <= BANDED
    if not banded:
        note = joined(f"Intervals of more than {BANDED} conditions are not drawn; the table has them.", note)
    drawn = [(low, high) for _, column, _ in panels for low, high in [ENDS.get(column, ("", ""))] if low]
    fig = sheet(
        [p[0] for p in panels],
        title=title,
        x="position in the output (tokens)",
        y=[p[2] for p in panels],
        share_y=False,
        aspect=0.75,
        interval=INTERVAL if banded and any(np.isfinite(numbers(frame, low)).any() for low, _ in drawn) else "",
        n=n,
        note=note,
    )
    for i, (_, column, _) in enumerate(panels):
        _add_curves(fig, i, frame, column, names, banded=banded)
    return dressed(fig)


def _panels(frame: pl.DataFrame) -> list[tuple[str, str, str]]:
    """(title, column, y title) of the panels that have something to show; the cohort's curve comes first, and windows
    over whatever is still going are drawn only where there is no cohort."""
    shown = lambda column: column in frame.columns and np.isfinite(numbers(frame, column)).any()  # noqa: E731
    panels = [("up to here", "bf_prefix", SHORT)]
    if shown("bf_cohort"):
        panels.insert(0, ("in windows, same samples", "bf_cohort", SHORT))
    elif shown("bf_window"):
        panels.append(("in windows", "bf_window", SHORT))
    if "alive" in frame.columns and frame.group_by("condition").agg(pl.col("alive").n_unique())["alive"].max() > 1:
        panels.append(("samples still going", "alive", "share"))
    return panels


def _add_curves(fig: go.Figure, i: int, frame: pl.DataFrame, column: str, names: list[str], *, banded: bool) -> None:
    values = []
    for name, style in looks(names).items():
        own = frame.filter(pl.col("condition") == name).sort("position")
        y = numbers(own, column)
        y = y / np.nanmax(y) if column == "alive" else y  # older tables hold counts
        values.append(y)
        low, high = ENDS.get(column, (None, None)) if banded else (None, None)
        traces.add_curve(
            fig,
            i,
            numbers(own, "position"),
            y,
            name=name,
            style=style,
            legend=i == 0,
            markers=False,
            low=numbers(own, low) if low else None,
            high=numbers(own, high) if high else None,
            hover="position %{x}: %{y:.3g}",
        )
    if column == "alive":
        traces.level_axis(fig, i)
    elif np.nanmax(np.concatenate(values)) > 12:
        traces.log_axis(y_axis(fig, i), np.concatenate(values))
