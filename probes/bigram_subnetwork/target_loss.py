"""Cross-entropy of next-token scores with the bigram distribution of each token, from the sparse rows of the counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from probes.bigram_subnetwork.bigrams import Bigrams
from workbench.models.host_copies import Resident, arriving


@dataclass(frozen=True, eq=False)
class TargetRows:
    """Bigram distributions of n tokens: entry `at` = n-th token × V + next token, of `row`, with probability `p`;
    `unseen`: which of them have no row and take the unigrams."""

    at: torch.Tensor
    row: torch.Tensor
    p: torch.Tensor
    unseen: torch.Tensor


def target_of(bigrams: Bigrams, tokens: Sequence[int], device: torch.device) -> TargetRows:
    """The distributions after these tokens, on a device."""
    row, token, p, seen = bigrams.rows(np.asarray(tokens, np.int64))
    at = row * bigrams.vocabulary + token
    numbers = (at, row, p.astype(np.float32), np.flatnonzero(~seen))
    return TargetRows(*(arriving(torch.from_numpy(x), device) for x in numbers))


def cross_entropies(scores: torch.Tensor, target: TargetRows, unigram: Resident) -> torch.Tensor:
    """−Σ P(w) ln softmax(scores)(w) of each token, [n] in the dtype of the scores, for scores [n, V] float32 (padding
    columns of the vocabulary taken off). Gradients reach the scores."""
    single = unigram.on(scores.device, scores.dtype)
    return _CrossEntropies.apply(scores, target, single)  # pyright: ignore[reportReturnType]


class _CrossEntropies(torch.autograd.Function):
    """The gradient, softmax(scores) − P, is one piece of the size of the scores: autograd's own would hold four."""

    @staticmethod
    def forward(ctx, scores: torch.Tensor, target: TargetRows, single: torch.Tensor) -> torch.Tensor:
        total = scores.logsumexp(-1)
        picked = scores.reshape(-1).index_select(0, target.at) * target.p
        expected = torch.zeros_like(total).index_add(0, target.row, picked.to(total.dtype))
        if len(target.unseen):
            expected = expected.index_add(0, target.unseen, scores.index_select(0, target.unseen) @ single)
        ctx.save_for_backward(scores, total)
        ctx.target, ctx.single = target, single
        return total - expected

    @staticmethod
    def backward(ctx, *slopes: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        scores, total = ctx.saved_tensors
        target, (slope,) = ctx.target, slopes
        found = (scores - total[:, None]).exp_().mul_(slope[:, None])
        weights = (target.p * slope.index_select(0, target.row)).to(found.dtype)
        found.view(-1).index_add_(0, target.at, weights, alpha=-1)
        if len(target.unseen):
            of_unigrams = slope.index_select(0, target.unseen)[:, None] * ctx.single
            found.index_add_(0, target.unseen, of_unigrams, alpha=-1)
        return found, None, None
