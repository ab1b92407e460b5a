"""The scores of heads and their controls, as they are read off one pass over one row."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from workbench.engine.patching import writes
from workbench.models import attention
from workbench.models.batching import pad
from workbench.models.float32 import in_float32, mean_row

if TYPE_CHECKING:
    from workbench.explorer.readings import Reading
    from workbench.models.model import Model

SCORES = {
    "induction": "mean attention to the token that followed an earlier occurrence of the present token",
    "previous_token": "mean attention to the token before",
    "duplicate_token": "mean attention to earlier occurrences of the present token",
    "first_token": "mean attention to the first token (the usual resting place)",
    "entropy": "mean entropy of the attention rows, in nats",
    "copying": "logits by which the head favours the tokens it attends to over the mean of the vocabulary (first "
    "order, direct path)",
}
CONTROLS = {
    "induction": "attention to the same places with the repeats shuffled, so that no token follows what it followed",
    "previous_token": "attention to the token two before",
    "duplicate_token": "attention to the same places with the repeats shuffled",
    "first_token": "attention to the second token",
    "copying": "the same with words that are not in the sequence in place of its own",
}
MORE = ("entropy", "copying", "copying control")  # what is no attention to marked pairs
AT_ONCE = 16_000_000  # numbers that the heads of a layer write, held at once


def attention_to(
    model: Model, ids: Sequence[int], marks: dict[str, torch.Tensor], more: Callable | None = None
) -> dict[str, np.ndarray]:
    """Attention to the marked pairs (query, key), [layers, H] each: the mean over queries that have one, for marks that
    have any. With ``more`` what that makes of a layer and its weights [H, T, T], too (the scores of MORE, [3, H])."""
    used = {name: int(pairs.any(-1).sum()) for name, pairs in marks.items()}
    used = {name: n for name, n in used.items() if n}
    if not used and more is None:
        return {}
    chosen = {name: marks[name].to(model.device) for name in used}

    def reduce(layer: int, weights: torch.Tensor) -> torch.Tensor:
        sums = [(weights[0] * chosen[name].to(weights.device)).sum((-1, -2)) / n for name, n in used.items()]
        rest = [] if more is None else [one.to(weights.device) for one in more(layer, weights[0])]
        return torch.stack([*sums, *rest])

    with attention.observe(model, reduce, rows="all") as seen:
        model.forward(pad([list(ids)], pad_id=model.pad_id, device=model.device))
    means = attention.of_layers(seen, 1).cpu().double().numpy()  # [scores, layers, H]
    return dict(zip((*used, *(() if more is None else MORE)), means))


def favoured(model: Model, ids: Sequence[int], others: Sequence[int] | None) -> torch.Tensor:
    """Columns of the unembedding for the tokens of a prompt, relative to their mean over the vocabulary, and for the
    tokens that stand for them, [2, T, width] float32: NaN where there are none."""
    unembed = model.unembed.weight
    sides = torch.tensor([list(ids), list(ids if others is None else others)], device=unembed.device)
    favour = unembed[sides].float() - mean_row(unembed)
    if others is None:
        favour[1] = torch.nan
    return favour


def copying(model: Model, reading: Reading, favour: torch.Tensor, layer: int, weights: torch.Tensor) -> torch.Tensor:
    """Sum over queries of Σ_j A_ij (c_ij − mean over the vocabulary), [2, H]: c_ij is the first-order change of token
    j's logit at query i by what the head writes there, through the final norm; in the second row that of the token that
    stands for j (``favour``: of `favoured`). BOS as a source is left out, and so is the first query."""
    T, final = len(reading.ids), reading.stream[-1]
    z = reading.z[layer].to(model.dtype)
    wrote = -writes(model, layer, z, -z).to(final.device, final.dtype)  # [T, H, width]
    norm = model.final_norm
    sources = weights.clone()
    if model.bos_id is not None and reading.ids[0] == model.bos_id:
        sources[..., 0] = 0
    dtype, out = torch.promote_types(model.unembed.weight.dtype, torch.float32), []
    for some in range(0, wrote.shape[1], step := max(1, AT_ONCE // final.numel())):
        tangents = wrote[:, some : some + step].transpose(0, 1).to(dtype)  # [heads, T, width]
        through = functools.partial(in_float32, norm)
        _, moved = torch.func.jvp(through, (final.to(dtype).repeat(len(tangents), 1, 1),), (tangents,))
        gain = moved.float()[:, None] @ favour.mT  # [heads, 2, T queries, T tokens]
        out.append((sources[some : some + step, None, 1:T] * gain[:, :, 1:].to(sources.device)).sum((-1, -2)))
    return torch.cat(out).T * (1.0 if model.logit_scale is None else model.logit_scale)
