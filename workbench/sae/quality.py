"""How faithful an autoencoder is: on the activations, and to the model that goes on from what it rebuilds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from workbench.core.errors import InputError
from workbench.engine.capture import capture
from workbench.engine.evaluation import token_losses
from workbench.engine.passes import Pass, with_pass
from workbench.models.model import Model
from workbench.models.sinks import norms_of, ordinary_tokens
from workbench.sae.autoencoder import Sae
from workbench.sae.splicing import spliced

LOSS_TOKENS = 4096  # of a batch whose losses are measured
NEGLIGIBLE = 0.005  # nats that a site is worth, below which no share of them says anything


@with_pass
def quality(
    model: Model,
    made: Sae,
    ids: Sequence[Sequence[int]],
    *,
    sinks: str = "leave_out",
    run: Pass,
) -> dict[str, Any]:
    """How faithful an autoencoder is on texts: mean active features per token (l0), explained variance, share of
    features that never fire, and the loss that remains when its reconstruction is spliced in at its site, on the scale
    from zeros (0) to the model itself (1); None where zeros cost less than NEGLIGIBLE, and the scale has no length.

    With `sinks` "leave_out", sinks do not count, and stay as they are where the reconstruction is spliced in. Raises
    InputError where nothing else counts, and for a transcoder, which has no site of its own to be spliced in at."""
    if made.site_out is not None:
        raise InputError(
            f"'{made.path}' is a transcoder ({made.site} to {made.site_out}); what is spliced in must be an "
            f"autoencoder of one site."
        )
    special = model.special_ids
    found = capture(model, ids, [made.site], positions="all", run=run)[made.site]
    counted = [np.array([token not in special for token in row], bool) for row in ids]
    kept = ordinary_tokens(norms_of(found, 1), counted) if sinks == "leave_out" else counted
    left_out = [int(given.sum() - own.sum()) for given, own in zip(counted, kept)]
    x = found[torch.from_numpy(np.concatenate(kept))].to(model.device)
    if not len(x):
        raise InputError(f"No token of {len(ids)} texts counts at {made.site}; give longer texts, or set sinks=keep.")
    entries, fired = 0, torch.zeros(made.d_sae, dtype=torch.int64, device=x.device)
    lost = torch.zeros((), dtype=torch.float64, device=x.device)
    for block in x.split(8192):
        rows = made.encode(block)
        entries += len(rows.value)
        fired.index_add_(0, rows.feature, torch.ones_like(rows.feature))  # a count by `bincount` is waited for
        aim = made.target(block).double()  # in the autoencoder's own frame, as what it rebuilds
        lost += (aim - made.decode(rows, block).reshape(block.shape).double()).pow(2).sum()
    aim = made.target(x).double()
    variance = float((aim - aim.mean(0)).pow(2).sum())
    run = replace(run, max_tokens=run.max_tokens or LOSS_TOKENS)
    losses = {"clean": text_loss(model, ids, run=run)}
    for name, change in (("spliced", made.reconstruct), ("zeros", torch.zeros_like)):
        with spliced(model, made.site, change, spare_sinks=sinks == "leave_out"):
            losses[name] = text_loss(model, ids, run=run)
    cost = losses["zeros"] - losses["clean"]
    return {
        "site": str(made.site),
        "architecture": made.architecture,
        "width": made.d_sae,
        "k": made.k,
        "l0": entries / len(x),
        "explained_variance": 1 - float(lost) / variance,
        "dead_fraction": float((fired == 0).double().mean()),
        "tokens": len(x),
        "texts": len(ids),
        "sinks": sinks,
        "sinks_left_out": sum(left_out),
        "texts_with_sinks": sum(n > 0 for n in left_out),
        "loss_clean": losses["clean"],
        "loss_spliced": losses["spliced"],
        "loss_zeros": losses["zeros"],
        "loss_recovered": (losses["zeros"] - losses["spliced"]) / cost if cost >= NEGLIGIBLE else None,
    }


@with_pass
def text_loss(model: Model, ids: Sequence[Sequence[int]], *, run: Pass) -> float:
    """Mean loss in nats per predicted token."""
    return float(np.concatenate(token_losses(model, ids, run=run)).mean())
