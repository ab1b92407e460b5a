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
    """−Σ P(w) ln softmax(scores)(w) of each token, [n] float32, for scores [n, V] float32 (padding columns of the
    vocabulary taken off). Gradients reach the scores."""
    picked = scores.reshape(-1).index_select(0, target.at) * target.p
    expected = torch.zeros(len(scores), dtype=scores.dtype, device=scores.device).index_add(0, target.row, picked)
    if len(target.unseen):
        of_unigrams = scores.index_select(0, target.unseen) @ unigram.on(scores.device, scores.dtype)
        expected = expected.index_add(0, target.unseen, of_unigrams)
    return scores.logsumexp(-1) - expected
