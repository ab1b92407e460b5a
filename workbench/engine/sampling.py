"""What a decoding step says about its next token: entropies, log-probabilities and the sampled id, reduced on the
device.

A step turns scores [R, V] into one id and a few float32 numbers per row; the scores never leave the device, and the
host waits for nothing. The same function serves sampling (`generate.sample`) and teacher-forced scoring of texts that
already exist (`scoring.score`), so both give the same numbers.

Two distributions are described. *Full* is the model's own: softmax of the scores, temperature 1, nothing cut.
*Truncated* is the one that is sampled from: temperature, then top-k, then top-p, then min-p, renormalised (the order of
Hugging Face; `truncation`). The nucleus is the smallest prefix of the sorted probabilities whose sum is at least
top_p − 1e-6: without that margin a uniform distribution over 10 tokens keeps 9 or 10 of them at top_p 0.9, as rounding
has it. Equal probabilities are ordered by token id (`ranking`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from workbench.core.errors import RunFailed
from workbench.engine.draws import draw
from workbench.engine.ranking import FLOOR, TOP, Ranked, likeliest_tokens, nucleus_tokens
from workbench.engine.rule import Rule
from workbench.engine.truncation import Tempered, of_rule
from workbench.models.devices import is_cpu, memory, widest

FIELDS = (
    "entropy",  # nats, of the truncated distribution
    "logprob",  # of the token, under the truncated distribution; -inf for a token that was cut
    "entropy_full",  # nats, of the full distribution
    "logprob_full",
    "support",  # tokens that the truncation keeps
    "top1",  # probability of the likeliest token, full distribution
    "top_mass",  # probability of the 50 likeliest tokens under the temperature, before anything is cut
    "entropy_top",  # as the official code computes it, from the 50 likeliest tokens and the sampled one
    "logprob_top",
)
# Numbers per block of rows on a CPU: a block stays in a cache, and its copies in memory that is at hand.
BLOCK = 1 << 19
NUMBER = 128  # bytes that a step on an accelerator holds at most for one score of a block


def step(
    scores: torch.Tensor,
    rule: Rule,
    *,
    chosen: torch.Tensor | None = None,
    keys: torch.Tensor | None = None,
    rows: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids [R] and statistics [R, len(FIELDS)] float32 of one step with scores [R, V].

    Give the ids as `chosen` [R] (scoring), or random `keys` [R] int64 (`step_keys`) to draw them. At most `rows` rows
    are worked on at once (`rows_at_once`; None: what suits the caches of a CPU, and all of them elsewhere). On an
    accelerator nothing waits for the device. Of a row whose highest score is NaN or infinite, statistics are NaN."""
    if rows is None:
        rows = rows_at_once(scores.device, scores.shape[1]) if is_cpu(scores.device) else max(1, len(scores))
    parts = []
    for start in range(0, len(scores), rows):
        part = slice(start, start + rows)
        given = (None if x is None else x[part] for x in (chosen, keys))
        parts.append(_block(scores[part], rule, *given))
    return parts[0] if len(parts) == 1 else (torch.cat([x for x, _ in parts]), torch.cat([x for _, x in parts]))


def rows_at_once(device: torch.device, vocabulary: int) -> int:
    """How many rows a step works on at once: what stays in the caches of a CPU, what half of an accelerator's free
    memory holds. Ask once, not at every step."""
    if is_cpu(device):
        return max(1, BLOCK // vocabulary)
    return max(1, memory(device)[0] // 2 // (NUMBER * vocabulary))


def _block(
    scores: torch.Tensor, rule: Rule, chosen: torch.Tensor | None, keys: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    scores, wide = scores.float(), widest(scores.device)
    low = (scores - scores.amax(-1, keepdim=True)).clamp_(min=FLOOR)
    weight = low.exp()
    total, inner = weight.sum(-1), (weight * low).sum(-1)
    tempered, heat, mass, heat_inner = low, weight, total, inner
    plain = rule.temperature > 0 and not rule.truncates
    if rule.temperature not in (0, 1):
        tempered = low / rule.temperature
        heat = tempered.exp()
        mass = heat.sum(-1)
        heat_inner = (heat * tempered).sum(-1) if plain else None
    token = chosen
    if token is None and plain:
        assert keys is not None
        token = draw(heat, keys, wide=wide)
    own = None if token is None else tempered.gather(1, token[:, None])[:, 0]
    given = Tempered(mass, heat_inner, token, own, keys)
    groups = [
        (rows, *of_rule(rule, ranked, given.some(rows), vocabulary=low.shape[1], wide=wide))
        for rows, ranked in _ranked(tempered, heat, rule)
    ]
    token, kept = _together(groups)
    lowest = low.gather(1, token[:, None])[:, 0]
    log_total = total.log()
    values = kept | {
        "entropy_full": log_total - inner / total,
        "logprob_full": lowest - log_total,
        "top1": total.reciprocal(),
    }
    if chosen is not None:
        impossible = lowest <= FLOOR
        values |= {name: values[name].masked_fill(impossible, -torch.inf) for name in FIELDS if "logprob" in name}
    return token, torch.stack([values[name] for name in FIELDS], 1).float()


def _ranked(tempered: torch.Tensor, weight: torch.Tensor, rule: Rule) -> Iterator[tuple[torch.Tensor | None, Ranked]]:
    """The likeliest tokens, at least 50 and all that the rule may keep where it cuts, by groups of rows (None: all)."""
    if rule.temperature == 0 or rule.top_k or not rule.truncates:
        yield None, likeliest_tokens(tempered, max(TOP, rule.top_k if rule.temperature else 0))
    else:
        yield from nucleus_tokens(tempered, weight, top_p=rule.top_p, min_p=rule.min_p)


def _together(groups: Sequence) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Ids [R] and statistics [R] by name of groups of rows (rows, ids, statistics), in the order of the rows."""
    if groups[0][0] is None:
        return groups[0][1:]
    rows = torch.cat([rows for rows, _, _ in groups]).argsort()
    joined = {name: torch.cat([found[name] for _, _, found in groups])[rows] for name in groups[0][2]}
    return torch.cat([ids for _, ids, _ in groups])[rows], joined


def check_steps(found: torch.Tensor, name: str) -> None:
    """Raise RunFailed when statistics or scores are NaN: whatever is read off them would look like a number."""
    if bool(found.isnan().any()):
        raise RunFailed(
            f"The model {name} gave NaN scores while it was read; use another dtype (bfloat16 or float32) or "
            f"check its weights."
        )


def likeliest(scores: torch.Tensor, name: str, *, last: Sequence[int] | None = None) -> torch.Tensor:
    """Ids [...] of the highest of scores [..., V]. Raises RunFailed where one is NaN or infinite (the id would be 0).

    `last`: of scores [B, R, V], how many of the last R count in each row; what stands before them may be of padding."""
    counted = None if last is None else torch.tensor(last, device=scores.device)
    token, fault = likeliest_unchecked(scores, last=counted)
    check_steps(fault, name)
    return token


def likeliest_unchecked(scores: torch.Tensor, *, last: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids [...] of the highest of scores [..., V], and faults [...] in the dtype of the scores: 0, and NaN where the
    highest is NaN or infinite, whose id means nothing.

    Nothing waits for the device: a loop adds the faults of its steps up and gives the sum to `check_steps` at its end.
    `last` [B] as in `likeliest`, on the device."""
    value, token = scores.max(-1)
    fault = value - value
    if last is not None:
        padding = torch.arange(value.shape[1], 0, -1, device=value.device) > last[:, None]
        fault = fault.masked_fill(padding, 0)
    return token, fault
