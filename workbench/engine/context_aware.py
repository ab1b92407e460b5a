"""Context-aware decoding: every token is chosen by how far the context changes its score.

Shi et al. 2024 (arXiv 2305.14739, section 2): the scores of a token after a prompt with a context and after the same
question without it are put together as (1 + α) · with − α · without. With α > 0 what the context changes counts for
more; with −1 < α < 0 for less; α = −1 leaves the scores without the context, which is answering with the book closed;
0 leaves the model as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from workbench.core.errors import InputError
from workbench.engine.decoding import decode
from workbench.engine.edits import Edit, apply
from workbench.engine.endings import Ends, GrowingTexts, room_after
from workbench.engine.one_by_one import DecodedRows, Decoding
from workbench.engine.passes import DECODE, Pass, check_prompts, with_pass
from workbench.engine.sampling import likeliest_unchecked
from workbench.models.batching import pad
from workbench.models.model import Model


def weighed(with_context: torch.Tensor, without: torch.Tensor, weight: float) -> torch.Tensor:
    """(1 + weight) · with − weight · without of scores [..., V], float32; −inf where a token cannot follow either."""
    first, second = with_context.float(), without.float()
    never = first.isneginf() | second.isneginf()
    return ((1 + weight) * first - weight * second).masked_fill(never, -torch.inf)


@with_pass
def context_aware(
    model: Model,
    prompts: Sequence[Sequence[int]],
    without: Sequence[Sequence[int]],
    *,
    weight: float,
    max_new_tokens: int,
    run: Pass,
) -> list[list[int]]:
    """The likeliest continuation of every prompt by `weighed` scores, `without` holding the same prompts without their
    context; `weight`: α. Rows end as in `greedy`, and both prompts of a pair are edited alike.

    Raises InputError for prompts that do not pair or fit, and for a weight that is not finite."""
    if len(prompts) != len(without):
        raise InputError(f"There are {len(prompts)} prompts with and {len(without)} without context; give pairs.")
    if max_new_tokens < 1 or not math.isfinite(weight):
        raise InputError(f"max_new_tokens is {max_new_tokens} and the weight {weight}; give at least 1 and a number.")
    rooms = [[room_after(model, len(ids), max_new_tokens) for ids in side] for side in (prompts, without)]
    for side, room in zip((prompts, without), rooms):
        check_prompts(model, side, run, room=room)
    room, ends = [min(pair) for pair in zip(*rooms)], Ends.of(model, (), (), True)
    out: list[list[int]] = [[] for _ in prompts]

    def compute(rows: list[int]) -> None:
        pairs = [(prompts[i], without[i]) for i in rows]
        texts = GrowingTexts([room[i] for i in rows], max_new_tokens, ends)
        _batch(model, pairs, texts, weight, run.for_prompts([*rows, *rows]))
        for i, ids in zip(rows, texts.written):
            out[i] = ids

    lengths = [2 * (max(map(len, pair)) + more) for pair, more in zip(zip(prompts, without), room)]
    for _ in run.batches(lengths, compute, tokens=model.planned_tokens(DECODE, longest=max(lengths), caches=True)):
        pass
    return out


@torch.no_grad()
def _batch(model: Model, pairs: list, texts: GrowingTexts, weight: float, run: Pass) -> None:
    """Continue pairs of prompts, read as one batch: those with a context first, then those without."""
    batch = pad([ids for side in zip(*pairs) for ids in side], pad_id=model.pad_id, side="left", device=model.device)
    rows = DecodedRows(model, batch, max(texts.room))
    with apply(model, run.edits):
        scores = rows.read(rows.width)

    def choose(scores: torch.Tensor, _keys: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        with_context, bare = scores.chunk(2)
        return likeliest_unchecked(weighed(with_context, bare, weight))

    def edits(alive: list[int]) -> Sequence[Edit]:
        return run.for_prompts([*alive, *(len(pairs) + i for i in alive)]).edits

    decode(rows, scores, texts, Decoding(choose, edits, lambda _: run.asked(), sides=2))
