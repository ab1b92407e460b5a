"""What a rule keeps of a step's distribution: entropy, support, log-probability of the token, which may be drawn here;
and the same of the 50 likeliest tokens, as the official code of the branching factor computes it.

With w = e^v the weights of the likeliest tokens, what a rule keeps is a prefix of them. So everything is read off the
running sums of w and w·v at its last token: with M and S there, the entropy is ln M − S/M. The official code puts the
token back if it was cut, which adds its own w and w·v."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from workbench.engine.draws import draw
from workbench.engine.ranking import TOP, Ranked, order_keys
from workbench.engine.rule import Rule

MARGIN = 1e-6  # of the nucleus: see `sampling`


@dataclass(frozen=True, eq=False)
class Tempered:
    """Rows [r] under the temperature, of values v with the exponentials w over the whole vocabulary: mass Σ w and, for
    a rule that cuts nothing, inner Σ w·v; tokens that are given and their own values, or keys to draw tokens by."""

    mass: torch.Tensor
    inner: torch.Tensor | None
    token: torch.Tensor | None
    own: torch.Tensor | None
    keys: torch.Tensor | None

    def some(self, rows: torch.Tensor | None) -> Tempered:
        """Some of the rows; None: all."""
        if rows is None:
            return self
        rest = (None if x is None else x[rows] for x in (self.inner, self.token, self.own, self.keys))
        return Tempered(self.mass[rows], *rest)


def of_rule(
    rule: Rule, ranked: Ranked, given: Tempered, *, vocabulary: int, wide: torch.dtype
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Ids [r] and statistics [r] by name of rows with their likeliest tokens: values v (0 the highest) and ids [r, K].
    `wide` is the dtype to add and compare in."""
    (values, ids), token, own, mass = ranked, given.token, given.own, given.mass
    weight = values.exp()
    sums = torch.stack([weight, weight * values]).cumsum(-1, dtype=wide)
    top = min(TOP, values.shape[1]) - 1
    found = {"top_mass": sums[0, :, top] / mass}
    if rule.temperature == 0:
        return _at_zero(ids[:, 0], token, found)
    cut = None
    if not rule.truncates:
        assert token is not None and own is not None and given.inner is not None
        found["support"] = torch.full_like(own, vocabulary)
        edges = torch.stack([mass, sums[0, :, top], given.inner, sums[1, :, top]], 1).view(-1, 2, 2).transpose(0, 1)
        absent = _is_after(own, token, values[:, top], ids[:, top], vocabulary)
    else:
        inside, last, last_top = _kept(values, sums[0], mass, rule)
        found["support"] = last + 1
        both = torch.stack([last, last_top], 1)
        edges = sums.gather(-1, both.expand(2, -1, -1))
        if token is None:
            assert given.keys is not None
            place = _drawn(weight, ids, inside, rule, given.keys, wide)
            token, own = (x.gather(1, place)[:, 0] for x in (ids, values))
            absent = place[:, 0] > last_top
        else:
            assert own is not None
            at = values.gather(1, both), ids.gather(1, both)
            cut, absent = _is_after(own[:, None], token[:, None], *at, vocabulary).unbind(1)
    back = own.exp() * absent
    edges[0, :, 1].add_(back)
    edges[1, :, 1].addcmul_(back, own)
    log_mass = edges[0].log()
    entropy = log_mass - edges[1] / edges[0]
    logprob = own[:, None] - log_mass
    of_kept = logprob[:, 0] if cut is None else logprob[:, 0].masked_fill(cut, -torch.inf)
    found |= {"entropy": entropy[:, 0], "logprob": of_kept, "entropy_top": entropy[:, 1], "logprob_top": logprob[:, 1]}
    return token, found


def _at_zero(
    likeliest: torch.Tensor, token: torch.Tensor | None, found: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """At temperature 0 the likeliest token is all that is kept."""
    zero = torch.zeros_like(found["top_mass"])
    logprob = zero if token is None else zero.masked_fill(token != likeliest, -torch.inf)
    found |= {"entropy": zero, "entropy_top": zero, "support": zero + 1, "logprob": logprob, "logprob_top": logprob}
    return likeliest if token is None else token, found


def _kept(
    values: torch.Tensor, upto: torch.Tensor, total: torch.Tensor, rule: Rule
) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """Which tokens after the likeliest a rule keeps (None: all that top_k leaves), the place of the last of them [r],
    and of the last that the official code sees: it has 50 tokens, whose probabilities are those before top_k where that
    leaves more."""
    limit, top = rule.top_k or values.shape[1], min(TOP, values.shape[1])
    mass = upto[:, limit - 1] if rule.top_k and limit <= values.shape[1] else total
    inside = _inside(values[:, :limit], upto[:, :limit], mass, rule)
    if inside is None:
        last = torch.full_like(total, min(limit, values.shape[1]) - 1, dtype=torch.long)
    else:
        last = inside.sum(-1)
    first = _inside(values[:, :top], upto[:, :top], total, rule) if rule.top_k > TOP else None
    return inside, last, last.clamp(max=top - 1) if first is None else first.sum(-1)


def _inside(values: torch.Tensor, upto: torch.Tensor, mass: torch.Tensor, rule: Rule) -> torch.Tensor | None:
    """Which of the tokens [r, K − 1] after the likeliest top_p and min_p keep; None where neither cuts."""
    inside = None
    if rule.top_p < 1:
        inside = upto[:, :-1] < ((rule.top_p - MARGIN) * mass)[:, None]
    if rule.min_p:
        near = values[:, 1:] >= math.log(rule.min_p)
        inside = near if inside is None else inside.logical_and_(near)
    return inside


def _drawn(
    weight: torch.Tensor,
    ids: torch.Tensor,
    inside: torch.Tensor | None,
    rule: Rule,
    keys: torch.Tensor,
    wide: torch.dtype,
) -> torch.Tensor:
    """Places [r, 1] of drawn tokens among the likeliest, whose weights [r, K] are overwritten."""
    limit = rule.top_k or weight.shape[1]
    if inside is not None:
        weight[:, 1:limit].mul_(inside)
    return draw(weight[:, :limit], keys, ids[:, :limit], wide=wide)[:, None]


def _is_after(
    value: torch.Tensor, token: torch.Tensor, last: torch.Tensor, last_id: torch.Tensor, vocabulary: int
) -> torch.Tensor:
    """Whether a token is less likely than the last one, or as likely with a higher id."""
    return order_keys(value, token, vocabulary) > order_keys(last, last_id, vocabulary)
