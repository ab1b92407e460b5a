"""The scores of tokens in plain Hugging Face, in float64, with loops over everything: what fast code is held to."""

from __future__ import annotations

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

UNSEEN = float("-inf")
KEPT: list = []


def keep(module, query, key, value, attention_mask, scaling=None, softcap=None, **_):
    """Attention as written down: what comes in is kept, a loop over heads gives what comes out."""
    H, KV = query.shape[1], key.shape[1]
    KEPT.append((query[0].numpy(), key[0].numpy(), attention_mask[0, 0].numpy()))
    out = []
    for h in range(H):
        scores = query[:, h] @ key[:, h // (H // KV)].mT * (scaling or query.shape[-1] ** -0.5)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        out.append((scores + attention_mask[:, 0]).softmax(-1) @ value[:, h // (H // KV)])
    return torch.stack(out, 2), None


AttentionInterface.register("kept", keep)
AttentionMaskInterface.register("kept", eager_mask)


def plain_of(hf):
    """A Hugging Face model in float64 whose attention leaves its queries and keys."""
    hf = hf.double().eval()
    hf.set_attn_implementation("kept")
    return hf


def by_hand(plain, ids, *, softmax: bool = False) -> list[np.ndarray]:
    """The scores of the tokens at every layer, UNSEEN where the last query does not see them: loops over everything."""
    KEPT.clear()
    with torch.no_grad():
        plain(torch.tensor([ids]))
    out = []
    for query, key, mask in KEPT:
        H, KV, n, d = len(query), len(key), key.shape[1], key.shape[2]
        total, seen = np.zeros(n), mask[-1] > -1e9
        for h in range(H):
            row = np.array([np.dot(query[h, -1], key[h // (H // KV), s]) for s in range(n)])
            if softmax:
                row = np.where(seen, np.exp(row / d**0.5 - (row / d**0.5)[seen].max()), 0.0)
                row /= row.sum()
            total += row
        out.append(np.where(seen, total, UNSEEN))
    return out


def window_mean(scores: np.ndarray, kernel: int) -> np.ndarray:
    """The mean of every window, zeros beyond the ends and for what is not seen."""
    filled, half = np.where(np.isfinite(scores), scores, 0.0), kernel // 2
    rows = []
    for s in range(len(scores)):
        around = [filled[p] if 0 <= p < len(scores) else 0.0 for p in range(s - half, s + half + 1)]
        rows.append(sum(around) / kernel if np.isfinite(scores[s]) else UNSEEN)
    return np.array(rows)


def best(scores: np.ndarray, keep: int) -> list[int]:
    order = sorted(range(len(scores)), key=lambda s: (-scores[s], s))
    return sorted(s for s in order[:keep] if np.isfinite(scores[s]))
