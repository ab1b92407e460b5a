"""The randomness of sampling: a counter, not a stream.

The number that a token gets depends on (seed, prompt, sample, step, token id) alone, and the drawn token is the argmax
of log-probability plus Gumbel noise (an exact draw). So a text is the same whatever batch it is in, and rounding
differences between batch sizes change a draw only where the best two candidates are within rounding of each other:
about once in a million steps in float32, however many tokens the nucleus holds (a cumulative sum would shift with each
of them)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

_GOLDEN, _A, _B = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _signed(x: int) -> int:
    x &= (1 << 64) - 1
    return x - (1 << 64) if x >> 63 else x


def _mix(x: torch.Tensor) -> torch.Tensor:
    """The finaliser of splitmix64 on int64 (wrapping multiplication, logical shifts)."""
    for shift, factor in ((30, _A), (27, _B)):
        x = (x >> shift).bitwise_and_((1 << (64 - shift)) - 1).bitwise_xor_(x).mul_(_signed(factor))
    return (x >> 31).bitwise_and_((1 << 33) - 1).bitwise_xor_(x)


def row_keys(
    seed: int, prompts: Sequence[int], samples: Sequence[int], *, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """One int64 key per row [R], from the run's seed, the prompt's number and the sample's number."""
    key = _mix(torch.full((len(prompts),), _signed(seed * _GOLDEN + _A), dtype=torch.long))
    for numbers in (prompts, samples):
        key = _mix(key ^ _mix(torch.tensor(numbers, dtype=torch.long) * _signed(_GOLDEN) + _signed(_B)))
    return key.to(device)


def step_keys(keys: torch.Tensor, t: int) -> torch.Tensor:
    """The keys [R] of step t."""
    return _mix(keys + _signed((t + 1) * _GOLDEN))


def keys_of_steps(keys: torch.Tensor, steps: int) -> torch.Tensor:
    """`step_keys` of rows [R] for the first steps, [R, steps]."""
    return _mix(keys[:, None] + torch.arange(1, steps + 1, device=keys.device) * _signed(_GOLDEN))


def draw(
    weights: torch.Tensor, keys: torch.Tensor, ids: torch.Tensor | None = None, *, wide: torch.dtype
) -> torch.Tensor:
    """One place [r] per row of `weights` [r, K], drawn in proportion to them (0: never), by the random keys [r] and the
    ids [r, K] of the tokens they are of (None: 0 … K−1). `wide`: the dtype that two candidates are compared in.

    The token with the greatest log w + Gumbel noise is the one with the least Exp(1) / w: one logarithm each."""
    tokens = torch.arange(weights.shape[1], device=weights.device) if ids is None else ids
    bits = _mix(keys[:, None] ^ torch.add(torch.tensor(_signed(_GOLDEN)), tokens, alpha=_signed(_A)))
    return _minus_exponential((bits >> 11).bitwise_and_((1 << 53) - 1), wide).div_(weights).argmax(-1)


def _minus_exponential(bits: torch.Tensor, wide: torch.dtype) -> torch.Tensor:
    """Logarithms of uniform numbers, of whole numbers `bits` from 0 to 2⁵³ − 1."""
    size, half = 2.0**-53, torch.tensor(2.0**-54, dtype=wide)
    noise = torch.add(half, bits, alpha=size).log_()
    if wide == torch.float64:
        return noise
    # float32 holds small numbers but none next to 1, where the logarithm is taken of the distance from it
    distance = torch.add(half, (1 << 53) - 1 - bits, alpha=size)
    return torch.where(distance < 0.5, distance.neg_().log1p_(), noise)
