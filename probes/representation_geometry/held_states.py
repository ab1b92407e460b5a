"""The states of some of the texts, held all at once: what looks at pairs of texts needs them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from probes.representation_geometry.features import Checkpoint
from workbench.core.errors import InputError


@dataclass(frozen=True, eq=False)
class HeldStates:
    """Of the texts `chosen` (their places among those that are read, ascending): the states [n, d] at every layer that
    is asked for, as they are read, on the device of the model."""

    chosen: np.ndarray
    layers: dict[int, torch.Tensor]

    @property
    def n(self) -> int:
        return len(self.chosen)


def chosen_texts(checkpoint: Checkpoint) -> np.ndarray:
    """At most `also_rows` texts, the same at every checkpoint, ascending."""
    order = checkpoint.context.rng("also").permutation(len(checkpoint.texts.ids))
    return np.sort(order[: checkpoint.config.also_rows])


def held_states(checkpoint: Checkpoint) -> HeldStates:
    """Read them, in one pass over the stored activations. Raises InputError for states that are not finite."""
    chosen = chosen_texts(checkpoint)
    place = np.full(len(checkpoint.texts.ids), -1)
    place[chosen] = np.arange(len(chosen))
    sites = checkpoint.layers()
    held: dict[int, torch.Tensor] = {}
    for rows, features in checkpoint.features():
        at = place[rows]
        own = np.flatnonzero(at >= 0)
        for layer, site in sites.items():
            x = features[site]
            if layer not in held:
                held[layer] = torch.empty(len(chosen), x.shape[1], dtype=x.dtype)
            held[layer][at[own]] = x[own]
        checkpoint.context.check()
    for layer, x in held.items():
        if not bool(x.isfinite().all()):
            raise InputError(
                f"The activations at {sites[layer]} are NaN or infinite; load the model in float32 or bfloat16."
            )
    return HeldStates(chosen, {layer: x.to(checkpoint.model.device) for layer, x in held.items()})
