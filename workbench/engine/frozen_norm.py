"""A norm with its scale held fixed: then what it makes of a sum is the sum of what it makes of the parts.

A layer norm or an RMS norm is N(x) = A x / s(x) + b, with A linear (centring and gain) and s the root mean square of
what it scales. At a given state s is one number, and the parts of the state are read off one by one (direct logit
attribution; Elhage et al. 2021, "Handling layer normalization"). The module itself is asked, so gains that are stored
as 1 + w, norms without weights and those of other names are all the same here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from workbench.core.errors import InputError
from workbench.models.float32 import in_float32

LARGE = 1e3  # root mean square at which a norm's epsilon (1e-5 and less) is beyond float32


@dataclass(frozen=True, eq=False)
class FrozenNorm:
    """A norm at one state: ``norm(state) == of(state) + constant``. `of` is linear and takes [..., width]; `scale` is
    what the norm multiplies by there (1 for no norm at all)."""

    of: Callable[[torch.Tensor], torch.Tensor]
    constant: torch.Tensor
    scale: float


@torch.no_grad()
def frozen_norm(norm: nn.Module, state: torch.Tensor) -> FrozenNorm:
    """The norm at `state` [width], in float32 at least.

    Raises InputError for a module that is no norm of this form, and for a state that is NaN or infinite."""
    state = state.to(torch.promote_types(state.dtype, torch.float32))
    if not bool(state.isfinite().all()):
        raise InputError("The residual stream is NaN or infinite there, so it cannot be taken apart.")

    def call(x: torch.Tensor) -> torch.Tensor:
        return in_float32(norm, x).to(x.device, x.dtype)

    constant = call(torch.zeros_like(state))
    at_state = call(state) - constant
    direction = _probe(state)
    once, twice = call(direction * LARGE) - constant, call(direction * 2 * LARGE) - constant
    if torch.allclose(twice, 2 * once, rtol=1e-4, atol=1e-4 * float(once.abs().max())):
        return FrozenNorm(lambda x: call(x.to(state.dtype)) - constant, constant, 1.0)
    shifted = call(direction * LARGE + LARGE) - constant
    centred = bool(torch.allclose(shifted, once, rtol=1e-3, atol=1e-3 * float(once.abs().max())))

    def size(x: torch.Tensor) -> torch.Tensor:
        x = x - x.mean(-1, keepdim=True) if centred else x
        return x.square().mean(-1, keepdim=True).sqrt()

    def unscaled(x: torch.Tensor) -> torch.Tensor:
        """A x, rows that are zero staying zero."""
        x = x.to(state.dtype)
        own = size(x)
        unit = torch.where(own > 0, x / own.clamp_min(torch.finfo(x.dtype).tiny), 0)
        return torch.where(own > 0, (call(unit * LARGE) - constant) * own, 0)

    whole = unscaled(state)
    energy = float(whole.square().sum())
    scale = float((at_state * whole).sum()) / energy if energy else 1.0
    wrong = float((at_state - whole * scale).abs().max())
    if not wrong <= 1e-3 * (1e-6 + float(at_state.abs().max())):
        raise InputError(
            f"The norm {type(norm).__name__} is not linear once its scale is fixed; parts cannot be read off it."
        )
    return FrozenNorm(lambda x: unscaled(x) * scale, constant, scale)


def _probe(state: torch.Tensor) -> torch.Tensor:
    """A vector without a mean, of root mean square one, that no norm can confuse with a constant."""
    wave = torch.sin(torch.arange(1, state.shape[-1] + 1, dtype=torch.float64)).to(state.device, state.dtype)
    wave = wave - wave.mean()
    return wave / wave.square().mean().sqrt()
