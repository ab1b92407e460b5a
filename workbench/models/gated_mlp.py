"""The neurons of an MLP before they are multiplied by its up projection, whatever the architecture calls its parts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from workbench.models.model import Model
from workbench.models.sites import Site

GATED, PLAIN = "act(x W_gate)", "neurons after the nonlinearity"


def gate_neurons(model: Model, layer: int) -> tuple[Site, Callable[[torch.Tensor], torch.Tensor], str]:
    """Where to read, and how to compute, the neurons of one MLP: (site, function of [n, d] → [n, neurons] float32, what
    they are).

    Gated MLPs: act(x W_gate). Others: the neurons after the nonlinearity. Raises InputError for a mixture of experts,
    when the site is read."""
    mlp = model.anatomy.blocks[layer].mlp_in
    gate, act = getattr(mlp, "gate_proj", None), getattr(mlp, "act_fn", None) or getattr(mlp, "activation_fn", None)
    if gate is not None and act is not None:
        return Site("mlp_in", layer), lambda x: act(gate(x.to(gate.weight.dtype))).float(), GATED
    both = getattr(mlp, "gate_up_proj", None)  # Phi-3 keeps gate and up in one matrix
    if isinstance(both, nn.Linear) and act is not None:
        return Site("mlp_in", layer), lambda x: act(both(x.to(both.weight.dtype)).chunk(2, dim=-1)[0]).float(), GATED
    return Site("mlp_hidden", layer), lambda x: x.float(), PLAIN
