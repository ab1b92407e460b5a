"""Sets of weights made of a mask: random ones of the same size in every matrix, and the mask without one layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from workbench.models.block_weights import BlockWeight

Masks = Mapping[str, torch.Tensor]  # name of the matrix -> bool tensor of its shape, on the CPU


def random_like(masks: Masks, rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """As many weights of each matrix as the mask keeps, drawn at random."""
    return {name: _some(mask.numel(), int(mask.sum()), rng).reshape(mask.shape) for name, mask in masks.items()}


def _some(size: int, wanted: int, rng: np.random.Generator) -> torch.Tensor:
    found = torch.zeros(size, dtype=torch.bool)
    found[torch.from_numpy(rng.choice(size, wanted, replace=False, shuffle=False))] = True
    return found


def without_layer(masks: Masks, weights: Sequence[BlockWeight], layer: int) -> dict[str, torch.Tensor]:
    """The mask with nothing kept in one layer."""
    inside = {own.name for own in weights if own.layer == layer}
    return {name: torch.zeros_like(mask) if name in inside else mask for name, mask in masks.items()}


def without_random(masks: Masks, wanted: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """The mask without so many of the weights that it keeps, drawn at random over all matrices."""
    sizes = [int(mask.sum()) for mask in masks.values()]
    gone = np.sort(rng.choice(sum(sizes), wanted, replace=False, shuffle=False))
    ends = np.cumsum([0, *sizes])
    found = {}
    for (name, mask), start, end in zip(masks.items(), ends, ends[1:]):
        mine = gone[(gone >= start) & (gone < end)] - start
        flat = mask.reshape(-1).clone()
        flat[flat.nonzero()[:, 0][torch.from_numpy(mine)]] = False
        found[name] = flat.reshape(mask.shape)
    return found


def kept_by_layer(masks: Masks, weights: Sequence[BlockWeight], layers: int) -> tuple[np.ndarray, np.ndarray]:
    """Kept and all weights of each layer, [layers] int64 each."""
    kept, total = np.zeros(layers, np.int64), np.zeros(layers, np.int64)
    for own in weights:
        kept[own.layer] += int(masks[own.name].sum())
        total[own.layer] += masks[own.name].numel()
    return kept, total
