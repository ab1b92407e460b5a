"""Teacher-forced scoring: what a model says of every token of texts that already exist."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from workbench.core.errors import InputError
from workbench.engine.edits import on_final_norm
from workbench.engine.hf import stream
from workbench.engine.passes import Pass, check_ids, with_pass
from workbench.engine.rule import Rule
from workbench.engine.sampling import check_steps, rows_at_once, step
from workbench.models.devices import is_cpu
from workbench.models.model import Model
from workbench.models.recording import read_out_site, scores_of
from workbench.models.sites import Site

# Scores of one product with the unembedding on a CPU. In few bits the unembedding is widened for every block anew,
# which pays for more rows at once.
SCORES, WIDENED = 1 << 21, 1 << 26


@with_pass
@torch.no_grad()
def score(
    model: Model,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    *,
    rule: Rule | None = None,
    run: Pass,
) -> list[torch.Tensor]:
    """Statistics of given texts: one tensor [tokens of the continuation, len(FIELDS)] float32 on the CPU per row.

    All positions of a text are read in one pass and scored in blocks, so texts × positions × vocabulary is never held.
    A token that the rule would have cut has log-probability −inf. Raises InputError for an empty prompt or
    continuation."""
    if len(prompts) != len(continuations):
        raise InputError(f"There are {len(prompts)} prompts and {len(continuations)} continuations; give one each.")
    for row, (prompt, text) in enumerate(zip(prompts, continuations)):
        if not len(prompt):
            raise InputError(f"Prompt {row + 1} has no tokens; a text is scored given at least one token (BOS).")
        if not len(text):
            raise InputError(f"Continuation {row} has no tokens to score.")
    check_ids(model, continuations)
    fed = [[*prompt, *text[:-1]] for prompt, text in zip(prompts, continuations)]
    out: dict[int, torch.Tensor] = {}
    site, done = read_out_site(model, edited=on_final_norm(run.edits)), 0
    for rows, seen, _ in stream(model, fed, [site], positions="all", run=run):
        states = seen[site].split([len(fed[i]) for i in rows])
        hidden = torch.cat([states[k][len(prompts[i]) - 1 :] for k, i in enumerate(rows)])
        target = torch.tensor([token for i in rows for token in continuations[i]], device=hidden.device)
        found = _in_blocks(model, site, hidden, target, rule or Rule(), run)
        for i, part in zip(rows, found.split([len(continuations[i]) for i in rows])):
            check_steps(part, model.name)
            out[i] = part
        done += len(rows)
        run.told(done, len(fed), "score")
    return [out[i] for i in range(len(fed))]


def _in_blocks(
    model: Model, site: Site, hidden: torch.Tensor, target: torch.Tensor, rule: Rule, run: Pass
) -> torch.Tensor:
    """Statistics [T, len(FIELDS)] of the tokens `target` [T] after activations `hidden` [T, …] of the read-out site."""
    if is_cpu(model.device):
        size = max(1, (WIDENED if model.low_precision else SCORES) // model.vocab_size)
    else:
        size = rows_at_once(model.device, model.vocab_size)
    found = []
    for start in range(0, len(hidden), size):
        scores = scores_of(model, site, hidden[start : start + size])
        found.append(step(scores, rule, chosen=target[start : start + size].to(scores.device))[1])
        run.asked()
    return torch.cat(found).cpu()  # the one moment when the device is waited for
