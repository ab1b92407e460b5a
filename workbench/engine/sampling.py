"""What a decoding step says about its next token: entropies, log-probabilities and the sampled id, reduced on the
device.

A step turns scores [R, V] into one id and a few float32 numbers per row; the scores never leave the device. The same
function serves sampling (`generate.sample`) and teacher-forced scoring of texts that already exist (`scoring.score`),
so both give the same numbers.

Two distributions are described. *Full* is the model's own: softmax of the scores, temperature 1, nothing cut.
*Truncated* is the one that is sampled from: temperature, then top-k, then top-p, then min-p, renormalised (the order of
Hugging Face). The nucleus is the smallest prefix of the sorted probabilities whose sum is at least top_p − 1e-6:
without that margin a uniform distribution over 10 tokens keeps 9 or 10 of them at top_p 0.9, as rounding has it. Equal
probabilities are ordered by token id.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from workbench.core.errors import InputError, RunFailed
from workbench.engine.draws import draw

TOP = 50  # what vLLM was asked to return in the official code of the branching factor
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
MARGIN = 1e-6
# Scores this far below the largest have probability 0 in float64 too; clamping there keeps 0 × −inf out of the
# entropies.
FLOOR = -1e4
# Numbers per block of rows: intermediate copies of the scores stay under 16 MiB each, whatever the batch.
BLOCK = 2 * 1024 * 1024
SORTED = 1024  # as many scores of a row are simply sorted
WIDE = 4096  # a nucleus of more tokens, and of a third of the vocabulary, is found without sorting them
STEPS, STEP = 8192, 512  # of the search for its edge: their number, and how many there are in a nat
SLACK = 1e-4  # float32 sums of the mass are far closer than this


@dataclass(frozen=True)
class Rule:
    """How a token is drawn. Temperature 0 takes the likeliest token; top_p 1, top_k 0 and min_p 0 cut nothing."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        for name, good, allowed in (
            ("temperature", 0 <= self.temperature < float("inf"), "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k >= 0 and int(self.top_k) == self.top_k, "0 (off) or a whole number"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 (off) and 1"),
        ):
            if not good:
                raise InputError(f"{name} is {getattr(self, name)}; it must be {allowed}.")

    @classmethod
    def parse(cls, text: str) -> Rule:
        """'temperature=0.6 top_p=0.9' as a rule; what is not named cuts nothing. Raises InputError naming the word that
        is wrong."""
        found: dict[str, float] = {}
        for word in text.split():
            name, _, value = word.partition("=")
            try:
                found[name] = {"temperature": float, "top_p": float, "top_k": int, "min_p": float}[name](value)
            except (KeyError, ValueError):
                raise InputError(
                    f"'{word}' in the decoding rule '{text}' is not temperature=…, top_p=…, top_k=… or min_p=…."
                ) from None
        return replace(cls(), **found)

    @property
    def truncates(self) -> bool:
        return self.top_p < 1 or self.top_k > 0 or self.min_p > 0


