"""First-token sinks: tokens whose activation is massive and says nothing of the text.

Attention that has nowhere to go rests on the first token of a text, and on a few others (line ends, full stops); models
mark these with a norm hundreds of times that of words. Where a tokenizer puts BOS in front, BOS is that token; where it
does not (GPT-2, Pythia, Qwen, OLMo), it is the first word. This is the one place that says which tokens are sinks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from workbench.models.host_copies import arriving

TIMES = 10.0  # a norm beyond so many medians of its text's norms is a sink's

BESIDE_SINKS = "beside_sinks:"  # positions of a capture: with "mean" or a number behind it


@dataclass(frozen=True)
class SpanMeans:
    """Positions of a capture: of every prompt the mean over its own tokens [start, end), with `beside_sinks` over those
    that are no sinks, and with how many are behind it."""

    spans: tuple[tuple[int, int], ...]
    beside_sinks: bool = False


def sinks_of(x: torch.Tensor, real: torch.Tensor, counted: torch.Tensor | None = None) -> torch.Tensor:
    """`find_sinks` from activations [n, T, …] of one site."""
    return find_sinks(norms_of(x, 2), real, counted)


def norms_of(x: torch.Tensor, leading: int) -> torch.Tensor:
    """Norms of activations whose first `leading` dimensions are texts and tokens, float32 (float64 of float64)."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return torch.linalg.vector_norm(x.flatten(leading), dim=-1, dtype=dtype)


def find_sinks(norms: torch.Tensor, real: torch.Tensor, counted: torch.Tensor | None = None) -> torch.Tensor:
    """bool [n, T]: the tokens of each text that are sinks at the site of these norms [n, T].

    `real` [n, T]: tokens, where the rest is padding on either side; `counted` [n, T]: those that are to be measured
    (all that are real; not a BOS, where special tokens are not). A sink is a counted token that
    - is the first of its text, where another one counts as well; or
    - has a norm beyond TIMES × the median norm of all tokens of its text (an even number of them: the mean of the two
      in the middle). A median of 0 says nothing, and a norm that is not finite is left for whoever refuses it.

    Runs on the device of `norms`, without waiting for it."""
    real = real.to(norms.device)
    counted = real if counted is None else counted.to(norms.device) & real
    first = real & (real.cumsum(1) == 1)
    by_place = first & counted & (counted.sum(1, keepdim=True) > 1)
    ordered = norms.masked_fill(~real, torch.inf).sort(1).values
    size = real.sum(1, keepdim=True).clamp(min=1)
    median = (ordered.gather(1, (size - 1) // 2) + ordered.gather(1, size // 2)) / 2
    beyond = norms.isfinite() & (norms > TIMES * median) & (median > 0)
    return by_place | (beyond & counted)


def ordinary_tokens(
    norms: torch.Tensor | None, counted: Sequence[np.ndarray], before: torch.Tensor | None = None
) -> list[np.ndarray]:
    """Which tokens of each text count (bool [length]) and are no sinks, from the norms of the tokens of all texts, one
    text behind the other. `before`: norms of what stands in front of every text, for which `norms` has none. Without
    norms: the sinks by place alone, which are known before any pass.

    The host waits once, however many texts there are."""
    size = 0 if before is None else len(before)
    lengths = [len(own) for own in counted]
    mask = np.zeros((len(counted), max(lengths, default=0)), bool)
    inside = mask.copy()
    for row, real, own in zip(mask, inside, counted):
        row[: len(own)], real[: len(own)] = own, True
    device = torch.device("cpu") if norms is None else norms.device
    real, inside_counted = arriving(torch.from_numpy(np.stack([inside, mask])), device)
    padded = torch.zeros(real.shape, dtype=torch.float32 if norms is None else norms.dtype, device=device)
    if norms is not None:
        padded[:, size:] = padded[:, size:].masked_scatter(real[:, size:], norms)
    if before is not None:
        padded[:, :size] = before.to(padded)
    sinks = find_sinks(padded, real, inside_counted).cpu().numpy()
    return [own & ~found[: len(own)] for own, found in zip(counted, sinks)]


def positions_for(
    token: int | str, *, watched: bool, spans: Sequence[tuple[int, int]] | None = None
) -> str | list[int] | SpanMeans:
    """The positions of a capture that reads "last", "mean" or one position of every text; `watched`: the mean without
    sinks, or a position with the word whether it is one. Whether the last token is one is not asked: that would take
    the norms of all the others. `spans`: of each text the tokens [start, end) that a mean is over (None: all)."""
    if token == "mean" and spans is not None:
        return SpanMeans(tuple(spans), beside_sinks=watched)
    if isinstance(token, str) and (token != "mean" or not watched):
        return token
    return f"{BESIDE_SINKS}{token}" if watched else [int(token)]


def beside_sinks(positions: Any) -> bool:
    """Whether a capture at these positions says of sinks too, as `positions_for` asks for with `watched`."""
    if isinstance(positions, SpanMeans):
        return positions.beside_sinks
    return isinstance(positions, str) and positions.startswith(BESIDE_SINKS)


def parted(found: torch.Tensor, positions: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(activations [n, d], int64 [n]: sinks left out of each mean, or whether each token is one) of what was captured
    at `positions_for`; None where it was not watched."""
    if beside_sinks(positions):
        return found[:, :-1], found[:, -1].long()
    return found.flatten(1), None
