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
from transformers import DynamicCache

from workbench.core.errors import InputError
from workbench.engine.edits import apply
from workbench.engine.generate import _Ends, _room, _Rows
from workbench.engine.passes import DECODE, Pass, check_prompts, with_pass
from workbench.engine.sampling import likeliest
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
    rooms = [[_room(model, len(ids), max_new_tokens) for ids in side] for side in (prompts, without)]
    for side, room in zip((prompts, without), rooms):
        check_prompts(model, side, run, room=room)
    room, ends = [min(pair) for pair in zip(*rooms)], _Ends.of(model, (), (), True)
    out: list[list[int]] = [[] for _ in prompts]

    def compute(rows: list[int]) -> None:
        pairs = [(prompts[i], without[i]) for i in rows]
        found = _batch(model, pairs, [room[i] for i in rows], ends, weight, run.for_prompts([*rows, *rows]))
        for i, ids in zip(rows, found):
            out[i] = ids

    lengths = [2 * (max(map(len, pair)) + more) for pair, more in zip(zip(prompts, without), room)]
    for _ in run.batches(lengths, compute, tokens=model.planned_tokens(DECODE, longest=max(lengths), caches=True)):
        pass
    return out


@torch.no_grad()
def _batch(model: Model, pairs: list, room: list[int], ends: _Ends, weight: float, run: Pass) -> list[list[int]]:
    """Continuations of pairs of prompts, read as one batch: those with a context first, then those without."""
    rows = _Rows(model, DynamicCache(config=model.hf.config))
    alive, written = list(range(len(pairs))), [[] for _ in pairs]
    batch = pad([ids for side in zip(*pairs) for ids in side], pad_id=model.pad_id, side="left", device=model.device)
    with apply(model, run.edits):
        scores = rows.feed(batch)
    while True:
        with_context, bare = scores.chunk(2)
        chosen = likeliest(weighed(with_context, bare, weight), model.name)
        keep = []
        for k, (i, token) in enumerate(zip(alive, chosen.tolist())):
            written[i].append(token)
            if len(written[i]) < room[i] and not ends.reached(written[i]):
                keep.append(k)
        if not keep:
            return written
        if len(keep) < len(alive):
            rows.select(torch.tensor([*keep, *(len(alive) + k for k in keep)], device=chosen.device))
            alive, chosen = [alive[k] for k in keep], chosen[keep]
        run.asked()
        with apply(model, run.for_prompts([*alive, *(len(pairs) + i for i in alive)]).edits):
            scores = rows.feed_tokens(chosen.repeat(2))
