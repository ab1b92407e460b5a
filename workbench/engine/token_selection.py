"""Which tokens of a prompt a layer selects by what its last query thinks of their keys, and passes that select.

Shi et al., Discovering the Gems in Early Layers (GemFilter, arXiv 2409.17422), as their code has it: at one layer the
products of the last query with every key, both after their rotation, without 1/√d and without softmax, are summed over
the query heads, averaged over a window of tokens with zeros beyond the ends, and the highest are kept, in the order of
the text. One set serves the whole model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch

from workbench.core.errors import InputError, RunFailed
from workbench.engine.edits import apply
from workbench.engine.passes import READ, ROWS, Pass, check_prompts, with_pass
from workbench.models.attention import observe_scores
from workbench.models.batching import pad, sent
from workbench.models.model import Model
from workbench.models.query_rows import Queries
from workbench.models.running_pass import positions

KERNEL = 5  # tokens of the window
SCORES = ("products", "softmax")
UNSEEN = float("-inf")  # the score of a token that the query does not see


@contextlib.contextmanager
def observe_token_scores(
    model: Model,
    width: int,
    *,
    rows: Queries = "last",
    layers: Sequence[int] | None = None,
    score: str = "products",
) -> Iterator[dict[int, torch.Tensor]]:
    """While open, every forward pass leaves the scores of the tokens in the yielded dict, under their layer: [B, width]
    float32, by token position, summed over the query heads; UNSEEN where the query does not see a token or there is
    none. `rows`: the one query of each sequence that is asked."""
    with observe_scores(
        model,
        lambda _, scores, visible: _by_position(scores, visible, width),
        rows=rows,
        layers=layers,
        softmax=_known(score) == "softmax",
    ) as seen:
        yield seen


def _known(score: str) -> str:
    if score not in SCORES:
        raise InputError(f"'{score}' is no score of tokens; choose {' or '.join(SCORES)}.")
    return score


def _by_position(scores: torch.Tensor, visible: torch.Tensor, width: int) -> torch.Tensor:
    """Scores [B, H, 1, S] of key columns, summed over heads, as [B, width] of token positions."""
    summed = scores[:, :, 0].sum(1).masked_fill(~visible[:, :, 0].any(1), UNSEEN)
    at = positions().columns_of_keys(summed.shape[1]).to(summed.device)
    out = summed.new_full((len(summed), width + 1), UNSEEN)  # the last column takes the padding
    at = torch.where((at < 0) | (at >= width), width, at)
    return out.scatter_(1, at, summed)[:, :width]


def check_finite(model: Model, scores: torch.Tensor, layers: Sequence[int]) -> None:
    """Raise RunFailed where a score [B, layers, n] is NaN or infinite: sorting would put it first, and the first tokens
    of the prompt would look selected. (UNSEEN is no score.) Waits for the device."""
    broken = (scores.isnan() | (scores == float("inf"))).any(-1).any(0).tolist()
    if any(broken):
        raise RunFailed(
            f"The scores of tokens at layer {layers[broken.index(True)]} of {model.name} are NaN or infinite; use "
            f"another dtype (bfloat16 or float32) or check its weights."
        )


def pooled(scores: torch.Tensor, kernel: int = KERNEL) -> torch.Tensor:
    """Scores [..., n] averaged over a window of `kernel` tokens (odd), with zeros beyond the ends that count; tokens
    that are UNSEEN count as zeros, and stay UNSEEN."""
    if kernel < 1 or kernel % 2 == 0:
        raise InputError(f"A window of {kernel} tokens has no middle; kernel must be odd.")
    if kernel == 1:
        return scores
    unseen = scores == UNSEEN
    filled = scores.masked_fill(unseen, 0.0).reshape(-1, 1, scores.shape[-1])
    mean = torch.nn.functional.avg_pool1d(filled, kernel, stride=1, padding=kernel // 2, count_include_pad=True)
    return mean.view(scores.shape).masked_fill(unseen, UNSEEN)


def ranked(scores: torch.Tensor, most: int, *, forced: torch.Tensor | None = None) -> torch.Tensor:
    """The `most` best positions of scores [..., n], best first, [..., min(most, n)] int64; of equal scores the earlier
    token first, and -1 from where only UNSEEN tokens are left. `forced` [..., n] bool: tokens that come before all
    others, in the order of the text, seen or not."""
    keyed = scores if forced is None else scores.masked_fill(forced, float("inf"))
    values, order = keyed.sort(dim=-1, descending=True, stable=True)
    return order[..., :most].masked_fill(values[..., :most] == UNSEEN, -1)


class _Selected(Exception):
    """Raised once the layer has been read: the rest of the pass is not needed."""


@with_pass
def select_tokens(
    model: Model,
    ids: Sequence[Sequence[int]],
    *,
    layer: int,
    keep: int,
    kernel: int = KERNEL,
    score: str = "products",
    forced: Sequence[Sequence[int]] | None = None,
    run: Pass,
) -> list[list[int]]:
    """The positions that `layer` (from 0) selects in every prompt: at most `keep`, ascending. Only the layers up to it
    run, the last of them as far as its keys, and nothing is cached.

    `forced`: of every prompt positions that are kept whatever their scores. Raises InputError for prompts, edits and a
    layer that do not fit, and for more forced positions than `keep`; RunFailed for scores that are not finite."""
    check_prompts(model, ids, run)
    if not 0 <= layer < model.n_layers:
        raise InputError(f"There is no layer {layer}: {model.name} has layers 0–{model.n_layers - 1}.")
    must = forced if forced is not None else [()] * len(ids)
    for row, own in enumerate(must):
        if len(set(own)) > keep:
            raise InputError(f"{len(set(own))} tokens of prompt {row + 1} are forced and {keep} are kept; keep more.")
    out: list[list[int]] = [[] for _ in ids]

    def compute(rows: list[int]) -> None:
        batch = pad([ids[i] for i in rows], pad_id=model.pad_id, device=model.device)
        width = batch.ids.shape[1]
        seen: dict[int, torch.Tensor] = {}

        def read(_layer: int, scores: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
            seen[layer] = _by_position(scores, visible, width)
            raise _Selected

        observed = observe_scores(model, read, layers=[layer], softmax=_known(score) == "softmax")
        edits = apply(model, run.for_prompts(rows).edits)
        with torch.no_grad(), edits, observed, contextlib.suppress(_Selected):
            model.forward(batch, last_logits=0)
        check_finite(model, seen[layer][:, None], [layer])
        chosen = forced_mask([must[i] for i in rows], width, seen[layer].device)
        order = ranked(pooled(seen[layer], kernel), keep, forced=chosen).tolist()
        for i, positions_of in zip(rows, order):
            out[i] = sorted(p for p in positions_of if 0 <= p < len(ids[i]))

    lengths = [len(row) for row in ids]
    rows = model.rows_at_once(lengths, run.max_rows or ROWS)
    tokens = model.planned_tokens(READ, longest=max(lengths))
    for _ in run.batches(lengths, compute, tokens=tokens, rows=rows):
        pass
    return out


def forced_mask(forced: Sequence[Sequence[int]], width: int, device: torch.device) -> torch.Tensor | None:
    """Positions that are forced in every row as a mask [B, width] bool; None where none is."""
    if not any(forced):
        return None
    mask = torch.zeros((len(forced), width), dtype=torch.bool)
    for row, own in enumerate(forced):
        mask[row, list(own)] = True
    (there,) = sent([mask.long()], device)
    return there.bool()
