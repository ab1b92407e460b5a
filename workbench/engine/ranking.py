"""The tokens of a step in order, the likeliest first and equal ones by id: all of them, a given number of them, or as
many as a nucleus may hold."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch

from workbench.models.devices import is_cpu

TOP = 50  # what vLLM was asked to return in the official code of the branching factor
# Scores this far below the largest have probability 0 in float64 too; clamping there keeps 0 × −inf out of the
# entropies.
FLOOR = -1e4
SORTED = 1024  # as many tokens of a row are simply sorted
BINS, BIN = (
    256,
    8,
)  # of the histogram that says how far a nucleus reaches: their number, and how many there are in a nat
SLACK = 1e-4  # float32 sums of the mass are far closer than this

Ranked = tuple[torch.Tensor, torch.Tensor]  # float32 values [r, K], falling, and the ids [r, K] that they are of


def order_keys(values: torch.Tensor, ids: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Numbers int64 that are lower the likelier a token is, and of equal ones the lower its id: of values ≤ 0 (float32,
    from FLOOR up) and ids, of shapes that go together. The bits of a float32 that is not negative rise with it."""
    return torch.add(ids, values.abs().view(torch.int32), alpha=1 << vocabulary.bit_length())


def likeliest_tokens(values: torch.Tensor, count: int) -> Ranked:
    """The `count` likeliest tokens of values [r, V]. Waits for nothing."""
    V = values.shape[1]
    keys = order_keys(values, torch.arange(V, device=values.device), V)
    ids = keys.topk(min(count, V), dim=-1, largest=False).values.bitwise_and_((1 << V.bit_length()) - 1)
    return values.gather(1, ids), ids


def all_tokens(values: torch.Tensor) -> Ranked:
    """All tokens of values [r, V]. Waits for nothing."""
    if not is_cpu(values.device):
        ranked, ids = values.sort(dim=-1, descending=True, stable=True)
        return ranked, ids
    ids = _order(values)
    return values.gather(1, ids), ids


def nucleus_tokens(
    values: torch.Tensor, weight: torch.Tensor, *, top_p: float, min_p: float
) -> Iterator[tuple[torch.Tensor | None, Ranked]]:
    """The tokens of values [R, V] and weights exp(values) [R, V] among which a nucleus by top_p and min_p surely ends,
    and the 50 likeliest: groups of rows with their tokens, ending in values of FLOOR where others of the group have
    more. None: all rows.

    Sorting every score is what makes nucleus sampling slow on a CPU. A histogram of the mass over log-probability, in
    steps of an eighth of a nat, tells down to which step the nucleus reaches; whole steps are taken, so that ties stay
    together. An accelerator sorts faster than it could be asked how much there is to sort."""
    R, V = values.shape
    if not is_cpu(values.device) or V <= SORTED:
        yield None, all_tokens(values)
        return
    reach, size = _reach(values, weight, top_p, min_p)
    few, flat = size <= SORTED, size > max(SORTED, V // 3)
    for mine in (few, ~few & ~flat, flat):  # a flat row must not widen the table of all others
        rows = None if bool(mine.all()) else mine.nonzero()[:, 0]
        if rows is not None and not len(rows):
            continue
        here = (values, reach, size) if rows is None else (values[rows], reach[rows], size[rows])
        yield rows, all_tokens(here[0]) if mine is flat else _within(*here)
        if rows is None:
            return


def _reach(values: torch.Tensor, weight: torch.Tensor, top_p: float, min_p: float) -> Ranked:
    """Which tokens [R, V] are worth sorting, and how many they are [R]: a set that surely holds the 50 likeliest and
    the nucleus, hardly more."""
    R = len(values)
    bins = (values * -BIN).to(torch.int64).clamp_(0, BINS - 1)  # NaN is some whole number, and must be a bin
    count = torch.zeros(R, BINS).scatter_add_(1, bins, weight.new_ones(1, 1).expand_as(weight)).cumsum(-1)
    lacking = torch.ones(R, BINS, dtype=torch.bool)
    if top_p < 1:
        mass = torch.zeros(R, BINS).scatter_add_(1, bins, weight).double().cumsum(-1)
        lacking &= mass < (top_p + SLACK) * mass[:, -1:]
    if min_p:
        lacking &= torch.arange(BINS) <= int(-BIN * math.log(min_p)) + 1
    last = (lacking | (count < TOP)).sum(-1, keepdim=True).clamp_(max=BINS - 1)
    return bins <= last, count.gather(1, last)[:, 0].long()


def _within(values: torch.Tensor, reach: torch.Tensor, size: torch.Tensor) -> Ranked:
    """The `size` [r] tokens of `reach` [r, V]."""
    row, token = reach.nonzero(as_tuple=True)  # by row, then by id
    place = torch.arange(len(row)) - (size.cumsum(0) - size)[row]
    table = values.new_full((len(values), int(size.max())), FLOOR)
    ids = torch.zeros(table.shape, dtype=torch.long)
    table[row, place], ids[row, place] = values[row, token], token
    order = _order(table)
    return table.gather(1, order), ids.gather(1, order)


def _order(values: torch.Tensor) -> torch.Tensor:
    """Places [r, K] of values [r, K] ≤ 0 on the CPU in falling order, equal ones as they stand. The bits of a float32
    that is not negative rise with it, and 16 of them at a time NumPy sorts by counting: several times faster than
    comparing scores."""
    bits = values.numpy().view(np.uint32)
    first = np.argsort(bits.astype(np.uint16), axis=-1, kind="stable")
    high = np.take_along_axis((bits << 1 >> 17).astype(np.uint16), first, axis=-1)  # without the sign
    return torch.from_numpy(np.take_along_axis(first, np.argsort(high, axis=-1, kind="stable"), axis=-1))
