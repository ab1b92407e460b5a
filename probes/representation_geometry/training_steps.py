"""Training steps in figures: as an axis, as colours, and with the phases behind them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl

from workbench.figures import style as theme
from workbench.figures import traces
from workbench.figures.layout import x_axis
from workbench.figures.run_tables import maybe, numbers

PHASES = {"warm-up": theme.OCHRE, "entropy-seeking": theme.BLUE, "compression-seeking": theme.RED}


def step_scale(fig: go.Figure, frame: pl.DataFrame) -> None:
    """A colour bar in place of a legend of many checkpoints."""
    steps = numbers(frame, "step")
    if not np.isfinite(steps).any():
        return
    low, high = float(np.nanmin(steps)), float(np.nanmax(steps))
    fig.update_layout(
        coloraxis={
            "colorscale": theme.scale(theme.SEQUENTIAL[2:]),
            "cmin": low,
            "cmax": high,
            "colorbar": {"title": {"text": "checkpoint"}},
        }
    )
    fig.update_layout(
        coloraxis_colorbar={"tickmode": "array", "tickvals": [low, high], "ticktext": [f"{low:g}", f"{high:g}"]}
    )
    fig.add_scatter(
        x=[None],
        y=[None],
        mode="markers",
        marker={"color": [low], "coloraxis": "coloraxis"},
        showlegend=False,
        hoverinfo="skip",
        xaxis="x",
        yaxis="y",
    )


def shade(fig: go.Figure, i: int, run: Any, place: Callable[[np.ndarray], np.ndarray]) -> None:
    """Put the phases behind panel i; `place`: where a step stands on its axis (`step_axis`)."""
    phases = maybe(run, "phases", ("phase", "start_step", "end_step"))
    if phases is None:
        return
    seen: set[str] = set()
    for phase, start, end in phases.select("phase", "start_step", "end_step").iter_rows():
        if start is None or end is None:
            continue
        colour = PHASES.get(str(phase).split(" (")[0], theme.NEUTRAL)
        a, b = float(place(np.float64(start))), float(place(np.float64(end)))
        traces.add_area(fig, i, a, b, style=theme.Style(colour))
        if i == 0 and phase not in seen:  # names over the areas would collide where a phase is short
            fig.add_scatter(
                x=[None],
                y=[None],
                mode="markers",
                name=traces.safe(phase),
                showlegend=True,
                hoverinfo="skip",
                marker={"symbol": "square", "color": theme.alpha(colour, 0.35)},
                xaxis="x",
                yaxis="y",
            )
            seen.add(phase)


def logarithmic(steps: np.ndarray) -> bool:
    """Checkpoints that are denser at the beginning are read on a logarithmic axis."""
    positive = np.unique(steps[steps > 0])
    return len(positive) > 3 and positive[-1] / positive[0] >= 50 and np.median(positive) < 0.3 * positive[-1]


def step_axis(fig: go.Figure, i: int, steps: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Make the x axis of a panel one of training steps; returns where a step stands on it."""
    if not logarithmic(steps):
        return lambda value: value
    traces.log_axis(x_axis(fig, i), steps)
    return lambda value: np.maximum(value, before_first(steps))


def before_first(steps: np.ndarray) -> float:
    return float(np.min(steps[steps > 0])) / 2
