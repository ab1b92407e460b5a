"""Losses of tokens after final states some of whose directions are removed or kept, over the whole vocabulary.

With h the states, V orthonormal directions and W the unembedding, the scores of VᵀVh are (hVᵀ)(VWᵀ): a product of the
rank of V, not of the width. Those of h − VᵀVh are the scores of h less these. So one product of full width serves every
variant, and what is removed shares the other with what is kept. Scores are made for a block of rows × words at a time,
small enough for a cache, and leave their largest and their sum of exponentials."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from workbench.models.devices import is_cpu
from workbench.models.unembedding import Unembedding

# ("keep…" or "remove…", orthonormal rows [k, width]); None: the states as they are
Variant = tuple[str, torch.Tensor | None]
RANKS = 1024  # directions whose products with a block of words are held at once
WORDS, WORDS_ON_GPU = 2048, 8192  # of a block of scores
NUMBERS, NUMBERS_ON_GPU = 1 << 18, 1 << 25  # of a block of scores: for each thread of a CPU, whose caches are small


Key = tuple[int, bool]  # the identity of a variant's directions (0: none), and whether they are kept
PLAIN: Key = (0, True)


def keeps(how: str) -> bool:
    """Whether a variant keeps its directions rather than the rest."""
    return how.startswith("keep")


def variant_losses(
    matrix: Unembedding,
    states: torch.Tensor,
    target: Sequence[int],
    variants: Sequence[Variant],
    *,
    check: Callable[[], None] = lambda: None,
) -> torch.Tensor:
    """-ln p [variants, T] float64 on the CPU of tokens `target` [T] after final states [T, width]; `check()` may raise
    between two blocks of words."""
    states = states.to(matrix.weight.device, matrix.dtype)
    keys = [PLAIN if rows is None else (id(rows), keeps(how)) for how, rows in variants]
    found: dict[Key, torch.Tensor] = {}
    for group in _groups(states, variants):
        inside = {PLAIN, *((one.name, keep) for one in group for keep in (False, True))}
        wanted = [key for key in dict.fromkeys(keys) if key in inside and key not in found]
        found |= zip(wanted, _losses(matrix, states, np.asarray(target), group, wanted, check))
    return torch.stack([found[key] for key in keys])


@dataclass(frozen=True)
class _Directions:
    """Directions [k, width], and the states along them [T, k]."""

    name: int
    rows: torch.Tensor
    along: torch.Tensor


def _groups(states: torch.Tensor, variants: Sequence[Variant]) -> Iterator[list[_Directions]]:
    """The different sets of directions, in groups of at most RANKS directions or of one set; at least one group."""
    group: list[_Directions] = []
    for rows in {id(rows): rows for _, rows in variants if rows is not None}.values():
        if group and sum(len(one.rows) for one in group) + len(rows) > RANKS:
            yield group
            group = []
        here = rows.to(states.device, states.dtype)
        group.append(_Directions(id(rows), here, states @ here.T))
    yield group


def _losses(
    matrix: Unembedding,
    states: torch.Tensor,
    target: np.ndarray,
    group: Sequence[_Directions],
    wanted: Sequence[Key],
    check: Callable[[], None],
) -> torch.Tensor:
    """Losses [wanted, T] of some variants."""
    lowest = torch.finfo(states.dtype).min  # not −inf, which a score may be: a difference of two would be no number
    highest = states.new_full((len(wanted), len(states)), lowest)
    total, own = torch.zeros_like(highest), torch.zeros_like(highest)
    top, weights = torch.empty_like(highest), torch.empty_like(highest)  # of one block of words
    for words in _slices(len(matrix.weight), _words(states)):
        check()
        weight, bias = matrix.block(words)
        products = [one.rows @ weight.T for one in group]
        for rows in _slices(len(states), max(1, _numbers(states) // len(weight))):
            inside = np.flatnonzero((words.start <= target[rows]) & (target[rows] < words.stop))
            at = tuple(torch.from_numpy(x).to(states.device) for x in (inside, target[rows][inside] - words.start))
            place = at[0] + rows.start
            for key, scores in _scores(matrix, states, rows, weight, bias, group, products):
                if key not in wanted:
                    continue
                n = wanted.index(key)
                if len(inside):
                    own[n, place] = scores[at]
                torch.amax(scores, 1, out=top[n, rows])
                here = top[n, rows].clamp_(min=lowest)
                torch.sum(scores.sub_(here[:, None]).exp_(), 1, out=weights[n, rows])
        above = torch.maximum(highest, top)
        total = total * (highest - above).exp() + weights * (top - above).exp()
        highest = above
    return (highest.double() - own.double() + total.double().log()).cpu()


def _scores(
    matrix: Unembedding,
    states: torch.Tensor,
    rows: slice,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    group: Sequence[_Directions],
    products: Sequence[torch.Tensor],
) -> Iterator[tuple[Key, torch.Tensor]]:
    """Scores [rows, words] of every variant of a group, and of the states as they are. The next overwrites the last."""
    whole = states[rows] @ weight.T
    if bias is not None:
        whole += bias
    rest = torch.empty_like(whole) if group else whole
    for one, product in zip(group, products):
        along = one.along[rows] @ product
        yield (one.name, False), matrix.finish(torch.sub(whole, along, out=rest))
        yield (one.name, True), matrix.finish(along if bias is None else along.add_(bias))
    yield PLAIN, matrix.finish(whole)


def _slices(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def _numbers(x: torch.Tensor) -> int:
    """Numbers of a block of scores that suit the device."""
    return NUMBERS * torch.get_num_threads() if is_cpu(x.device) else NUMBERS_ON_GPU


def _words(x: torch.Tensor) -> int:
    """Words of a block of scores."""
    return WORDS if is_cpu(x.device) else WORDS_ON_GPU
