"""Composition of attention heads from weights alone: how much of what an earlier head writes a later head reads.

With head matrices W_OV = W_V W_O and W_QK = W_Q W_Kᵀ [d, d] of rank at most d_h (row vectors, x W), the composition
score of A before B is ‖A B‖_F / (‖A‖_F ‖B‖_F) (Elhage et al. 2021): A the W_OV of the earlier head; B the later head's
W_QK for Q-, its transpose for K- and its W_OV for V-composition. A component of the earlier head is a singular triple
s u vᵀ of its W_OV, and its score is ‖vᵀ B‖ / ‖B‖_F (Merullo et al. 2024).

No [d, d] product is ever formed. B = M N with M [d, h]; with N Nᵀ = Rᵀ R (R from the QR decomposition of Nᵀ) the norm
‖vᵀ B‖ is ‖vᵀ M Rᵀ‖, so all that is kept of a later head is its reader M Rᵀ [d, h].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from workbench.models.head_weights import HeadWeights

KINDS = ("q", "k", "v")


@dataclass(frozen=True, eq=False)
class Components:
    """The singular value decomposition of W_OV of each head of a layer, the largest value first.

    `values` [H, r] float64; `writes` [H, r, d] float64: unit directions v of the stream; `reads` [H, r, Dv] and `puts`
    [H, r, Dv] float64: with z what a head mixed before its output projection, z · reads is the coordinate of its output
    along v, and putting c · puts into z moves that coordinate by c and no other of its output."""

    values: torch.Tensor
    writes: torch.Tensor
    reads: torch.Tensor
    puts: torch.Tensor


def components(weights: HeadWeights) -> Components:
    """The components of every head of a layer, from QR decompositions of W_V and W_Oᵀ and a d_h × d_h SVD. The sign of
    a component is that which makes the largest number of v positive."""
    group = len(weights.output) // len(weights.value)
    value, output = weights.value.double().repeat_interleave(group, 0), weights.output.double()
    _, right = torch.linalg.qr(value)  # [H, h, h]
    basis, left = torch.linalg.qr(output.mT)  # W_Oᵀ = basis left
    _, values, directions = torch.linalg.svd(right @ left.mT)
    writes = directions @ basis.mT  # [H, r, d]
    most = writes.abs().argmax(-1, keepdim=True)
    writes = writes * torch.where(writes.gather(-1, most) < 0, -1.0, 1.0)
    reads = writes @ output.mT  # [H, r, Dv]
    # vᵀ W_O⁺: W_O = leftᵀ basisᵀ, so W_O⁺ = basis left⁻ᵀ
    puts = writes @ basis @ torch.linalg.pinv(left.mT)
    return Components(values, writes, reads, puts)


def readers(weights: HeadWeights, kind: str, turned: Sequence[torch.Tensor] = ()) -> torch.Tensor:
    """What each later head of a layer reads through its queries ("q", [H, d, D]), keys ("k", [KV, d, D]) or values
    ("v", [KV, d, Dv]), float64: ‖vᵀ reader‖ is ‖vᵀ B‖ and the norm of the reader is ‖B‖_F.

    Keys and values are shared by a group of heads, which is one reader: the B of its heads stand side by side.
    `turned`: the rotations [D, D] of the offsets between query and key over which ‖vᵀ B‖² and ‖B‖² are averaged
    (none: 0 tokens, the weights before rotation)."""
    kv = len(weights.key)
    group = len(weights.query) // kv
    query, key = weights.query.double(), weights.key.double()
    if kind == "q":
        other = _stacked(key, [r.mT for r in turned]).repeat_interleave(group, 0)
        return query @ _factor(other).mT
    if kind == "k":
        other = _stacked(query, turned).unflatten(0, (kv, group)).flatten(1, 2)
        return key @ _factor(other).mT
    other = weights.output.double().mT.unflatten(0, (kv, group)).flatten(1, 2)  # [KV, group · d, Dv]
    return weights.value.double() @ _factor(other).mT


def _stacked(side: torch.Tensor, turned: Sequence[torch.Tensor]) -> torch.Tensor:
    """[heads, d, D] as it is turned by each offset, one below the other, so that Gram matrices are means over them."""
    if not turned:
        return side
    return torch.cat([side @ turn.to(side) for turn in turned], 1) / len(turned) ** 0.5


def _factor(tall: torch.Tensor) -> torch.Tensor:
    """R [..., h, h] of the QR decomposition of [..., n, h]: Rᵀ R is its Gram matrix."""
    return torch.linalg.qr(tall, mode="r").R


def component_scores(directions: torch.Tensor, reading: torch.Tensor) -> torch.Tensor:
    """Scores of unit directions [n, d] into readers [m, d, h], [n, m]: ‖vᵀ B‖ / ‖B‖_F. NaN for a reader that is
    zero."""
    m, _, h = reading.shape
    product = directions @ reading.transpose(0, 1).reshape(reading.shape[1], m * h)
    return product.unflatten(-1, (m, h)).norm(dim=-1) / reading.flatten(1).norm(dim=-1)


def pair_scores(values: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Composition scores of whole heads [n, m], from the singular values [n, r] and the scores [n, r, m] of their
    components: ‖A B‖² is Σ s_i² ‖v_iᵀ B‖²."""
    power = values.square().to(scores)
    return (torch.einsum("nr,nrm->nm", power, scores.square()) / power.sum(-1, keepdim=True)).sqrt()


@dataclass(frozen=True, eq=False)
class RandomDirections:
    """The scores that a random direction of the stream has into a reader [m]: `mean` and `sd`, and the largest that any
    direction can have, `most`; the square of the score divided by that of `most` is taken as Beta(`a`, `b`)."""

    mean: np.ndarray
    sd: np.ndarray
    most: np.ndarray
    a: np.ndarray
    b: np.ndarray

    def p_above(self, scores: np.ndarray) -> np.ndarray:
        """The probability [n, m] that a random direction scores at least as much."""
        from scipy import special

        share = np.clip(scores.astype(np.float64) ** 2 / self.most**2, 0.0, 1.0)
        return special.betaincc(self.a, self.b, share)


def random_directions(reading: torch.Tensor, *, width: int, draws: int, rng: np.random.Generator) -> RandomDirections:
    """What a random direction, uniform on the sphere of `width` dimensions, scores into readers [m, d, h].

    With p_j the shares of ‖B‖² along its singular directions the square of the score is Σ p_j g_j² / Σ g_j² for normal
    g: mean 1/width and variance 2 (Σ p_j² − 1/width) / (width (width + 2)), from which the Beta distribution follows
    (exact for a reader of one dimension, or of equal singular values). Mean and sd of the score itself are of `draws`
    directions."""
    squares = torch.linalg.svdvals(reading.double()).square().cpu().numpy()  # [m, h]
    total = squares.sum(1, keepdims=True)
    shares = squares / np.where(total > 0, total, np.nan)
    m, h = shares.shape
    normal = rng.standard_normal((draws, min(h, width))) ** 2
    rest = rng.chisquare(width - h, draws) if width > h else np.zeros(draws)
    drawn = np.sqrt(shares[:, : normal.shape[1]] @ normal.T / (normal.sum(1) + rest))  # [m, draws]
    most = np.sqrt(shares.max(1))
    mean = 1.0 / width / most**2
    variance = 2 * ((shares**2).sum(1) - 1 / width) / (width * (width + 2)) / most**4
    with np.errstate(divide="ignore", invalid="ignore"):
        both = mean * (1 - mean) / variance - 1
    return RandomDirections(drawn.mean(1), drawn.std(1, ddof=1), most, mean * both, (1 - mean) * both)
