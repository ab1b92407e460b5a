"""Rotations (§5.1): how far a linear map turns each layer's states into the input embeddings, or into the last states.

A ridge map with intercept takes the states before a block to a target. The angles of its eigenvalues say how it turns
planes: the median of |angle| is 0° for states that need only be stretched, 90° for maps that have nothing to do with
the identity. Sums of products are streamed in float64; nothing grows with the number of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
import torch

from probes.bigram_subnetwork.stretches import Piece
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.engine.hf import stream
from workbench.engine.passes import Pass
from workbench.engine.weight_masks import WeightMask
from workbench.models.devices import widest
from workbench.models.model import Model
from workbench.models.sites import Site

RIDGE = 1.0  # as in the official code
ROUNDING = 1e-9  # of the largest eigenvalue
SCHEMA = {"model": pl.String, "after_blocks": pl.Int64, "to_input": pl.Float64, "to_output": pl.Float64, "n": pl.Int64}


class MapSums:
    """Sums over tokens of x, y and their products for ridge maps from x [n, d] to each y [n, d]."""

    def __init__(self, width: int, targets: int, device: torch.device):
        wide = widest(device)
        self.n = 0
        self.x = torch.zeros(width, dtype=wide, device=device)
        self.y = torch.zeros(targets, width, dtype=wide, device=device)
        self.xx = torch.zeros(width, width, dtype=wide, device=device)
        self.xy = torch.zeros(targets, width, width, dtype=wide, device=device)

    def add(self, x: torch.Tensor, ys: Sequence[torch.Tensor]) -> None:
        x = x.to(self.x.device, self.x.dtype)
        self.n += len(x)
        self.x += x.sum(0)
        self.xx += x.T @ x
        for i, y in enumerate(ys):
            y = y.to(self.x.device, self.x.dtype)
            self.y[i] += y.sum(0)
            self.xy[i] += x.T @ y

    def maps(self, ridge: float = RIDGE) -> np.ndarray:
        """The maps [targets, d_out, d_in] of the ridge regression with an intercept that is not penalised."""
        x, y, xx, xy = (sums.cpu().double().numpy() for sums in (self.x, self.y, self.xx, self.xy))
        x, y = x / self.n, y / self.n
        within = xx - self.n * np.outer(x, x) + ridge * np.eye(len(x))
        between = xy - self.n * np.einsum("i,tj->tij", x, y)
        return np.stack([np.linalg.solve(within, each).T for each in between])


def median_angle(map: np.ndarray) -> float:
    """The median absolute angle of the eigenvalues of a square map, in degrees. One that is 0 but for rounding has no
    angle that means anything, and counts as 0°."""
    found = np.linalg.eigvals(map)
    turned = np.abs(found) > ROUNDING * np.abs(found).max(initial=0)
    return float(np.median(np.where(turned, np.abs(np.angle(found, deg=True)), 0.0)))


def rotation_rows(
    model: Model,
    pieces: Sequence[Piece],
    edits: Sequence[WeightMask],
    kind: str,
    *,
    tokens: int,
    run: Pass,
    context: Context,
) -> pl.DataFrame:
    """`rotations` of one variant: a row for the states before each block, and for those after the last."""
    last = Site("resid_post", model.n_layers - 1)
    sites = [*(Site("resid_pre", layer) for layer in range(model.n_layers)), last]
    embedding = model.hf.get_input_embeddings()
    some = _enough(pieces, tokens)
    masked = Pass((*run.edits, *edits), run.max_tokens, check=run.check)
    sums: list[MapSums] = []
    for rows, seen, _ in stream(model, [piece.ids for piece in some], sites, positions="all", run=masked):
        ids = torch.tensor([token for i in rows for token in some[i].ids], device=model.device)
        with torch.no_grad():
            input_states = embedding(ids)
        output = seen[last].reshape(len(ids), -1)
        if input_states.shape[1] != output.shape[1]:
            raise InputError(
                f"The architecture {model.architecture} does not fit rotation=true: its embeddings have "
                f"{input_states.shape[1]} dimensions and its states {output.shape[1]}."
            )
        if not sums:
            sums = [MapSums(output.shape[1], 2, output.device) for _ in sites]
        for each, site in zip(sums, sites):
            each.add(seen[site].reshape(len(ids), -1), (input_states, output))
        context.check()
    found = [
        {"model": kind, "after_blocks": i, "n": each.n}
        | dict(zip(("to_input", "to_output"), map(median_angle, each.maps())))
        for i, each in enumerate(sums)
    ]
    return pl.DataFrame(found, schema=SCHEMA)


def _enough(pieces: Sequence[Piece], tokens: int) -> list[Piece]:
    """The first stretches that hold so many tokens."""
    found, total = [], 0
    for piece in pieces:
        if total >= tokens:
            break
        found.append(piece)
        total += len(piece.ids)
    return found
