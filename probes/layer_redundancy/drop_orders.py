"""Which modules are dropped: by similarity, at random, the first or the last ones; measured anew after each drop, or as
one stretch of blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from probes.layer_redundancy.config import Config
from probes.layer_redundancy.halves import HalfTexts
from probes.layer_redundancy.similarities import deciding
from probes.layer_redundancy.stream_pairs import StreamPair, measure, pair_of, pass_of, stretch_of
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.engine.dropping import DropModules, Module
from workbench.models.model import Model

NONE = "none"  # the whole model: component and order of its row


@dataclass(frozen=True)
class DropPlan:
    """Modules that are dropped together; `draw` counts random sets."""

    component: str
    n: int
    order: str
    draw: int
    modules: tuple[Module, ...]


def modules_of(model: Model, component: str) -> list[Module]:
    """What there is to drop, in the order of a pass."""
    kinds = ("attention", "mlp") if component == "joint" else (component,)
    return [(kind, layer) for layer in range(model.n_layers) for kind in kinds]


def parts_of(config: Config) -> list[str]:
    """The kinds of module whose similarity is measured."""
    return [*config.parts, *(["block"] if "block" in config.components else [])]


def sizes(config: Config, count: int) -> list[int]:
    """How many of `count` modules are dropped: those asked for, fewer than there are."""
    asked = config.drop_n or tuple(max(1, round(count / part)) for part in (8, 4, 2))
    return sorted({n for n in asked if n < count})


def check_sizes(config: Config, layers: int, tell) -> None:
    """Say which of the numbers asked for leave nothing of a kind; InputError where none is left to drop."""
    kept = False
    for component in config.components:
        count = layers * (2 if component == "joint" else 1)
        left = sizes(config, count)
        kept |= bool(left)
        if not left and not config.drop_n:
            tell(f"Nothing is dropped of {component}: the model has one, and one stays.")
        if over := [n for n in config.drop_n if n >= count]:
            tell(f"drop_n={','.join(map(str, over))} is left out of {component}: the model has {count} to drop from.")
    if not kept and not config.drop_n:
        raise InputError(
            f"The model has one layer, so nothing is left where {' or '.join(config.components)} is dropped; add joint "
            f"to components, which drops one of its two sub-layers."
        )
    if not kept:
        raise InputError(
            f"drop_n={','.join(map(str, config.drop_n))} leaves nothing to drop of a model of {layers} layers; ask for "
            f"fewer than there are."
        )


def ranked(scores: dict[Module, float], modules: Sequence[Module]) -> list[Module]:
    """The modules from the one that changes the stream least on; of equal ones the first in a pass."""
    return sorted(modules, key=lambda module: scores[module])


def plans(
    model: Model, scores: dict[Module, float], texts: HalfTexts, config: Config, context: Context
) -> list[DropPlan]:
    """Every set of modules of this run, the empty one first. `scores`: 1 − similarity."""
    out = [DropPlan(NONE, 0, NONE, 0, ())]
    for component in config.components:
        modules = modules_of(model, component)
        wanted = sizes(config, len(modules))
        if not wanted:
            continue
        fixed = {"similarity": ranked(scores, modules), "first": modules, "last": modules[::-1]}
        if "iterative" in config.also:
            fixed["iterative"] = one_by_one(model, modules, wanted[-1], texts, config, context)
        out += [DropPlan(component, n, order, 0, tuple(those[:n])) for order, those in fixed.items() for n in wanted]
        if component == "block" and "consecutive" in config.also:
            out += _stretches(model, wanted, texts, config, context)
        for n in wanted:
            rng = context.rng(f"random {component} {n}")
            for draw in range(config.random_draws):
                chosen = sorted(rng.choice(len(modules), n, replace=False).tolist())
                out.append(DropPlan(component, n, "random", draw, tuple(modules[i] for i in chosen)))
    return out


def one_by_one(
    model: Model, modules: Sequence[Module], most: int, texts: HalfTexts, config: Config, context: Context
) -> list[Module]:
    """Drop what changes the stream least, measure what is left in the model without it, and again."""
    dropped: list[Module] = []
    for number in range(most):
        left = [module for module in modules if module not in dropped]
        pairs = [pair_of(model, *module) for module in left]

        def compute(
            pairs: list[StreamPair] = pairs, dropped: tuple[Module, ...] = tuple(dropped)
        ) -> dict[str, np.ndarray]:
            edits = [DropModules(dropped)] if dropped else []
            run = pass_of(model, config.max_tokens, context, *edits)
            return {"sums": measure(model, texts, pairs, run=run, context=context, label="similarities anew")}

        name = f"iterative {','.join(sorted({kind for kind, _ in modules}))} {number}"
        sums = context.part(name, compute)["sums"]
        scores = dict(zip(left, deciding(sums, config).tolist()))
        dropped.append(ranked(scores, left)[0])
    return dropped


def _stretches(
    model: Model, wanted: Sequence[int], texts: HalfTexts, config: Config, context: Context
) -> list[DropPlan]:
    """Of every size the stretch of blocks whose ends are most alike."""
    out = []
    for n in wanted:
        pairs = [stretch_of(layer, n) for layer in range(model.n_layers - n + 1)]

        def compute(pairs: list[StreamPair] = pairs) -> dict[str, np.ndarray]:
            run = pass_of(model, config.max_tokens, context)
            return {"sums": measure(model, texts, pairs, run=run, context=context, label="stretches of blocks")}

        scores = deciding(context.part(f"consecutive {n}", compute)["sums"], config)
        start = int(np.argmin(scores))
        out.append(DropPlan("block", n, "consecutive", 0, tuple(("block", layer) for layer in range(start, start + n))))
    return out
