"""The attention weights of a layer, computed from its queries and keys: what a query may see, scores, rows.

The products of queries and keys are one step, what is made of them another: products of several layers, which are
masked alike, are scaled, masked and normalised together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

# Rows are computed in blocks of queries so that one block of scores stays under this many numbers (256 MiB in float32).
BLOCK = 64 * 1024 * 1024
BLOCKED = torch.finfo(torch.float32).min  # the score of what a query may not see

Rows = slice | torch.Tensor  # query columns: a stretch of them, or [R], or [B, R] with one set per sequence


def pick(x: torch.Tensor, rows: Rows) -> torch.Tensor:
    """Query rows of [B, N, Q, D] → [B, N, R, D]; a stretch is no copy."""
    if isinstance(rows, slice):
        return x[:, :, rows]
    take = (rows if rows.ndim == 2 else rows.expand(len(x), -1)).to(x.device)
    return x.gather(2, take[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))


@dataclass(frozen=True, eq=False)
class KeyMasking:
    """What is made of the products of `queries` queries and `keys` keys: scaled, capped, and hidden by a mask [B, 1 or
    H, Q, S] (bool, or numbers to add), or where there is none and `causal`, by which of them comes later."""

    mask: torch.Tensor | None
    scaling: float
    softcap: float | None
    causal: bool
    queries: int
    keys: int

    def alike(self, other: KeyMasking) -> bool:
        """Whether the products of both can be masked together."""
        mine, others = self.__dict__ | {"mask": id(self.mask)}, other.__dict__ | {"mask": id(other.mask)}
        return mine == others

    def scores(self, products: torch.Tensor, rows: Rows) -> torch.Tensor:
        """Masked pre-softmax scores of products [..., B, H, R, S] float32 of the query rows `rows`; the products are
        used up."""
        scores = products.mul_(self.scaling)
        if self.softcap is not None:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        mask = self._of(rows, scores)
        if mask is None:
            return scores
        if mask.dtype == torch.bool:
            return scores.masked_fill_(~mask, BLOCKED)
        return scores.add_(mask).clamp_min_(BLOCKED)

    def visible(self, rows: Rows, like: torch.Tensor) -> torch.Tensor:
        """Which keys the query rows may see, bool [B, 1 or H, R, S]; `like` [B, H, R, S] says how many, and where."""
        mask = self._of(rows, like)
        if mask is None:
            return torch.ones_like(like[:, :1], dtype=torch.bool)
        return mask if mask.dtype == torch.bool else mask > BLOCKED / 2

    def _of(self, rows: Rows, like: torch.Tensor) -> torch.Tensor | None:
        """The mask of some rows, [B, 1 or H, R, S]; None where they see every key."""
        B, device = like.shape[-4], like.device
        if self.mask is not None:
            return pick(self.mask[..., : self.keys].expand(B, -1, -1, -1), rows)
        if self.queries == 1 or not self.causal:
            return None
        if isinstance(rows, slice):
            rows = torch.arange(self.queries, device=device)[rows]
        last = rows.to(device) + (self.keys - self.queries)
        return torch.arange(self.keys, device=device) <= last.expand(B, -1)[:, None, :, None]


@dataclass(eq=False)
class Weights:
    """Attention rows of one layer, computed on demand: rows(slice or index) → [B, H, R, S] float32, each summing to
    1."""

    query: torch.Tensor  # [B, H, Q, D], after rotation
    key: torch.Tensor  # [B, KV, S, D]
    value: torch.Tensor  # [B, KV, S, Dv]
    mask: torch.Tensor | None
    scaling: float | None
    softcap: float | None
    is_causal: bool = True
    output: torch.Tensor | None = None  # what the layer's attention gave, [B, Q, H, Dv]

    @property
    def masking(self) -> KeyMasking:
        scaling = self.scaling if self.scaling is not None else self.query.shape[-1] ** -0.5
        return KeyMasking(self.mask, scaling, self.softcap, self.is_causal, self.query.shape[2], self.key.shape[2])

    def products(self, rows: Rows, out: torch.Tensor | None = None) -> torch.Tensor:
        """Products of query rows `rows` and all keys, [B, H, R, S] float32, in `out` where it is given: one batched
        matrix product, in which the heads of a group share its keys."""
        q = pick(self.query, rows).float()
        B, H, R, D = q.shape
        KV, S = self.key.shape[1:3]
        # query head h reads group h // (H / KV)
        q, keys = q.reshape(B * KV, H // KV * R, D), self.key.float().reshape(B * KV, S, D)
        if out is None:
            return torch.bmm(q, keys.mT).view(B, H, R, S)
        torch.bmm(q, keys.mT, out=out.view(B * KV, -1, S))
        return out

    def scores(self, rows: Rows) -> torch.Tensor:
        """Masked pre-softmax scores of query rows `rows` → [B, H, R, S] float32."""
        return self.masking.scores(self.products(rows), rows)

    def rows(self, rows: Rows) -> torch.Tensor:
        return self.scores(rows).softmax(-1)


def mix(weigh: Weights, edits: Sequence[Callable] = ()) -> torch.Tensor:
    """Attention output [B, Q, H, Dv] from explicit weights, in blocks of queries; used under edits and under
    soft-caps."""
    value = weigh.value
    B, H, Q, _ = weigh.query.shape
    KV, S = value.shape[1:3]
    step = max(1, BLOCK // (B * H * S))
    out = []
    for start in range(0, Q, step):
        weights = weigh.rows(slice(start, min(Q, start + step)))
        for edit in edits:
            weights = edit(weights, start, weigh)
        grouped = weights.to(value.dtype).reshape(B, KV, H // KV, -1, S)
        out.append(torch.einsum("bkgrs,bksd->brkgd", grouped, value).reshape(B, -1, H, value.shape[-1]))
    return out[0] if len(out) == 1 else torch.cat(out, dim=1)
