"""The randomness of sampling: a counter, not a stream.

The number that a token gets depends on (seed, prompt, sample, step, token id) alone, and the drawn token is the argmax
of log-probability plus Gumbel noise (an exact draw). So a text is the same whatever batch it is in, and rounding
differences between batch sizes change a draw only where the best two candidates are within rounding of each other:
about once in a million steps in float32, however many tokens the nucleus holds (a cumulative sum would shift with each
of them)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

EXACT = 4096  # so many tokens are compared in float64; of more, those that a draw in float32 leaves
# The best two of a draw are a nat apart on average and float32 is off by 1e-5: that more than so many lie within that
# of each other does not occur.
SCREEN = 8
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


def draw(log_q: torch.Tensor, keys: torch.Tensor, ids: torch.Tensor | None) -> torch.Tensor:
    """One id per row [r], drawn from log-probabilities [r, K] (any constant added) of the tokens `ids` [r, K] (None: 0
    … K−1)."""
    tokens = torch.arange(log_q.shape[1], device=log_q.device)[None] if ids is None else ids
    bits = (_mix(keys[:, None] ^ (tokens * _signed(_A) + _signed(_GOLDEN))) >> 11).bitwise_and_((1 << 53) - 1)
    if log_q.shape[1] <= EXACT:
        best = _gumbel(log_q, bits).argmax(-1)
    else:  # two logarithms in float64 for every token of the vocabulary are slow: only for those that may win
        near = _screened(log_q, bits).topk(SCREEN, dim=-1).indices
        best = _gumbel(log_q.gather(1, near), bits.gather(1, near)).argmax(-1, keepdim=True)
        best = near.gather(1, best)[:, 0]
    return best if ids is None else ids.gather(1, best[:, None])[:, 0]


def _gumbel(log_q: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """Log-probabilities plus Gumbel noise, float64, of numbers `bits` from 0 to 2⁵³ − 1."""
    uniform = bits.double().add_(0.5).mul_(2.0**-53)
    return log_q - uniform.log_().neg_().log_()


def _screened(log_q: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """`_gumbel` in float32, off by 1e-5 at most where log_q is near 0: close to 1 the logarithm is taken of the
    distance from it, which float32 holds."""
    size = 2.0**-53
    noise = (bits.float() + 0.5).mul_(size).log_()
    distance = ((1 << 53) - bits).float().sub_(0.5).mul_(size)
    noise = torch.where(distance < 0.5, distance.clamp_(max=0.5).neg_().log1p_(), noise)
    return log_q.float() - noise.neg_().log_()
