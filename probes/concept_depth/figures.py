"""Figures of the concept-depth probe: at which layer a concept can be read, and whether the model uses what is read."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

from probes.concept_depth.causal_figures import causal, steering
from probes.concept_depth.condition_figures import conditions, path
from probes.concept_depth.curve_figures import compare, curves
from probes.concept_depth.depth_figures import concept_map, points
from probes.concept_depth.number_figure import number_curves
from probes.concept_depth.selectivity_figure import selectivity
from probes.concept_depth.transfer_figure import transfer
from workbench.figures.run_tables import drawn

__all__ = ["FIGURES", "compare", "figures"]

FIGURES = {
    "curves": curves,
    "number_curves": number_curves,
    "concept_map": concept_map,
    "points": points,
    "selectivity": selectivity,
    "conditions": conditions,
    "causal": causal,
    "steering": steering,
    "transfer": transfer,
    "path": path,
}


def figures(run: Any) -> dict[str, go.Figure]:
    """Every figure that the tables of the run allow."""
    return drawn(run, FIGURES)
