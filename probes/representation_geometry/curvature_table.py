"""The table of how straight texts run through the layers of a checkpoint, beside both controls."""

from __future__ import annotations

import numpy as np
import polars as pl

from probes.representation_geometry.curvature import curvatures, own_tokens, shuffled_tokens
from probes.representation_geometry.features import Checkpoint
from probes.representation_geometry.held_states import chosen_texts
from workbench.stats.clusters import clusters_of, false_discovery, mean_interval, p_of_zero

MEASURES = ("curvature", "shuffled_states", "shuffled_tokens", "difference", "from_first", "from_first_shuffled")
CURVATURE = (
    {"checkpoint": pl.String, "step": pl.Int64, "layer": pl.Int64, "site": pl.String}
    | {f"{name}{end}": pl.Float64 for name in MEASURES for end in ("", "_low", "_high")}
    | {"p_adjusted": pl.Float64, "n": pl.Int64, "angles": pl.Int64}
)


def curvature_table(checkpoint: Checkpoint) -> pl.DataFrame:
    """A row per layer, means over texts in degrees; empty where it is not asked for. `difference`: from the same tokens
    in another order, text by text; `from_first`: how much less it is than in layer 0, and as much for these."""
    if "curvature" not in checkpoint.config.also:
        return pl.DataFrame(schema=CURVATURE)
    context, chosen = checkpoint.context, chosen_texts(checkpoint)
    ids, own = [checkpoint.texts.ids[text] for text in chosen], own_tokens(checkpoint, chosen)
    seed = context.torch_seed("curvature") % 2**32
    as_they_are = curvatures(checkpoint, ids, own, seed=seed)
    shuffled = curvatures(checkpoint, shuffled_tokens(ids, own, seed=seed), own, seed=seed)
    there = np.all([~np.isnan(found[:, :2]).any(1) for found in (*as_they_are.values(), *shuffled.values())], axis=0)
    if not there.any():
        context.warn(f"There is no curvature of {checkpoint.name}: no text has three tokens that count.")
        return pl.DataFrame(schema=CURVATURE)
    each, rows, p = clusters_of(np.arange(there.sum())), [], []
    first = min(as_they_are)
    for layer, site in checkpoint.layers().items():
        own_angles, states = as_they_are[layer][there, 0], as_they_are[layer][there, 1]
        tokens = shuffled[layer][there, 0]
        values = [own_angles, states, tokens, own_angles - tokens]
        values += [as_they_are[first][there, 0] - own_angles, shuffled[first][there, 0] - tokens]
        row = checkpoint.where | {"layer": layer, "site": str(site), "n": each.n}
        row |= {"angles": int(as_they_are[layer][there, 2].sum())}
        for name, value in zip(MEASURES, values):
            if name.startswith("from_first") and layer == first:
                continue
            low, high = mean_interval(value, each)
            row |= {name: float(value.mean()), f"{name}_low": float(low), f"{name}_high": float(high)}
        rows.append(row)
        p.append(float(p_of_zero(own_angles - tokens, each)))
    rows = [row | {"p_adjusted": one} for row, one in zip(rows, false_discovery(np.array(p)).tolist())]
    return pl.DataFrame(rows, schema=CURVATURE).fill_nan(None)