def step(
    scores: torch.Tensor, rule: Rule, *, chosen: torch.Tensor | None = None, keys: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids [R] and statistics [R, len(FIELDS)] float32 of one step with scores [R, V].

    Give the ids as `chosen` [R] (scoring), or random `keys` [R] int64 (`step_keys`) to draw them."""
    rows = max(1, BLOCK // scores.shape[1])
    parts = []
    for start in range(0, len(scores), rows):
        block = slice(start, start + rows)
        parts.append(
            _block(
                scores[block], rule, None if chosen is None else chosen[block], None if keys is None else keys[block]
            )
        )
    return torch.cat([ids for ids, _ in parts]), torch.cat([found for _, found in parts])


def _block(
    scores: torch.Tensor, rule: Rule, chosen: torch.Tensor | None, keys: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    scores = scores.float()
    highest = scores.amax(-1, keepdim=True)
    if bool(
        (broken := highest[:, 0].isnan()).any()
    ):  # NaN cannot be sorted; it stays in the statistics, where it is refused
        token, out = _block(scores.masked_fill(broken[:, None], 0.0), rule, chosen, keys)
        return token, out.masked_fill(broken[:, None], torch.nan)
    low = scores - highest
    low.clamp_(min=FLOOR)
    T = rule.temperature or 1.0
    weight = low.exp()
    total = weight.sum(-1)
    tempered = low if T == 1 else low / T
    tempered_weight = weight if T == 1 else tempered.exp()
    log_total = tempered_weight.sum(-1).log().double()
    reach, size = _reach(tempered, tempered_weight, rule)
    token = torch.empty(len(low), dtype=torch.long, device=low.device) if chosen is None else chosen.clone()
    if chosen is None and not rule.truncates and rule.temperature > 0:
        assert keys is not None
        token = draw(tempered.double(), keys, None)
    out = torch.empty(len(low), len(FIELDS), device=low.device)

    for rows, flat in _by_width(size, low.shape[1], rule):
        if len(rows):
            take = slice(None) if len(rows) == len(low) else rows
            if flat:
                mine = None if chosen is None else token[rows], None if keys is None else keys[rows]
                token[rows], out[rows] = _unsorted(tempered[take], log_total[rows], rule, *mine)
                continue
            log_p, ids = _candidates(tempered[take], reach[take], size[take])
            log_p = log_p.double() - log_total[rows, None]
            kept = _nucleus(log_p, rule)
            log_q = torch.where(kept, log_p, -torch.inf).log_softmax(-1)
            if chosen is None and rule.temperature == 0:
                token[rows] = ids[:, 0]
            elif chosen is None and rule.truncates:
                assert keys is not None
                token[rows] = draw(log_q, keys[rows], ids)
            own = _own(tempered[take], token[rows], log_total[rows], T)
            entropy_top, logprob_top = _as_the_official_code(log_p[:, :TOP], ids[:, :TOP], own, token[rows], rule)
            match = (ids == token[rows, None]) & kept
            values = {
                "entropy": torch.special.entr(log_q.exp()).sum(-1),
                "logprob": torch.where(match.any(-1), log_q.masked_fill(~match, 0).sum(-1), -torch.inf),
                "support": kept.sum(-1),
                "top_mass": log_p[:, :TOP].exp().sum(-1),
                "entropy_top": entropy_top,
                "logprob_top": logprob_top,
            }
            if (
                not rule.truncates and rule.temperature > 0
            ):  # the candidates are only the likeliest tokens, nothing is cut
                values |= {"logprob": own, "support": torch.full_like(own, low.shape[1])}
            out[rows] = _in_fields(values)

    lowest = low.gather(1, token[:, None])[:, 0]
    out[:, FIELDS.index("logprob_full")] = torch.where(lowest <= FLOOR, -torch.inf, lowest - total.log())
    out[:, FIELDS.index("top1")] = 1 / total
    out[:, FIELDS.index("entropy_full")] = total.log() - weight.mul_(low).sum(-1) / total
    if not rule.truncates and rule.temperature > 0:
        sum_of = (
            out[:, FIELDS.index("entropy_full")]
            if T == 1
            else (log_total - tempered_weight.mul_(tempered).sum(-1) / log_total.exp()).float()
        )
        out[:, FIELDS.index("entropy")] = sum_of
    return token, out


def _by_width(size: torch.Tensor, vocabulary: int, rule: Rule) -> list[tuple[torch.Tensor, bool]]:
    """The rows whose candidates, `size` [R] of them, are few and those with many, since a flat row must not widen the
    table of all others; and whether those at hand are too many to be sorted."""
    few, limit = size <= SORTED, max(WIDE, vocabulary // 3)
    if limit >= vocabulary or not (rule.top_p < 1 and rule.top_k == 0 and rule.temperature > 0):
        return [(few.nonzero()[:, 0], False), ((~few).nonzero()[:, 0], False)]
    wide = size > limit
    return [(rows.nonzero()[:, 0], flat) for rows, flat in ((few, False), (~few & ~wide, False), (wide, True))]


def _in_fields(values: dict[str, torch.Tensor]) -> torch.Tensor:
    """Statistics [r] by name as [r, len(FIELDS)] float32, 0 for those that are not there."""
    some = next(iter(values.values()))
    out = torch.zeros(len(some), len(FIELDS), device=some.device)
    for name, value in values.items():
        out[:, FIELDS.index(name)] = value.float()
    return out


def _own(tempered: torch.Tensor, token: torch.Tensor, log_total: torch.Tensor, T: float) -> torch.Tensor:
    """Log-probabilities [r] of tokens [r] under the temperature."""
    own = tempered.gather(1, token[:, None])[:, 0].double()
    return torch.where(own * T <= FLOOR, -torch.inf, own - log_total)


def _unsorted(
    tempered: torch.Tensor, log_total: torch.Tensor, rule: Rule, chosen: torch.Tensor | None, keys: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids [r] and statistics [r, len(FIELDS)], as from sorted candidates, of rows whose nucleus (by top_p, perhaps
    min_p) holds much of the vocabulary: sums over it need no order, and only what lies about its edge is sorted."""
    log_p = tempered.double() - log_total[:, None]
    p = log_p.exp()
    kept = _down_to_edge(tempered, p, log_total, rule)
    mass = torch.where(kept, p, 0.0).sum(-1)
    if chosen is None:
        assert keys is not None
        token = draw(log_p.masked_fill(~kept, -torch.inf), keys, None)
    else:
        token = chosen
    top = tempered >= tempered.topk(TOP, dim=-1).values[:, -1:]
    top_log_p, ids = _candidates(tempered, top, top.sum(-1))
    top_log_p = top_log_p[:, :TOP].double() - log_total[:, None]
    own = _own(tempered, token, log_total, rule.temperature)
    entropy_top, logprob_top = _as_the_official_code(top_log_p, ids[:, :TOP], own, token, rule)
    there = kept.gather(1, token[:, None])[:, 0]
    return token, _in_fields(
        {
            "entropy": mass.log() - torch.where(kept, p.mul_(log_p), 0.0).sum(-1) / mass,
            "logprob": torch.where(there, log_p.gather(1, token[:, None])[:, 0] - mass.log(), -torch.inf),
            "support": kept.sum(-1),
            "top_mass": top_log_p.exp().sum(-1),
            "entropy_top": entropy_top,
            "logprob_top": logprob_top,
        }
    )


def _down_to_edge(tempered: torch.Tensor, p: torch.Tensor, log_total: torch.Tensor, rule: Rule) -> torch.Tensor:
    """The nucleus [r, V] of probabilities p [r, V] (float64): the steps of log-probability that lie in it as a whole,
    and of the step in which it ends the likeliest."""
    step_of = (tempered * -STEP).clamp_(max=STEPS - 1).long()
    mass = p.new_zeros(len(p), STEPS).scatter_add_(1, step_of, p)
    upto = mass.cumsum(-1)
    goal = rule.top_p - MARGIN
    edge = (upto < goal).sum(-1, keepdim=True).clamp_(max=STEPS - 1)
    at_edge = step_of == edge
    values, ids = _candidates(tempered, at_edge, at_edge.sum(-1))
    real = values > -torch.inf
    q = (values.double() - log_total[:, None]).exp()
    before = (upto.gather(1, edge) - mass.gather(1, edge)) + (q.cumsum(-1) - q)
    kept = step_of < edge
    row, place = (real & (before < goal)).nonzero(as_tuple=True)
    kept[row, ids[row, place]] = True
    if rule.min_p:
        kept &= p >= rule.min_p * p.amax(-1, keepdim=True)
    return kept


def _reach(tempered: torch.Tensor, weight: torch.Tensor, rule: Rule) -> tuple[torch.Tensor, torch.Tensor]:
    """Which tokens [R, V] are worth sorting, and how many [R]: a set that surely holds the 50 likeliest and the
    nucleus, hardly more.

    Sorting every score is what makes nucleus sampling slow. A histogram of the mass over log-probability, in steps of
    an eighth of a nat, tells down to which step the nucleus reaches; whole steps are taken, so that ties stay
    together."""
    R, V = tempered.shape
    if V <= SORTED:
        return torch.ones_like(tempered, dtype=torch.bool), torch.full((R,), V, device=tempered.device)
    if not rule.truncates:
        top = tempered >= tempered.topk(TOP, dim=-1).values[:, -1:]
        return top, top.sum(-1)
    bins = (tempered * -8).clamp_(max=255).to(torch.int64)
    count = (
        torch.zeros(R, 256, device=tempered.device)
        .scatter_add_(1, bins, weight.new_ones(1, 1).expand_as(weight))
        .cumsum(-1)
    )
    short = count < max(TOP, rule.top_k)
    if rule.truncates and rule.temperature > 0:
        mass = torch.zeros(R, 256, device=tempered.device).scatter_add_(1, bins, weight).double().cumsum(-1)
        lacking = torch.ones_like(short) if rule.top_p < 1 or rule.min_p else torch.zeros_like(short)
        if rule.top_p < 1:
            lacking &= mass < (rule.top_p + SLACK) * mass[:, -1:]
        if rule.min_p:
            lacking &= torch.arange(256, device=bins.device) <= int(-8 * math.log(rule.min_p)) + 1
        short |= lacking
    last = short.sum(-1, keepdim=True).clamp_(max=255)
    return bins <= last, count.gather(1, last)[:, 0].long()


def _candidates(tempered: torch.Tensor, reach: torch.Tensor, count: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` [r] tokens of `reach` [r, V], likeliest first, equal ones by id: values [r, K], −inf after the last,
    and ids [r, K]."""
    row, token = reach.nonzero(as_tuple=True)  # by row, then by id
    place = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
    values = tempered.new_full((len(tempered), int(count.max())), -torch.inf)
    ids = torch.zeros(values.shape, dtype=torch.long, device=row.device)
    values[row, place], ids[row, place] = tempered[row, token], token
    values, order = values.sort(dim=-1, descending=True, stable=True)
    return values, ids.gather(1, order)


def _nucleus(log_p: torch.Tensor, rule: Rule) -> torch.Tensor:
    """Which of the candidates [r, K] (descending log-probabilities under the temperature) are kept."""
    kept = log_p > -torch.inf
    if rule.temperature == 0:
        kept[:, 1:] = False
        return kept
    p = log_p.exp()
    if rule.top_k:
        kept[:, rule.top_k :] = False
        p = torch.where(kept, p, 0.0)
        p = p / p.sum(-1, keepdim=True)
    if rule.top_p < 1:
        kept[:, 1:] &= p.cumsum(-1)[:, :-1] < rule.top_p - MARGIN
    if rule.min_p:
        kept &= p >= rule.min_p * p[:, :1]
    return kept


def _as_the_official_code(log_p, ids, own, token, rule: Rule) -> tuple[torch.Tensor, torch.Tensor]:
    """Entropy and log-probability from the 50 likeliest tokens [r, 50]: cut at top_p, the token put back if it was cut
    (its log-probability is `own` [r]), renormalised. The official code knows top_p only; a rule's top_k and min_p cut
    here as they do everywhere, so that no more tokens count than can be drawn."""
    if rule.temperature == 0:
        zero = torch.zeros_like(own)
        return zero, torch.where(token == ids[:, 0], zero, -torch.inf)
    kept = _nucleus(log_p, rule if rule.top_k <= TOP else replace(rule, top_k=0)) & (log_p.exp() >= 1e-12)
    there = ((ids == token[:, None]) & kept).any(-1)
    log_q = torch.cat([torch.where(kept, log_p, -torch.inf), torch.where(there, -torch.inf, own)[:, None]], dim=1)
    norm = log_q.logsumexp(-1)
    return torch.special.entr((log_q - norm[:, None]).exp()).sum(-1), own - norm


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
