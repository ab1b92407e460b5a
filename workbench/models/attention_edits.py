"""What is attended to, changed: weights replaced inside the model's own attention."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from workbench.core.errors import InputError
from workbench.models.attention import hooks_of, hung
from workbench.models.attention_weights import BLOCKED, Weights
from workbench.models.devices import is_cpu
from workbench.models.query_rows import rows_in_pass
from workbench.models.running_pass import positions

if TYPE_CHECKING:
    from workbench.models.model import Model


@contextlib.contextmanager
def edit(model: Model, layer: int, change: Callable[[torch.Tensor, int, Weights], torch.Tensor]) -> Iterator[None]:
    """While open, layer `layer` attends with `change(weights [B, H, R, S], first query column, scores)` instead.

    Raises InputError on architectures that do not go through the attention interface, and for layers whose rows are not
    what the model attends with."""
    model.require("attention_edits", "attention_rows", for_what="attention edits", layers=[layer])
    if not model.attention_interface:
        raise InputError(
            f"{model.architecture} computes attention outside the interface of transformers; attention edits "
            f"are not available for it."
        )
    with hung(hooks_of(model.attention(layer)).edits, change):
        yield


def uniform(model: Model, layer: int, heads: Sequence[int]) -> contextlib.AbstractContextManager:
    """Heads attend uniformly to every key they may see (the ablation of the retrieval-head code: scores set to 0)."""
    chosen = torch.tensor(list(heads))

    def change(weights: torch.Tensor, start: int, weigh: Weights) -> torch.Tensor:
        nonlocal chosen
        chosen = chosen.to(weights.device)  # moved once
        visible = weigh.masking.visible(slice(start, start + weights.shape[2]), weights)
        if visible.shape[1] > 1:  # a mask for each head
            visible = visible.index_select(1, chosen)
        even = visible / visible.sum(-1, keepdim=True, dtype=weights.dtype).clamp_min(1)
        return weights.index_copy(1, chosen, even.to(weights.dtype).expand(-1, len(chosen), -1, -1))

    return edit(model, layer, change)


def knock_out(
    model: Model,
    layer: int,
    *,
    queries: str | torch.Tensor | Sequence[int],
    sources: torch.Tensor | Sequence[Sequence[int]],
    heads: Sequence[int] | None = None,
) -> contextlib.AbstractContextManager:
    """Query positions cannot attend to source positions (scores −inf, rows renormalised).

    `queries`: "last", "all" or token positions; `sources`: token positions, one list per sequence of the batch (-1 =
    none). A row that loses everything it could see attends to nothing: its weights are 0."""
    chosen = torch.arange(model.n_heads) if heads is None else torch.tensor(list(heads))

    def gone_from(weights: torch.Tensor, start: int, width: int) -> torch.Tensor:
        """What is hidden from the query columns from `start` on, of `width`: [B, 1, R, S]."""
        B, _, R, S = weights.shape
        if isinstance(queries, str) and queries == "all":
            asks = torch.ones(B, R, dtype=torch.bool, device=weights.device)
        else:
            rows = rows_in_pass(queries, width).to(weights.device).expand(B, -1)
            here = torch.arange(start, start + R, device=weights.device)
            asks = (rows[:, None, :] == here[:, None]).any(-1)  # [B, R]
        cut = positions().key_columns(_ragged(sources, positions().key_position.device), S).to(weights.device)  # [B, S]
        return asks[:, None, :, None] & cut[:, None, None, :]

    def change(weights: torch.Tensor, start: int, weigh: Weights) -> torch.Tensor:
        nonlocal chosen
        chosen = chosen.to(weights.device)  # moved once
        width, shape = weigh.query.shape[2], tuple(weights.shape)
        # layers share the places of a pass, and often the queries and sources
        key = ("knock-out", id(queries), id(sources), start, width, shape, weights.device)
        gone = positions().once(key, lambda: gone_from(weights, start, width))
        plain = weights.index_select(1, chosen)
        kept = plain.masked_fill(gone, 0.0)
        total = kept.sum(-1, keepdim=True)
        renormed = kept / total.clamp_min(1e-30)
        asked = gone.any(-1, keepdim=True)
        faint = asked & (total < 1e-6)
        # Where float32 has rounded the rest of these rows away, their scores still have it. To look whether there are
        # any is nothing on a CPU, and a wait elsewhere.
        if not is_cpu(weights.device) or faint.any():
            scores = weigh.scores(slice(start, start + weights.shape[2])).index_select(1, chosen)
            open_ = (scores > BLOCKED / 2) & ~gone
            again = scores.masked_fill(~open_, BLOCKED).softmax(-1) * open_
            renormed = torch.where(faint, again, renormed)
        return weights.index_copy(1, chosen, torch.where(asked, renormed, plain))

    return edit(model, layer, change)


def _ragged(rows, device) -> torch.Tensor:
    """Lists of different lengths as one tensor, filled with -1."""
    if isinstance(rows, torch.Tensor):
        return rows.to(device)
    width = max((len(r) for r in rows), default=0)
    return torch.tensor([list(r) + [-1] * (width - len(r)) for r in rows], dtype=torch.long, device=device).reshape(
        len(rows), width
    )
