"""Maps of the last layer's features in two dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
import torch

from probes.representation_geometry.features import Checkpoint
from probes.representation_geometry.spectra import Spectrum
from workbench.models.sites import Site

SCHEMA = {
    "checkpoint": pl.String,
    "step": pl.Int64,
    "layer": pl.Int64,
    "method": pl.String,
    "row": pl.Int64,
    "x": pl.Float64,
    "y": pl.Float64,
    "colour": pl.String,
    "seed": pl.Int64,
}


def map_table(checkpoint: Checkpoint, spectrum: Spectrum, methods: Sequence[str]) -> pl.DataFrame:
    """One row per sequence and method, from the last layer's `spectrum`; `row` is that of the data file, as in
    `inputs`."""
    if not methods or len(spectrum.directions) < 2:
        return pl.DataFrame(schema=SCHEMA)
    context, texts, last = checkpoint.context, checkpoint.texts, checkpoint.model.n_layers - 1
    chosen = np.sort(context.rng("map").permutation(len(texts.ids))[: checkpoint.config.map_rows])
    features = _features(checkpoint, checkpoint.layers()[last], chosen)
    seed = context.torch_seed("umap") % 2**31
    colours = None if texts.colours is None else [texts.colours[i] for i in chosen]
    tables = []
    for method in methods:
        xy = _principal_axes(features, spectrum) if method == "pca" else _umap(features, seed)
        columns = {"layer": last, "method": method, "row": np.asarray(texts.rows)[chosen], "x": xy[:, 0], "y": xy[:, 1]}
        colour = pl.Series(colours or [None] * len(chosen), dtype=pl.String)
        tables.append(pl.DataFrame(checkpoint.where | columns | {"colour": colour, "seed": seed}, schema=SCHEMA))
    return pl.concat(tables)


def _features(checkpoint: Checkpoint, site: Site, chosen: np.ndarray) -> np.ndarray:
    """Features [chosen, d] of some texts."""
    place = {int(row): k for k, row in enumerate(chosen)}
    out = np.empty((len(chosen), checkpoint.model.width))
    for rows, features in checkpoint.features():
        for row, x in zip(rows, features[site]):
            if row in place:
                out[place[row]] = x.double().numpy()
    return out


def _principal_axes(features: np.ndarray, spectrum: Spectrum) -> np.ndarray:
    axes = spectrum.directions[:2].cpu().numpy()
    signs = np.sign(axes[np.arange(2), np.abs(axes).argmax(1)])  # a direction has no sign of its own
    return (features - spectrum.mean.cpu().numpy()) @ (axes * signs[:, None]).T


def _umap(features: np.ndarray, seed: int) -> np.ndarray:
    import umap

    threads = torch.get_num_threads()
    neighbours = min(15, len(features) - 1)
    try:
        mapper = umap.UMAP(n_components=2, n_neighbors=neighbours, random_state=seed, n_jobs=1)
        return mapper.fit_transform(features)
    finally:
        torch.set_num_threads(threads)  # numba's thread pool resets it, and with it the rounding of every later product
