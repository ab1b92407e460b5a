"""Random controls of a pruning: other heads of the same layers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from workbench.core.errors import InputError

Head = tuple[int, int]


def random_heads(heads: Sequence[Head], n_heads: int, rng: np.random.Generator, *, n_layers: int) -> tuple[Head, ...]:
    """As many random heads in every layer as `heads` has there, none of them in `heads` where the layer has others
    left.

    A layer that has too few others gives what is missing to layers that still have some. Raises InputError when there
    are not enough other heads in the whole model."""
    chosen: set[Head] = set()
    missing = 0
    for layer in sorted({layer for layer, _ in heads}):
        taken = [h for at, h in heads if at == layer]
        others = [h for h in range(n_heads) if h not in taken]
        count = min(len(taken), len(others))
        missing += len(taken) - count
        chosen |= {(layer, int(h)) for h in rng.choice(others, count, replace=False)} if count else set()
    if missing:
        rest = [
            (layer, h)
            for layer in range(n_layers)
            for h in range(n_heads)
            if (layer, h) not in chosen and (layer, h) not in set(heads)
        ]
        if len(rest) < missing:
            raise InputError(
                f"There are not enough other heads for a random control of {len(heads)} heads; prune fewer."
            )
        chosen |= {rest[i] for i in rng.choice(len(rest), missing, replace=False)}
    return tuple(sorted(chosen))


def random_draws(
    heads: Sequence[Head], n_heads: int, rng: np.random.Generator, *, n_layers: int, draws: int
) -> list[tuple[Head, ...]]:
    """Up to `draws` different sets of `random_heads`; fewer only where the layers do not allow that many."""
    found: dict[tuple[Head, ...], None] = {}
    for _ in range(100 * draws):  # of fewer sets than that, each is met with near certainty
        found[random_heads(heads, n_heads, rng, n_layers=n_layers)] = None
        if len(found) == draws:
            break
    return list(found)
