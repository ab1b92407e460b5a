"""Mean head outputs over a reference set: what mean ablation puts in place of a head."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from workbench.core.errors import InputError
from workbench.engine.hf import stream
from workbench.engine.passes import Pass, with_pass
from workbench.models.model import Model
from workbench.models.sites import Site


@with_pass
def mean_head_outputs(model: Model, ids: Sequence[Sequence[int]], *, run: Pass) -> torch.Tensor:
    """Mean head outputs over every token of `ids`, [n_layers, H, d_head] float32.

    Raises InputError where they are NaN or infinite."""
    sites = [Site("head_out", layer) for layer in range(model.n_layers)]
    total = torch.zeros(model.n_layers, model.n_heads, model.d_head, dtype=torch.float64, device=model.device)
    count = 0
    for _, found, batch in stream(model, ids, sites, positions="all", run=run):
        total += torch.stack([found[site].double().sum(0).to(total.device) for site in sites])
        count += batch.tokens
    total = total.cpu()  # one copy, when all batches are on their way
    if not bool(total.isfinite().all()):
        raise InputError(
            f"The head outputs of {model.name} are NaN or infinite on these texts, so they have no mean; load the "
            f"model in bfloat16 or float32."
        )
    return (total / count).float()
