"""Which heads of a side are pruned, and in which order: on the find split, before k is chosen on validation.

`rank` takes heads by the score that each has alone. Two heads that stand in for each other have no score alone, a head
that answers some kinds of conflict one way and some the other has none over all, and a score is of the last position
while pruning acts at all. So `greedy`, the default, takes from a pool the head that most raises the wanted answer when
it is switched off together with those already taken, and so on, and ends the list where the answer is likeliest. A
head that would cost more of the clean answers than `max_clean_drop` is put aside. The pool are the heads with the
strongest scores and, in turn, those that help most when they are switched off alone on a few items. `gates` fits all
heads at once (causal head gating, arXiv 2505.13737): the list are the heads whose gate closes although a penalty holds
it open.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest

import numpy as np
import torch

from probes.knowledge_conflict.answers import clean_share, edited, log_probabilities
from probes.knowledge_conflict.config import ROLES, TRIED, Config
from probes.knowledge_conflict.head_importance import scores
from probes.knowledge_conflict.head_roles import NOISE, head_roles, strongest
from probes.knowledge_conflict.items import Item
from probes.knowledge_conflict.random_controls import Head
from workbench.core.context import Context
from workbench.engine.edits import Edit
from workbench.engine.head_gates import Gates, fit_gates
from workbench.models.model import Model

Heads = tuple[Head, ...]
Lists = dict[str, dict[str, Heads]]  # variant -> role -> the heads to prune, the first first
SCREENED = 16  # items on which every head is switched off alone, for the pool
SIDES = tuple(ROLES)  # memory, context: also the order of the two answers


def head_lists(
    model: Model,
    config: Config,
    context: Context,
    items: Sequence[Item],
    effects: dict[str, np.ndarray],
    ablated: Callable[[Heads], tuple[Edit, ...]],
) -> tuple[Lists, dict[str, Gates]]:
    """The heads of each side in the order in which they are pruned, by each variant that is tried; and the gates of
    each side where select=gates. At most half of the model's heads: beyond it too few are left for a random control.

    `effects`: of the items, by variant; `ablated`: the edit that switches heads off."""
    variants = [v for v in (TRIED if config.variant == "auto" else (config.variant,)) if v in effects]
    half, some = model.n_layers * model.n_heads // 2, some_items(items, config, context)
    if config.select == "gates":  # which ask nothing of the scores
        gates = {role: _gates(model, config, context, some, role) for role in context.each(ROLES)}
        lists = {variants[0]: {role: _closed(gates[role])[:half] for role in ROLES}}
        return lists, gates
    greedy = config.select == "greedy"
    weights = {"one head at a time": SCREENED * model.n_layers * model.n_heads if greedy else 0}
    weights["heads together"] = 2 * len(variants) * len(some) * min(config.pool, half) * max(config.prune_k, default=0)
    stage = context.stages(weights)
    with stage("one head at a time"):
        helpful = _screened(model, config, context, some, ablated) if greedy else {}
    with stage("heads together"):
        return _lists(model, config, context, some, items, effects, helpful, ablated, variants), {}


def _lists(
    model: Model,
    config: Config,
    context: Context,
    some: Sequence[Item],
    items: Sequence[Item],
    effects: dict[str, np.ndarray],
    helpful: dict[str, Heads],
    ablated: Callable[[Heads], tuple[Edit, ...]],
    variants: Sequence[str],
) -> Lists:
    """The heads of each side by their scores, alone or together (`helpful`: each side's by what each brings alone)."""
    half, lists = model.n_layers * model.n_heads // 2, {}
    for variant in context.each(variants):
        score = scores(effects[variant], config.metric)
        if config.select == "rank":
            side = head_roles(score, effects[variant], items, config).side
            lists[variant] = {role: _ranked(np.abs(score.mean(0)), side == role)[:half] for role in ROLES}
            continue
        strength = strongest(score, items)
        strong = _ranked(strength, strength > NOISE * strength.max())
        lists[variant] = {}
        for role in context.each(ROLES, title=lambda _, role: f"choice of {role} heads"):
            pool = _in_turn(strong, helpful[role])[:half]
            lists[variant][role] = _greedy(model, config, context, some, pool, role, ablated)
    return lists


def some_items(items: Sequence[Item], config: Config, context: Context) -> list[Item]:
    """At most select_items of the items, drawn at random."""
    if len(items) <= config.select_items:
        return list(items)
    drawn = context.rng("select").permutation(len(items))[: config.select_items]
    return [items[i] for i in sorted(drawn)]


def _ranked(strength: np.ndarray, among: np.ndarray) -> Heads:
    """The heads that are `among`, both [layers, H], the strongest first."""
    order = np.argsort(-strength, axis=None, kind="stable")
    heads = [divmod(int(i), strength.shape[1]) for i in order]
    return tuple(head for head in heads if among[head])


def _in_turn(one: Heads, other: Heads) -> Heads:
    """Heads of both lists, by turns, each once."""
    pairs = zip_longest(one, other)
    return tuple(dict.fromkeys(head for pair in pairs for head in pair if head is not None))


def _screened(
    model: Model, config: Config, context: Context, items: Sequence[Item], ablated: Callable[[Heads], tuple[Edit, ...]]
) -> dict[str, Heads]:
    """For each role the heads without which, one at a time, the wanted answer does better on the first SCREENED items,
    the most helpful first."""
    items = items[:SCREENED]

    def compute() -> dict[str, np.ndarray]:
        found = []
        for heads in ((), *((head,) for head in model.heads())):
            context.progress(len(found), len(model.heads()), "heads")
            found.append(log_probabilities(model, context, items, edited(context, ablated(heads))))
        return {"logp": np.stack(found)}

    logp, out = context.part("screened", compute)["logp"], {}
    for role in ROLES:
        plain, *alone = (objective(one, role, config.metric) for one in logp)
        order = sorted(range(len(alone)), key=lambda n: alone[n], reverse=True)
        out[role] = tuple(model.heads()[n] for n in order if alone[n] > plain)
    return out


def _greedy(
    model: Model,
    config: Config,
    context: Context,
    items: Sequence[Item],
    pool: Heads,
    role: str,
    ablated: Callable[[Heads], tuple[Edit, ...]],
) -> Heads:
    """Heads of the pool, each the best beside those before it, up to the number that raises the wanted answer most. A
    step that does not help yet is taken as well: the next head may need it.

    A head is taken only if the clean prompts then lose at most `max_clean_drop` of their right answers; else it is put
    aside for good, and the next of the pool beyond the first `config.pool` takes its place (for as many as these)."""
    first, spare = pool[: config.pool], pool[config.pool : 2 * config.pool]

    def value(heads: Heads) -> tuple[float, float]:
        return objective(log_probabilities(model, context, items, edited(context, ablated(heads))), role, config.metric)

    def clean(heads: Heads) -> float:
        return clean_share(model, config, context, items, edited(context, ablated(heads)))

    def compute() -> dict[str, np.ndarray]:
        weighed = config.max_clean_drop < 1  # at 1 any loss will do, and none is measured
        least = clean(()) - config.max_clean_drop - 1e-9 if weighed else 0.0
        chosen, values, line, further = (), [value(())], list(first), list(spare)
        steps, counter = min(len(first), max(config.prune_k)), f"{role}_heads_too_costly"
        while len(chosen) < steps and line:
            context.progress(len(chosen), steps, "heads chosen")
            tried = {head: value((*chosen, head)) for head in line}
            best = max(tried, key=lambda head: tried[head])  # the stronger one of equals
            while weighed and clean((*chosen, best)) < least:
                line.remove(best)
                del tried[best]
                context.counters[counter] = context.counters.get(counter, 0) + 1
                if further:
                    line.append(further.pop(0))
                    tried[line[-1]] = value((*chosen, line[-1]))
                if not tried:
                    break
                best = max(tried, key=lambda head: tried[head])
            if tried:
                line.remove(best)
                chosen, values = (*chosen, best), [*values, tried[best]]
        kept = chosen[: max(range(len(values)), key=lambda n: values[n])]
        return {"heads": np.array(kept, dtype=np.int64).reshape(-1, 2)}

    name = f"greedy {role} " + " ".join(f"{layer}.{head}" for layer, head in (*first, *spare))
    return tuple((int(layer), int(head)) for layer, head in context.part(name, compute)["heads"])


def objective(logp: np.ndarray, role: str, metric: str) -> tuple[float, float]:
    """How well the answer does that pruning `role` is meant to bring, from log p [items, (memory, context)]: by its
    mean log-probability, by how far it is ahead (also for metric=logit, as raw scores may all move), or by how often;
    between equals by its log-probability."""
    wanted, other = logp[:, SIDES.index(ROLES[role])], logp[:, SIDES.index(role)]
    likely = float(wanted.mean())
    if metric == "logprob":
        return likely, 0.0
    return float((wanted > other).mean() if metric == "rate" else (wanted - other).mean()), likely


def _gates(model: Model, config: Config, context: Context, items: Sequence[Item], role: str) -> Gates:
    """The gates under which the answer that pruning `role` is meant to bring is likeliest."""
    wanted = [item.tokens[SIDES.index(ROLES[role])] for item in items]

    def compute() -> dict[str, np.ndarray]:
        context.count(prompts=3 * config.gate_steps * len(items), forwards=3 * config.gate_steps)
        found = fit_gates(
            model,
            [item.conflict for item in items],
            wanted,
            steps=config.gate_steps,
            weight=config.gate_weight,
            seed=context.torch_seed(f"gates {role}"),
            run=edited(context),
        )
        return {name: getattr(found, name).numpy() for name in ("free", "kept", "removed")}

    return Gates(**{name: torch.from_numpy(gate) for name, gate in context.part(f"gates {role}", compute).items()})


def _closed(gates: Gates) -> Heads:
    """Heads that interfere with the wanted answer: their gate is closed by more than half although the penalty holds it
    open; the most closed first."""
    return _ranked(1 - gates.kept.numpy(), gates.kept.numpy() < 0.5)
