"""What every layer's attention and MLP add to the residual stream of one prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from workbench.engine.hf import stream
from workbench.explorer.opened_model import Opened
from workbench.explorer.switches import Switches, edits_of
from workbench.models.sites import Site, sites
from workbench.sae.feature_edits import FeatureEdit


@dataclass(frozen=True, eq=False)
class SubBlocks:
    """embedding [P, width], attention and mlp [layers, P, width], final [P, width] (the stream after the last layer),
    heads [layers, P, H, d_head] (None where heads have no output of their own), switched: by how much switches of
    features change the stream after a layer [P, width]; float32, P positions."""

    positions: tuple[int, ...]
    embedding: torch.Tensor
    attention: torch.Tensor
    mlp: torch.Tensor
    final: torch.Tensor
    heads: torch.Tensor | None
    switched: Mapping[int, torch.Tensor] = field(default_factory=dict)


def sub_blocks(
    opened: Opened, ids: Sequence[int], positions: Sequence[int] | None = None, switches: Switches = Switches()
) -> SubBlocks:
    """One pass over a prompt, with the switches. Positions: all of them unless given.

    Raises InputError where a block adds more to the stream than its attention and its MLP."""
    model = opened.model
    model.require("stream_adds_up", for_what="what its attention and its MLPs add to the residual stream")
    where = tuple(range(len(ids)) if positions is None else (p % len(ids) for p in positions))
    layers = range(model.n_layers)
    attention, mlp = sites("attn_out", layers), sites("mlp_out", layers)
    heads = sites("head_out", layers) if model.lacks("heads_apart") is None else []
    first, last = Site("resid_pre", 0), Site("resid_post", model.n_layers - 1)
    with opened.lock:
        edits = edits_of(opened, switches, ids)
        changed = [
            edit.site.layer for edit in edits if isinstance(edit, FeatureEdit) and edit.site.kind == "resid_post"
        ]
        around = [*sites("resid_pre", changed), *sites("resid_post", changed)]
        wanted = list(dict.fromkeys([first, *attention, *mlp, *heads, *around, last]))
        passes = stream(model, [list(ids)], wanted, positions=[list(where)], edits=edits, dtype=torch.float32)
        _, found, _ = next(iter(passes))
    kept = {site: values[0] for site, values in found.items()}
    return SubBlocks(
        where,
        kept[first],
        torch.stack([kept[site] for site in attention]),
        torch.stack([kept[site] for site in mlp]),
        kept[last],
        torch.stack([kept[site] for site in heads]) if heads else None,
        {
            layer: kept[Site("resid_post", layer)]
            - (kept[Site("resid_pre", layer)] + kept[Site("attn_out", layer)] + kept[Site("mlp_out", layer)])
            for layer in changed
        },
    )
