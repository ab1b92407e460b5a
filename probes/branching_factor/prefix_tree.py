"""Sampled continuations of one prompt as a tree of shared prefixes: what the app draws, and how common openings are
found.

The tree comes as a table, one row per node, parents before children; node 0 is the prompt. Runs of tokens that no
sample leaves are one node, so M samples never make more than 2 M nodes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import polars as pl

SCHEMA = {
    "node": pl.Int32,
    "parent": pl.Int32,
    "depth": pl.Int32,
    "tokens": pl.List(pl.Int32),
    "text": pl.String,
    "count": pl.Int32,
    "probability": pl.Float64,
    "entropy": pl.Float64,
    "bf": pl.Float64,
    "hidden": pl.Int32,
}


def build(
    rows: Sequence[Sequence[int]],
    entropies: Sequence[Sequence[float]],
    *,
    text: Callable[[Sequence[int]], str],
    max_nodes: int = 120,
    max_tokens: int = 40,
) -> pl.DataFrame:
    """The prefix tree of M samples. `rows`: their ids; `entropies`: of each step, in nats, as long as the ids.

    Columns: node, parent (−1 for the prompt), depth (tokens before the node's own), tokens and text (at most
    `max_tokens` shown), count (samples through it), probability (count / M), entropy (mean over the choices that follow
    the node's tokens), bf = exp of it, hidden (samples whose way on from here was pruned). The likeliest `max_nodes`
    nodes are kept, parents always."""
    out: list[dict] = []

    def add(parent: int, depth: int, length: int, members: list[int]) -> None:
        sample = rows[members[0]]
        start, stop = depth, depth + length
        # the choices that follow the node's tokens; the prompt's own choice is the first step of every sample
        steps = range(start + 1, stop + 1) if parent >= 0 else range(1)
        following = [entropies[m][t] for t in steps for m in members if t < len(entropies[m])]
        entropy = float(np.mean(following)) if following else float("nan")
        own = list(sample[start:stop])
        shown = text(own[:max_tokens]) + (" …" if len(own) > max_tokens else "") if own else ""
        number = len(out)
        out.append(
            {
                "node": number,
                "parent": parent,
                "depth": depth,
                "tokens": own,
                "text": shown,
                "count": len(members),
                "probability": len(members) / len(rows),
                "entropy": entropy,
                "bf": float(np.exp(entropy)),
                "hidden": 0,
            }
        )
        waiting.extend((number, stop, group) for group in _split(rows, members, stop))

    waiting: list[tuple[int, int, list[int]]] = []
    if rows:
        add(-1, 0, 0, list(range(len(rows))))
    while waiting:
        # the branch with most samples next, so that what is pruned is what is rare
        parent, depth, members = waiting.pop(max(range(len(waiting)), key=lambda i: (len(waiting[i][2]), -i)))
        if len(out) >= max_nodes:
            out[parent]["hidden"] += len(members)
            continue
        add(parent, depth, _shared(rows, members, depth), members)
    return pl.DataFrame(out, schema=SCHEMA)


def _split(rows: Sequence[Sequence[int]], members: list[int], depth: int) -> list[list[int]]:
    """The samples that go on at `depth`, grouped by the token they go on with, largest group first."""
    groups: dict[int, list[int]] = {}
    for m in members:
        if len(rows[m]) > depth:
            groups.setdefault(rows[m][depth], []).append(m)
    return sorted(groups.values(), key=lambda group: (-len(group), group[0]))


def _shared(rows: Sequence[Sequence[int]], members: list[int], depth: int) -> int:
    """How many tokens from `depth` on all members have in common."""
    shortest = min(len(rows[m]) for m in members)
    first = rows[members[0]]
    length = 0
    while depth + length < shortest and all(rows[m][depth + length] == first[depth + length] for m in members):
        length += 1
    return length


def common_openings(rows: Sequence[Sequence[int]], *, least: int, longest: int) -> list[tuple[tuple[int, ...], int]]:
    """Openings of at most `longest` tokens that at least `least` samples share: longest first, then most frequent."""
    counts = Counter(tuple(row[:n]) for row in rows for n in range(1, min(longest, len(row)) + 1))
    found = [(opening, count) for opening, count in counts.items() if count >= least]
    return sorted(found, key=lambda item: (-len(item[0]), -item[1], item[0]))
