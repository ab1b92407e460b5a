"""One continuation of one prompt, a token whenever the next is asked for.

Between two tokens nothing of the model is in use: no hook hangs on it and no thread waits, so whoever asks may stop, or
use the model for something else, and go on later."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from workbench.core.errors import InputError
from workbench.engine.draws import row_keys, step_keys
from workbench.engine.edits import apply
from workbench.engine.kv_cache import Cached, feed
from workbench.engine.passes import Pass, check_prompts, with_pass
from workbench.engine.sampling import Rule, likeliest, step
from workbench.models.model import Model

GREEDY = Rule(temperature=0.0)


@with_pass
def token_by_token(
    model: Model,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    rule: Rule = GREEDY,
    seed: int = 0,
    eos: bool = True,
    run: Pass,
) -> Iterator[int]:
    """The tokens that `greedy` (temperature 0) or the first sample of `sample` (with this `rule` and `seed`) would
    write after a prompt of token ids, one after the other; the first pass is made when the first token is asked for.

    It ends after EOS (unless `eos` is false), after `max_new_tokens`, and at the end of the model's context. Edits act
    on every pass; those at positions act where these are read. Raises InputError for a prompt and edits that do not
    fit, RunFailed for scores that are NaN or infinite."""
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens is {max_new_tokens}; write at least one token.")
    limit = model.context_length
    room = max_new_tokens if limit is None else min(max_new_tokens, limit - len(prompt) + 1)
    check_prompts(model, [prompt], run, room=[room])
    return _written(model, list(prompt), room, rule, seed, model.eos_ids if eos else (), run)


def _written(
    model: Model, prompt: list[int], room: int, rule: Rule, seed: int, ends: Sequence[int], run: Pass
) -> Iterator[int]:
    key = row_keys(seed, [0], [0], device=model.device)
    past: Cached | None = None
    row = prompt
    for t in range(room):
        with apply(model, run.edits):
            past, scores = feed(model, [row], past)
        token = _chosen(scores[:, -1], rule, step_keys(key, t), model.name)
        yield token
        if token in ends:
            return
        row = [token]
        run.asked()


def _chosen(scores: torch.Tensor, rule: Rule, keys: torch.Tensor, name: str) -> int:
    """The token of one step, from scores [1, V]."""
    best = likeliest(scores, name)  # also refuses what is no number
    return int(best if rule.temperature == 0 else step(scores, rule, keys=keys.to(scores.device))[0])
