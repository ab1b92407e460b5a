"""Many probes at once: those of all layers, each for several labellings and for several parts of the rows.

A *problem* is a labelling of the rows and which of them are fitted on; every layer has it. What a classifier makes of
them is a `Solver`; here the features are brought to the device, as many layers at a time as there is memory for,
centred (and standardised), and what is found comes back in one copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from workbench.core.errors import InputError
from workbench.models import devices
from workbench.models.devices import widest

_CPU_BYTES = 24 * 2**20  # the caches of a CPU are small
_SHARE = 3  # of a device's free memory a third

# (x [b, n, d] centred, y [n, q, k], fitted [n, q]) → weights [b, d, q, k], intercepts [b, q, k], iterations [b, q],
# error [b, q]
Solver = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, ...]]


@dataclass(frozen=True, eq=False)
class ManyFits:
    """For features as they were given (any standardisation is folded in), on the CPU, float64: coef [q, L, k, d] and
    intercept [q, L, k] of as many first problems as were asked for, scores [q, L, n, k] of all rows, iterations and
    error [q, L]. k is 1 for two classes."""

    coef: torch.Tensor
    intercept: torch.Tensor
    scores: np.ndarray
    iterations: np.ndarray
    error: np.ndarray


def finite_features(features: Sequence[torch.Tensor] | torch.Tensor) -> None:
    """Raise InputError, naming the layer, for features that are not finite."""
    for layer, fine in enumerate(torch.stack([torch.isfinite(x).all() for x in features]).tolist()):
        if not fine:
            raise InputError(
                f"The features of layer {layer} hold NaN or infinite values; load the model in float32 or bfloat16."
            )


def fit_each(
    features: Sequence[torch.Tensor] | torch.Tensor,
    y: np.ndarray,
    fitted: np.ndarray,
    solve: Solver,
    *,
    standardize: bool = False,
    device: torch.device | str | None = None,
    check: Callable[[], None] | None = None,
    keep: int | None = None,
) -> ManyFits:
    """Solve every problem on every layer: features [L][n, d], y [n, q, k], fitted [n, q] (1 or 0).

    `standardize`: divide by the standard deviation of the rows that are fitted on. `device`: where to solve (default:
    where the features are). `check` is called between chunks of layers and may raise. `keep`: of how many problems the
    coefficients are wanted (default: all)."""
    q, k = y.shape[1:]
    keep = q if keep is None else keep
    where = torch.device(device) if device is not None else features[0].device
    real = widest(where)
    # a scale is of the rows fitted on, so with it only problems of the same rows are solved together
    together = [np.flatnonzero(own) for own in _same_rows(fitted)] if standardize else [np.arange(q)]
    blocks = [(own, *_on(where, real, y[:, own], fitted[:, own])) for own in together]
    parts: list[list[torch.Tensor]] = []
    for x in chunks_of_layers(features, where, check, problems=max(map(len, together)) * k):
        found = [_fit_block(x, truth, rows, solve, standardize, int((own < keep).sum())) for own, truth, rows in blocks]
        parts.append([torch.cat(same, 1) for same in zip(*found)])
    # in the order that they were asked for
    back = torch.from_numpy(np.argsort(np.concatenate(together)))
    kept = np.concatenate([own[own < keep] for own in together])
    first = torch.from_numpy(np.argsort(kept))
    coef, intercept, scores, iterations, error = (torch.cat(same).transpose(0, 1) for same in zip(*parts))
    return ManyFits(
        coef[first], intercept[first], scores[back].numpy(), iterations[back].long().numpy(), error[back].numpy()
    )


def chunks_of_layers(
    features: Sequence[torch.Tensor] | torch.Tensor,
    device: torch.device | str | None,
    check: Callable[[], None] | None,
    *,
    problems: int,
) -> Iterator[torch.Tensor]:
    """Features [L][n, d] as many layers at a time as are solved together for so many problems, each [b, n, d] on the
    device (default: where they are), in the `widest` dtype that it has. `check` is called before each and may raise."""
    where = torch.device(device) if device is not None else features[0].device
    size = _layers_at_once(where, *features[0].shape, problems)
    for start in range(0, len(features), size):
        if check is not None:
            check()
        yield torch.stack(list(features[start : start + size])).to(where).to(widest(where))


def _fit_block(
    x: torch.Tensor, y: torch.Tensor, fitted: torch.Tensor, solve: Solver, standardize: bool, keep: int
) -> list[torch.Tensor]:
    """Coefficients [b, keep, k, d] and intercepts [b, keep, k], scores [b, q, n, k], iterations and error [b, q] of x
    [b, n, d]; on the CPU."""
    used = fitted.amax(1)[:, None]  # by any of them; the intercept is not penalised, so another mean changes nothing
    mean = (used * x).sum(1) / used.sum()
    centred = x - mean[:, None]
    scale = torch.ones_like(mean)
    if standardize:
        scale = spread_of(used * centred, mean, used.sum())
        centred = centred / scale[:, None]
    weights, intercepts, iterations, error = solve(centred, y, fitted)
    scores = torch.bmm(centred, weights.flatten(2)).unflatten(2, weights.shape[2:]) + intercepts[:, None]
    coef = weights[:, :, :keep].permute(0, 2, 3, 1) / scale[:, None, None]
    intercepts = intercepts[:, :keep] - (coef * mean[:, None, None]).sum(-1)
    return on_host(coef, intercepts, scores.permute(0, 2, 1, 3), iterations, error)


def spread_of(x: torch.Tensor, mean: torch.Tensor, rows: torch.Tensor | int) -> torch.Tensor:
    """Standard deviation [b, d] of centred features [b, n, d] (0 in what is not of the `rows`); 1 for a constant one,
    of which rounding is left."""
    spread = (x.square().sum(1) / rows).sqrt()
    least = 10 * torch.finfo(x.dtype).eps ** 0.8  # 3e-12 of float64
    return torch.where(spread > least * mean.abs().clamp(min=1e-30), spread, torch.ones_like(spread))


def _same_rows(fitted: np.ndarray) -> list[np.ndarray]:
    """Which problems [q] are fitted on the same rows, for each such set of rows."""
    _, which = np.unique(fitted, axis=1, return_inverse=True)
    which = which.reshape(-1)
    return [which == number for number in dict.fromkeys(which.tolist())]


def _on(device: torch.device, real: torch.dtype, y: np.ndarray, fitted: np.ndarray) -> tuple[torch.Tensor, ...]:
    """Truth [n, q, k] and rows [n, q] on the device, in one copy."""
    both = torch.from_numpy(np.concatenate([y, fitted[..., None]], 2)).to(device, real)
    return both[..., :-1].contiguous(), both[..., -1].contiguous()


def on_host(*found: torch.Tensor) -> list[torch.Tensor]:
    """Tensors of a device on the host, float64, in one copy."""
    flat = torch.cat([x.to(found[0].dtype).reshape(-1) for x in found]).cpu().double()
    return [part.view(x.shape) for part, x in zip(flat.split([x.numel() for x in found]), found)]


def _layers_at_once(device: torch.device, n: int, d: int, problems: int) -> int:
    """How many layers are solved together, by what they take: about four copies of the features, a square matrix or
    three, and a dozen numbers for each row and each feature of a problem."""
    least = min(n, d)
    bytes_each = 28 * n * d + 24 * least**2 + problems * (90 * n + 50 * least)
    free = _CPU_BYTES if devices.is_cpu(device) else devices.memory(device)[0] // _SHARE
    return max(1, free // bytes_each)
