"""Random heads to hold masked ones against: as many, of the same layers, none that retrieves."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from math import comb, prod

import numpy as np

from workbench.core.context import Context

Head = tuple[int, int]


@dataclass(frozen=True)
class RandomSets:
    """Different sets of heads; `all_of_them`: there are no others, so that nothing of them is left to chance."""

    sets: tuple[tuple[Head, ...], ...]
    all_of_them: bool


def random_sets(
    shape: tuple[int, int],
    top: Sequence[Head],
    never: Collection[Head],
    *,
    draws: int,
    rng: np.random.Generator,
    context: Context,
) -> RandomSets:
    """`draws` different sets of as many heads as `top`, in its layers, without `top` and without `never` (the heads
    that retrieve); all sets where there are no more than `draws`. A layer that has too few other heads lends them from
    the nearest layers. `shape`: layers and heads of the model."""
    layers, heads = shape
    free = {l: [(l, h) for h in range(heads) if (l, h) not in top and (l, h) not in never] for l in range(layers)}
    take = _how_many(free, top, context)
    chosen = [(free[l], n) for l, n in sorted(take.items()) if n]
    possible = prod(comb(len(heads), n) for heads, n in chosen)
    if possible <= draws:
        found = [sum(parts, ()) for parts in product(*(combinations(heads, n) for heads, n in chosen))]
        return RandomSets(tuple(found) if chosen else (), True)
    sets: dict[tuple[Head, ...], None] = {}
    while len(sets) < draws:
        picked = [heads[i] for heads, n in chosen for i in sorted(rng.permutation(len(heads))[:n].tolist())]
        sets[tuple(picked)] = None
    return RandomSets(tuple(sets), False)


def _how_many(free: dict[int, list[Head]], top: Sequence[Head], context: Context) -> dict[int, int]:
    """Layer → how many heads are taken there."""
    wanted = {layer: sum(1 for l, _ in top if l == layer) for layer, _ in sorted(top)}
    take = {layer: min(n, len(free[layer])) for layer, n in wanted.items()}
    short = {layer: n - take[layer] for layer, n in wanted.items() if n > take[layer]}
    missing = 0
    for layer, n in short.items():
        for near in sorted(free, key=lambda other: (abs(other - layer), other)):
            lent = min(n, len(free[near]) - take.get(near, 0))
            if lent > 0:
                take[near], n = take.get(near, 0) + lent, n - lent
        missing += n
    if short:
        named = ", ".join(map(str, short))
        one = len(short) == 1
        context.warn(
            f"Layer{'' if one else 's'} {named} {'has' if one else 'have'} too few heads that do not retrieve for a "
            f"random control of k={len(top)}; it takes the rest from the nearest layers"
            + (f", and is {missing} heads short." if missing else ".")
        )
    return take
