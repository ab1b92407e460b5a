"""Translators of layers (after Belrose et al. 2023, tuned lens): for each layer the linear map that makes its states
most like those of the last layer, h + hΔ + b, fitted by ridge regression of what is missing (h_last − h) on h.

Fitted on prompts of concepts that are not measured, between all languages, or on a text of one's own. A fifth of the
texts is held out: the ridge is the one with the least error there, and R² and the distance to the model's own
distribution are measured there. An endless ridge leaves Δ = 0, the logit lens with a shifted mean. The last layer is
read as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch

from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.engine.capture import capture
from workbench.engine.passes import Pass
from workbench.models.model import Model
from workbench.models.sites import Site

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 1e6)  # times the mean eigenvalue of the states' covariance
HELD_OUT = 5  # of so many texts one chooses the ridge
JUDGED = 256  # tokens of the held-out texts at which distributions are compared
FEWEST = 32  # tokens on either side
TRANSLATORS = {
    "layer": pl.Int64,
    "ridge": pl.Float64,
    "r2": pl.Float64,
    "kl_logit": pl.Float64,
    "kl_tuned": pl.Float64,
    "tokens": pl.Int64,
    "held_out_tokens": pl.Int64,
}


@dataclass(frozen=True, eq=False)
class Translators:
    """`maps` [layers, width, width] and `shifts` [layers, width] float32: states h become h + h @ maps + shifts."""

    maps: torch.Tensor
    shifts: torch.Tensor

    def __call__(self, layer: int, states: torch.Tensor) -> torch.Tensor:
        """States [n, width] of a layer as the last layer would have them, in float32 at least."""
        if layer >= len(self.maps):
            return states
        own, shift = (x[layer].to(states.device, states.dtype) for x in (self.maps, self.shifts))
        return states + states @ own + shift


def fit_translators(
    model: Model, texts: Sequence[Sequence[int]], *, tokens: int, context: Context, max_tokens: int
) -> dict[str, np.ndarray | pl.DataFrame]:
    """`maps`, `shifts` of every layer but the last, and the table `translators`, from about `tokens` tokens of `texts`
    (token ids; the first of each, which is a sink in many models, is left out). Texts are shared out in turn.

    Raises InputError for too few texts or tokens."""
    chosen, total = [], 0
    for row in texts:
        if total >= tokens:
            break
        chosen.append(list(row))
        total += len(row) - 1
    held = [i for i in range(len(chosen)) if i % HELD_OUT == HELD_OUT - 1]
    sizes = [len(row) - 1 for row in chosen]
    if sum(sizes[i] for i in held) < FEWEST or total - sum(sizes[i] for i in held) < FEWEST:
        raise InputError(
            f"Translators need at least {FEWEST} tokens to be fitted on and as many to choose the ridge by; there are "
            f"{total} in {len(chosen)} texts. Give more concepts, or another translator_texts."
        )
    last = model.n_layers - 1
    run = Pass(edits=tuple(context.edits), max_tokens=max_tokens, check=context.check)
    maps, shifts, rows = [], [], []
    # the last layer's states beside those of one other at a time: layers × tokens × width are not held together
    for layer in range(last):
        sites = [Site("resid_post", layer), Site("resid_post", last)]
        found = capture(model, chosen, sites, positions="all", engine=context.engine, run=run)
        states, end = (_split(found[site], chosen, held) for site in sites)
        fitted, row = _fit(model, states, end)
        maps.append(fitted[0].numpy())
        shifts.append(fitted[1].numpy())
        rows.append({"layer": layer, **row, "tokens": len(states[0]), "held_out_tokens": len(states[1])})
        context.progress(layer + 1, last, "translators")
    width = model.width
    return {
        "maps": np.stack(maps) if maps else np.zeros((0, width, width), np.float32),
        "shifts": np.stack(shifts) if shifts else np.zeros((0, width), np.float32),
        "translators": pl.DataFrame(rows, schema=TRANSLATORS),
    }


def _split(
    states: torch.Tensor, texts: Sequence[Sequence[int]], held: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """States [tokens, width] of the texts that are fitted on and of those held out, without first tokens."""
    parts = [part[1:] for part in states.split([len(row) for row in texts])]
    out = set(held)
    return (
        torch.cat([part for i, part in enumerate(parts) if i not in out]),
        torch.cat([part for i, part in enumerate(parts) if i in out]),
    )


def _fit(
    model: Model, states: tuple[torch.Tensor, torch.Tensor], end: tuple[torch.Tensor, torch.Tensor]
) -> tuple[tuple[torch.Tensor, torch.Tensor], dict]:
    """Map and shift of one layer, and what is known of them on the held-out texts."""
    (x, x_held), (y, y_held) = states, end
    ridges = ridge_maps(x.double(), (y - x).double())
    errors = [float((((x_held.double() @ m + b) - (y_held - x_held)) ** 2).sum()) for _, m, b in ridges]
    ridge, weight, shift = ridges[int(np.argmin(errors))]
    whole = float(((y_held.double() - y_held.double().mean(0)) ** 2).sum())
    fitted = weight.float(), shift.float()
    pick = torch.linspace(0, len(x_held) - 1, min(JUDGED, len(x_held))).long()
    there = x_held[pick]
    told = {
        "ridge": ridge,
        "r2": 1 - min(errors) / whole if whole > 0 else None,
        "kl_logit": _distance(model, there, y_held[pick]),
        "kl_tuned": _distance(model, there + there @ fitted[0] + fitted[1], y_held[pick]),
    }
    return fitted, told


def ridge_maps(x: torch.Tensor, y: torch.Tensor) -> list[tuple[float, torch.Tensor, torch.Tensor]]:
    """(ridge, map [width, width], shift [width]) with the least |x m + b − y|² + ridge |m|² for each of RIDGES, times
    the mean eigenvalue of the covariance times the tokens; x, y [tokens, width] float64."""
    mean_x, mean_y = x.mean(0), y.mean(0)
    u, s, vt = torch.linalg.svd(x - mean_x, full_matrices=False)
    right = u.T @ (y - mean_y)
    scale = float((s**2).sum() / x.shape[1])
    out = []
    for ridge in RIDGES:
        weight = vt.T @ ((s / (s**2 + ridge * scale + 1e-30))[:, None] * right)
        out.append((ridge, weight, mean_y - mean_x @ weight))
    return out


@torch.no_grad()
def _distance(model: Model, states: torch.Tensor, end: torch.Tensor) -> float:
    """Mean KL(model's own ‖ read off the states) in nats."""
    total = 0.0
    step = max(1, (1 << 24) // model.vocab_size)
    for here, there in zip(states.split(step), end.split(step)):
        q, p = (model.logits_from(x.to(model.device)).log_softmax(-1) for x in (here, there))
        total += float(torch.where(p > -torch.inf, p.exp() * (p - q), 0).sum())
    return total / len(states)
