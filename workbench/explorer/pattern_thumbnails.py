"""Attention patterns of many heads at once, small enough to be seen side by side: blocks of queries and keys, each with
the largest weight in it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
import polars as pl
import torch
from torch.nn.functional import max_pool2d

from workbench.core.errors import InputError
from workbench.engine.edits import apply
from workbench.explorer.opened_model import Head, Opened
from workbench.explorer.switches import Switches, edits_of
from workbench.figures import traces
from workbench.figures.layout import dressed, sheet, ticks
from workbench.models import attention
from workbench.models.batching import pad

SIDE = 192  # blocks to a side, at most
MOST = 500_000  # blocks of all heads together, at most
HEADS = 64  # at once
DRAWN = 24  # blocks to a side in a figure, whose cells are drawn one by one


@dataclass(frozen=True, eq=False)
class Thumbnails:
    """`heads`: which, in order. `weights` [heads, blocks, blocks] float32: the largest attention weight between the
    queries of a block (rows) and the keys of a block (columns). `block`: tokens in a block; the last may have fewer."""

    heads: tuple[Head, ...]
    weights: np.ndarray
    block: int
    tokens: int


def thumbnails(
    opened: Opened,
    ids: Iterable[int],
    heads: Iterable[Head],
    *,
    switches: Switches = Switches(),
    side: int | None = None,
) -> Thumbnails:
    """The patterns of these heads in one pass, with at most `side` blocks to a side (unless given, as many as can be
    shown). Reduced on the device, one layer at a time.

    Raises InputError for no head, for more than HEADS, and for one that does not exist."""
    model, ids, chosen = opened.model, list(ids), tuple(dict.fromkeys(heads))
    if not 0 < len(chosen) <= HEADS:
        raise InputError(f"Patterns are shown of 1 to {HEADS} heads at once, not {len(chosen)}: choose fewer.")
    for layer, head in chosen:
        if not (0 <= layer < model.n_layers and 0 <= head < model.n_heads):
            raise InputError(f"Head {layer}.{head} does not exist in {model.name}: choose others.")
    most = min(SIDE, int((MOST / len(chosen)) ** 0.5)) if side is None else side
    block = -(-len(ids) // max(1, most))
    of_layer = {layer: [h for a, h in chosen if a == layer] for layer in dict.fromkeys(layer for layer, _ in chosen)}

    def reduce(layer: int, weights: torch.Tensor) -> torch.Tensor:
        mine = weights[0, of_layer[layer]]
        return max_pool2d(mine[None], block, ceil_mode=True)[0].cpu()

    with opened.lock, torch.no_grad(), apply(model, edits_of(opened, switches, ids)):
        with attention.observe(model, reduce, rows="all", layers=sorted(of_layer)) as seen:
            model.forward(pad([ids], pad_id=model.pad_id, device=model.device))
    found = {(layer, head): seen[layer][i] for layer, some in of_layer.items() for i, head in enumerate(some)}
    return Thumbnails(chosen, torch.stack([found[pair] for pair in chosen]).numpy(), block, len(ids))


def table(found: Thumbnails) -> pl.DataFrame:
    """One row per head and pair of blocks that a query can look back from: layer, head, query and key (the first token
    of each block), weight (the largest in it)."""
    rows, columns = np.tril_indices(found.weights.shape[-1])
    count = len(rows)
    return pl.DataFrame(
        {
            "layer": np.repeat([layer for layer, _ in found.heads], count),
            "head": np.repeat([head for _, head in found.heads], count),
            "query": np.tile(rows * found.block, len(found.heads)),
            "key": np.tile(columns * found.block, len(found.heads)),
            "weight": found.weights[:, rows, columns].ravel().astype(np.float64),
        }
    )


def patterns_figure(found: Thumbnails, *, title: str = "") -> go.Figure:
    """A panel for each head: queries downwards, keys to the right, the colour by the root of the weight, from 0 to 1.
    For patterns of up to DRAWN blocks to a side.

    Raises InputError for more blocks than can be drawn."""
    n = found.weights.shape[-1]
    if n > DRAWN:
        raise InputError(f"A figure draws patterns of up to {DRAWN} × {DRAWN} blocks, not {n}: ask for fewer.")
    names = [str(i * found.block) for i in range(n)]
    block = "" if found.block == 1 else f" Each cell is the largest weight among {found.block} × {found.block} tokens."
    fig = sheet(
        [f"{layer}.{head}" for layer, head in found.heads],
        title=title,
        x="to token",
        y="from token",
        x_ticks=ticks(range(n), names),
        y_ticks=ticks(range(n), names),
        aspect=1.0,
        columns=min(4, len(found.heads)),
        cells=(n, n),
        note=f"Attention patterns; colour: the root of the weight.{block}",
    )
    traces.colour_scale(fig, (0.0, 1.0), "root of the weight")
    query, key = np.indices((n, n))
    for i, weights in enumerate(found.weights):
        shown = np.where(key <= query, np.sqrt(np.clip(weights, 0, 1)), np.nan)
        custom = np.stack([query * found.block, key * found.block, weights], axis=-1)
        hover = "from %{customdata[0]} to %{customdata[1]}: %{customdata[2]:.3f}"
        traces.add_cells(fig, i, shown, custom=custom, hover=hover, ends=(0.0, 1.0), reverse=True)
    return dressed(fig)
