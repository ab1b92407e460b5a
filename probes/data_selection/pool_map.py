"""A map of samples in two dimensions, from the similarity that selection uses."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl
import torch

from probes.data_selection.sample_vectors import Reader
from probes.data_selection.samples import TokenizedSamples
from workbench.sae.sparse_rows import Rows, similarity, stack


def map_table(reader: Reader, pool: TokenizedSamples) -> pl.DataFrame:
    """Some samples of the pool, drawn at random, in two dimensions."""
    context = reader.context
    rows = np.sort(context.rng("map").permutation(np.flatnonzero(pool.counted > 0))[: reader.config.map_rows])
    if reader.sae is None or len(rows) < 4:
        return pl.DataFrame(schema={"row": pl.Int64, "x": pl.Float64, "y": pl.Float64})

    def compute() -> dict[str, pl.DataFrame]:
        batches = [
            (batch.indices, batch.vectors["sae"])
            for batch in reader.read(pool.lists(rows), [pool.masks[row] for row in rows])
            if batch.indices
        ]
        vectors = stack([found for _, found in batches])
        place = layout(vectors, seed=context.torch_seed("map") % 2**31, check=context.check)
        order = rows[np.concatenate([indices for indices, _ in batches])]
        return {"map": pl.DataFrame({"row": order, "x": place[:, 0], "y": place[:, 1]}).sort("row")}

    return context.part("map", compute)["map"]


def distances(rows: Rows, *, check: Callable[[], None] | None = None) -> np.ndarray:
    """1 − generalised Jaccard similarity between all rows, float64 [n, n], symmetric with a zero diagonal."""
    dense, out = rows.dense(), []
    for some in dense.split(64):
        if check is not None:
            check()
        out.append(1 - similarity(rows, some).T.cpu())
    found = torch.cat(out).clamp(min=0).numpy()
    found = (found + found.T) / 2
    np.fill_diagonal(found, 0.0)
    return found


def layout(rows: Rows, *, seed: int, check: Callable[[], None] | None = None) -> np.ndarray:
    """UMAP of sparse rows under the generalised Jaccard distance, [n, 2]; the same for the same seed. Needs at least
    four rows."""
    import warnings

    import umap

    threads = torch.get_num_threads()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns that a seed makes it run on one core
            mapper = umap.UMAP(
                metric="precomputed", n_neighbors=min(15, rows.n - 1), random_state=seed, n_jobs=1, init="random"
            )
            return np.asarray(mapper.fit_transform(distances(rows, check=check)), dtype=np.float64)
    finally:
        torch.set_num_threads(threads)  # numba's thread pool resets it, and with it the rounding of every later product
