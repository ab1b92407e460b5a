"""How much each sentence of an output decides its answer, as a figure."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl

from probes.branching_factor.drawn_conditions import INTERVAL
from workbench.core.errors import InputError
from workbench.figures import style as theme
from workbench.figures import traces
from workbench.figures.layout import dressed, sheet, x_axis
from workbench.figures.run_tables import maybe, model_name, need, numbers


def sentence_importance(run: Any) -> go.Figure:
    """Importance along the sentences, beside that of answers dealt out anew, and what a sentence does to accuracy."""
    frame = need(run, "sentence_means", ("sentence", "importance", "importance_null", "excess", "prompts"))
    frame = frame.drop_nulls(["sentence", "excess"]).sort("sentence")
    if frame.is_empty() or not np.isfinite(numbers(frame, "excess")).any():
        raise InputError("No sentence of the run was replaced often enough to have an importance.")
    accuracy = "accuracy_change" in frame.columns and np.isfinite(numbers(frame, "accuracy_change")).any()
    fig = sheet(
        ["answers with and without", "less chance", *(["accuracy with, less without"] if accuracy else [])],
        title=f"Sentences that decide the answer, {model_name(run)}",
        x="sentence of the output, from 0",
        y=["KL (nats)", "KL (nats)", *(["accuracy"] if accuracy else [])],
        share_y=False,
        aspect=0.75,
        interval=INTERVAL,
        n=f"{frame['prompts'].max()} prompts",
        note=_note(run),
    )
    at, blue = numbers(frame, "sentence"), theme.Style(theme.BLUE)
    hover = "sentence %{x}: %{y:.3g}"
    traces.add_curve(fig, 0, at, numbers(frame, "importance"), name="measured", style=blue, hover=hover)
    grey = theme.Style(theme.NEUTRAL, "dash", "square")
    traces.add_curve(
        fig, 0, at, numbers(frame, "importance_null"), name="answers dealt out anew", style=grey, hover=hover
    )
    for i, (value, ends) in enumerate((("excess", "excess"), ("accuracy_change", "change"))[: 1 + accuracy], 1):
        low, high = numbers(frame, f"{ends}_low"), numbers(frame, f"{ends}_high")
        look = {"name": "measured", "style": blue, "legend": False, "hover": hover}
        traces.add_curve(fig, i, at, numbers(frame, value), low=low, high=high, **look)
        traces.add_rule(fig, i, y=0, dash="dash")
    for i in range(2 + accuracy):
        traces.whole_numbers(x_axis(fig, i), at)
    return dressed(fig)


def _note(run: Any) -> str:
    """How many outputs the sentences are of, and how many of them are told from chance."""
    frame = maybe(run, "sentence_importance", ("prompt", "sample", "p", "anchor"))
    if frame is None or frame.is_empty():
        return ""
    outputs, tested = frame.select("prompt", "sample").n_unique(), frame["p"].count()
    found = int(frame["anchor"].fill_null(False).sum()) if frame["anchor"].dtype == pl.Boolean else 0
    return f"{found} of {tested} sentences of {outputs} outputs are told from chance (false discoveries below 5 %)."
