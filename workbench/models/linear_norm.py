"""The linear part of a norm: what it does to a state once its scale is taken as one number.

A layer norm or an RMS norm is N(x) = (C x) g / s(x) + b, with C taking the mean off (or nothing), a gain g and a scale
s(x) that is one number for each state. Weights that read or write through a norm take up C and g ("folding"); s(x)
stays outside. The module itself is asked, so gains that are stored as 1 + w, norms without weights and those of other
names are all the same here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from workbench.core.errors import InputError
from workbench.models.float32 import in_float32

LARGE = 1e3  # root mean square at which a norm's epsilon (1e-5 and less) is beyond float32


@dataclass(frozen=True, eq=False)
class LinearNorm:
    """`gain` [width] float64, `constant` [width] float64 (what the norm makes of zero), and whether
    the mean is taken off first."""

    gain: torch.Tensor
    constant: torch.Tensor
    centred: bool

    def of(self, x: torch.Tensor) -> torch.Tensor:
        """The linear part of states [..., width], in their dtype."""
        x = x - x.mean(-1, keepdim=True) if self.centred else x
        return x * self.gain.to(x.device, x.dtype)

    def read(self, weight: torch.Tensor) -> torch.Tensor:
        """Weights [..., width, r] that read the norm's result, as they read the state before it: C diag(g) W."""
        folded = self.gain.to(weight.device, weight.dtype)[:, None] * weight
        return folded - folded.mean(-2, keepdim=True) if self.centred else folded


@torch.no_grad()
def linear_norm(norm: nn.Module, width: int) -> LinearNorm:
    """The linear part of a norm over the last `width` numbers.

    Raises InputError for a module that is no norm of this form."""
    weight = next(norm.parameters(), None)
    device = weight.device if weight is not None else torch.device("cpu")

    def call(x: torch.Tensor) -> torch.Tensor:
        return in_float32(norm, x.to(device, torch.float32)).double().cpu()

    constant = call(torch.zeros(width))
    signs = torch.ones(width)
    signs[1::2] = -1
    if width % 2:
        signs[-3:] = torch.tensor([1.0, 1.0, -2.0]) if width > 1 else torch.tensor([1.0])
    plain, shifted = call(signs * LARGE) - constant, call(signs * LARGE + LARGE) - constant
    # of a norm that is centred, a shift of all numbers is not seen
    centred = width > 1 and bool(torch.allclose(shifted, plain, rtol=1e-3, atol=1e-3 * float(plain.abs().max())))
    doubled = call(signs * 2 * LARGE) - constant
    linear = bool(torch.allclose(doubled, 2 * plain, rtol=1e-2))  # of an epsilon beyond any state: no scale at all
    size = LARGE if linear else float(signs.square().mean().sqrt())
    gain = plain / signs.double()
    found = LinearNorm(gain / size if linear else gain * size, constant, centred)
    wave = torch.sin(torch.arange(1, width + 1, dtype=torch.float32) ** 1.3) + 0.25
    real, ours = call(wave * LARGE) - constant, found.of(wave.double())
    cosine = float((real * ours).sum() / (real.norm() * ours.norm()).clamp_min(1e-300))
    if not abs(cosine - 1) < 1e-4:
        raise InputError(
            f"The norm {type(norm).__name__} is not a gain on the state (with its mean taken off or not), so the "
            f"weights behind it cannot be read as they read the residual stream."
        )
    return found
