"""The head that a model is opened on: the one that most does induction, from attention alone.

Only induction and its control are read off, of rows of one length at once, so that a model of hundreds of heads opens
in a few passes; the numbers are those of `readings.head_scores`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import polars as pl
import torch

from workbench.explorer import beside_control
from workbench.explorer.marked_pairs import marked, marked_in_twin
from workbench.explorer.opened_model import Opened
from workbench.explorer.repeated_words import shuffled
from workbench.models import attention
from workbench.models.batching import pad
from workbench.models.model import Model

INDUCTION = "induction"


@torch.no_grad()
def induction(opened: Opened, rows: Sequence[Sequence[int]]) -> pl.DataFrame:
    """Induction of every head beside its control: layer, head, and the columns of `beside_control.columns`; the mean
    over `rows` (token ids), of each the mean over its tokens to which it applies.

    Raises InputError for a model without attention rows."""
    model = opened.model
    scores = np.full((2, len(rows), model.n_layers, model.n_heads), np.nan)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for _, found in groupby(order, key=lambda i: len(rows[i])):
        alike = list(found)
        texts = [list(rows[i]) for i in alike]
        first = [int(model.bos_id is not None and ids[0] == model.bos_id) for ids in texts]
        twins = [shuffled(ids, first=at, seed=i) for ids, at, i in zip(texts, first, alike)]
        own = [marked(ids, first=at)[INDUCTION] for ids, at in zip(texts, first)]
        theirs = [marked_in_twin(ids, twin, first=at)[INDUCTION] for ids, twin, at in zip(texts, twins, first)]
        for side, (fed, pairs) in enumerate(((texts, own), (twins, theirs))):
            with opened.lock:
                scores[side, alike] = _attention_to(model, fed, torch.stack(pairs))
    layer, head = np.indices((model.n_layers, model.n_heads))
    columns = beside_control.columns({INDUCTION: scores[0]}, {INDUCTION: scores[1]})
    return pl.DataFrame({"layer": layer.ravel(), "head": head.ravel(), **columns})


def _attention_to(model: Model, rows: list[list[int]], pairs: torch.Tensor) -> np.ndarray:
    """Mean attention to the marked pairs [B, T, T] over the queries that have one, [B, layers, H]; NaN for none."""
    queries, own = pairs.any(-1).sum(-1)[:, None, None], pairs[:, None].to(model.device)

    def reduce(_layer: int, weights: torch.Tensor) -> torch.Tensor:
        return (weights * own.to(weights.device)).sum((-1, -2))

    with attention.observe(model, reduce, rows="all") as seen:
        model.forward(pad(rows, pad_id=model.pad_id, device=model.device), last_logits=True)
    return (attention.of_layers(seen, 1).cpu().double() / queries).numpy()
