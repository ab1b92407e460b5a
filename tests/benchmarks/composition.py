"""Composition scores of all pairs of heads against the loop over them with d × d products.

The loop is what the definition says: W_OV and W_QK of every head as matrices, one product and one norm a pair. Ours is
every component of every earlier head into every reader of every later head, from the decompositions on, which gives the
scores of whole heads too. The shape is GPT-2 small's: 12 layers of 12 heads of 64, width 768. The loop runs over some
of the pairs: its rate does not depend on how many."""

from __future__ import annotations

import numpy as np
import torch

from tests.benchmarks.timing import interleaved, row
from workbench.engine.composition import KINDS, component_scores, components, pair_scores, readers
from workbench.models.head_weights import HeadWeights

NAME = "composition: all pairs of heads"
SCALES = {"small": (12, 12, 64, 768, 40), "smoke": (3, 2, 8, 64, 12)}  # layers, heads, d_head, width, pairs in the loop


def measure(device: str = "cpu", scale: str = "small", rounds: int = 3) -> list[dict]:
    """Pairs per second. Gate: the pairs of the loop within 1e-5 of it."""
    layers, heads, size, width, some = SCALES.get(scale, SCALES["small"])
    weights = [random_heads(layer, heads, size, width) for layer in range(layers)]
    pairs = [
        (early, a, late, b, kind)
        for late in range(1, layers)
        for early in range(late)
        for a in range(heads)
        for b in range(heads)
        for kind in KINDS
    ]
    chosen = [pairs[i] for i in np.random.default_rng(0).choice(len(pairs), some, replace=False)]
    matrices = {}
    for early, a, late, b, _ in chosen:  # made before the clock starts
        matrices["v", early, a] = weights[early].value[a] @ weights[early].output[a]
        matrices["v", late, b] = weights[late].value[b] @ weights[late].output[b]
        matrices["q", late, b] = weights[late].query[b] @ weights[late].key[b].T

    def loop() -> list[float]:
        found = []
        for early, a, late, b, kind in chosen:
            first = matrices["v", early, a]
            second = matrices["v" if kind == "v" else "q", late, b]
            second = second.T if kind == "k" else second
            found.append(float((first @ second).norm() / (first.norm() * second.norm())))
        return found

    def ours() -> dict:
        return all_pairs(weights, device)

    found = ours()
    apart = max(abs(found[late, kind][early, a, b] - s) for (early, a, late, b, kind), s in zip(chosen, loop()))
    assert apart <= 1e-5, f"composition scores differ by {apart:.2e}"
    seconds = interleaved({"reference": loop, "ours": ours}, rounds=rounds, device=device)
    seconds["reference"] = [taken * len(pairs) / some for taken in seconds["reference"]]
    agreement = f"within {apart:.0e} on {some} pairs"
    shape = {"layers": layers, "heads": heads, "d_head": size, "width": width, "pairs": len(pairs)}
    against = "a d × d product a pair, matrices at hand"
    return [row(NAME, "pairs/s", seconds, len(pairs), agreement, reference=against, **shape)]


def random_heads(seed: int, heads: int, size: int, width: int) -> HeadWeights:
    g = torch.Generator().manual_seed(seed)
    sides = [torch.randn(heads, width, size, generator=g) / width**0.5 for _ in range(3)]
    return HeadWeights(*sides, torch.randn(heads, size, width, generator=g) / size**0.5, torch.zeros(heads, size))


def all_pairs(weights: list[HeadWeights], device: str) -> dict:
    """(later layer, kind) → scores of whole heads [earlier layers, H, readers]."""
    every = [components(own) for own in weights]
    writes = [own.writes.flatten(0, 1).to(device, torch.float32) for own in every]
    found = {}
    for late in range(1, len(weights)):
        for kind in KINDS:
            reading = readers(weights[late], kind).to(device, torch.float32)
            scores = torch.cat([component_scores(own, reading) for own in writes[:late]]).cpu()
            values = torch.stack([own.values for own in every[:late]])
            scores = scores.unflatten(0, (late * values.shape[1], values.shape[2]))
            found[late, kind] = pair_scores(values.flatten(0, 1), scores).unflatten(0, values.shape[:2])
    return found
