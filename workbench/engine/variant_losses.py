"""Losses of tokens after final states some of whose directions are removed or kept, over the whole vocabulary.

With h the states, V orthonormal directions and W the unembedding, the scores of VᵀVh are (hVᵀ)(VWᵀ): a product of the
rank of V, not of the width. Those of h − VᵀVh are the scores of h less these. So one product of full width serves every
variant, and what is removed shares the other with what is kept. Scores are made for a block of rows × words at a time,
small enough for a cache, and leave their largest and their sum of exponentials."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from workbench.models.devices import is_cpu, memory
from workbench.models.unembedding import Unembedding

# ("keep…" or "remove…", orthonormal rows [k, width]); None: the states as they are
Variant = tuple[str, torch.Tensor | None]
RANKS = 1024  # directions whose products with a block of words are held at once
WORDS, WORDS_ON_GPU = 2048, 8192  # of a block of scores
NUMBERS, NUMBERS_ON_GPU = 1 << 18, 1 << 27  # of a block of scores: for each thread of a CPU, whose caches are small
BLOCKS = 4  # of scores that are held at once


BITS = float(np.float32(math.log2(math.e)))  # in a nat, as float32 has it

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
    group: list[torch.Tensor] = []
    for rows in {id(rows): rows for _, rows in variants if rows is not None}.values():
        if group and sum(map(len, group)) + len(rows) > RANKS:
            yield _group(states, group)
            group = []
        group.append(rows)
    yield _group(states, group)


def _group(states: torch.Tensor, sets: Sequence[torch.Tensor]) -> list[_Directions]:
    """Sets of directions, brought to the states: in one copy, unless they come from several devices."""
    if not sets:
        return []
    alike = len({rows.device for rows in sets}) == 1
    given = sets if alike else [rows.to(states.device) for rows in sets]
    here = torch.cat([rows.to(states.dtype) for rows in given]).to(states.device)
    sizes = [len(rows) for rows in sets]
    parts = zip(sets, here.split(sizes), (states @ here.T).split(sizes, dim=1))
    return [_Directions(id(rows), mine, along) for rows, mine, along in parts]


def _losses(
    matrix: Unembedding,
    states: torch.Tensor,
    target: np.ndarray,
    group: Sequence[_Directions],
    wanted: Sequence[Key],
    check: Callable[[], None],
) -> torch.Tensor:
    """Losses [wanted, T] of some variants. Exponentials are of base 2, three times as fast as those of e on a CPU; what
    they are taken from is scaled as it is shifted."""
    # not −inf, which a score may be: a difference of two would be no number; and what is scaled must not become it
    lowest = torch.finfo(states.dtype).min / 2
    highest = states.new_full((len(wanted), len(states)), lowest)  # in bits, as the sums' exponents are
    total, own = torch.zeros_like(highest), torch.zeros_like(highest)
    top, weights = torch.empty_like(highest), torch.empty_like(highest)  # of one block of words
    word_blocks = list(_slices(len(matrix.weight), _words(states)))
    row_blocks = list(_slices(len(states), max(1, _numbers(states) // (word_blocks[0].stop - word_blocks[0].start))))
    at = _places(target, word_blocks, row_blocks, states.device)
    directions = torch.cat([one.rows for one in group]) if group else states[:0]
    for words in word_blocks:
        check()
        weight, bias = matrix.block(words)
        products = (directions @ weight.T).split([len(one.rows) for one in group]) if group else ()
        for rows in row_blocks:
            row, word = next(at)
            for key, scores in _scores(matrix, states, rows, weight, bias, group, products):
                if key not in wanted:
                    continue
                n = wanted.index(key)
                if len(row):
                    own[n, row] = scores[row - rows.start, word]
                here = torch.amax(scores, 1, out=top[n, rows]).clamp_(min=lowest).mul_(BITS)
                torch.add(here.neg()[:, None], scores, alpha=BITS, out=scores)
                torch.sum(scores.exp2_(), 1, out=weights[n, rows])
        above = torch.maximum(highest, top)
        total = total * (highest - above).exp2() + weights * (top - above).exp2()
        highest = above
    return ((highest.double() + total.double().log2()) / BITS - own.double()).cpu()


def _places(
    target: np.ndarray, word_blocks: Sequence[slice], row_blocks: Sequence[slice], device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """For every block of words and of rows in turn: the rows whose targets are in it, and which of its words they are.
    They go to the device at once, so that nothing waits for them later."""
    first = np.array([words.start for words in word_blocks])
    block = np.searchsorted(first, target, side="right") - 1
    number = block * len(row_blocks) + np.arange(len(target)) // (row_blocks[0].stop - row_blocks[0].start)
    order = np.argsort(number, kind="stable")
    sent = torch.from_numpy(np.stack([order, (target - first[block])[order]])).to(device)
    ends = np.searchsorted(number[order], np.arange(len(word_blocks) * len(row_blocks) + 1))
    return ((sent[0, start:end], sent[1, start:end]) for start, end in zip(ends, ends[1:]))


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
    """Numbers of a block of scores that suit the device: what its caches or, of an accelerator, a part of its free
    memory holds."""
    if is_cpu(x.device):
        return NUMBERS * torch.get_num_threads()
    free, _ = memory(x.device)
    return min(NUMBERS_ON_GPU, free // (8 * BLOCKS * x.element_size()))


def _words(x: torch.Tensor) -> int:
    """Words of a block of scores."""
    return WORDS if is_cpu(x.device) else WORDS_ON_GPU
