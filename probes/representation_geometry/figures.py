"""Figures of the representation-geometry probe: effective dimension over layers and training, spectra, maps."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go
import polars as pl

from probes.representation_geometry import layer_figures, loss_figures, shape_figures, similarity_figures
from probes.representation_geometry import spectrum_figures as spectra
from workbench.figures.point_map import map_figure
from workbench.figures.run_tables import drawn, info, model_name, need


def embedding(run: Any) -> go.Figure:
    """PCA and UMAP of the features, coloured by the column that the run was told to."""
    frame = need(run, "map", ("method", "x", "y"))
    methods = frame["method"].unique(maintain_order=True).to_list()
    coloured = "colour" in frame.columns and frame["colour"].null_count() < frame.height
    names = {"pca": "PCA", "umap": "UMAP"}
    return map_figure(
        [(names.get(m, m), frame.filter(pl.col("method") == m)) for m in methods],
        colour="colour" if coloured else None,
        label=str(info(run, "config", "colour", default="")),
        title=f"Map of the representations of {model_name(run)}",
        n=f"{frame.filter(pl.col('method') == methods[0]).height} texts",
    )


FIGURES = {
    "layers": layer_figures.layers,
    "trajectory": layer_figures.trajectory,
    "spectrum": spectra.spectrum,
    "embedding": embedding,
    "eigen_ablation": loss_figures.eigen_ablation,
    "memorisation": loss_figures.memorisation,
    "correlation": loss_figures.correlation,
    "samples": spectra.samples,
    "dimension": shape_figures.dimension,
    "similarity": similarity_figures.similarity_of_layers,
    "similarity_over_training": similarity_figures.similarity_of_checkpoints,
    "cosine": shape_figures.cosine,
    "curvature": shape_figures.curvature,
}


def figures(run: Any) -> dict[str, go.Figure]:
    """Every figure that the tables of the run allow."""
    return drawn(run, FIGURES)
