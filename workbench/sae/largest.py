"""The k largest of each row, exactly, as sparse entries."""

from __future__ import annotations

import functools

import numpy as np
import torch

from workbench.models.devices import is_cpu
from workbench.sae.sparse_rows import Rows, check_values


def largest(x: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(row, column, value) of those of the k largest of each row [n, d] that are above 0, rows ascending; exact, NaN
    kept.

    On a CPU the search is narrowed first: of d elements in groups, the k-th largest group maximum is reached by at
    least k elements, so nothing below it is among the k largest, and only a few more than k elements are left to
    compare. Of equal ones the first count."""
    n, d = x.shape
    groups = _groups(d, k) if is_cpu(x.device) and x.dtype == torch.float32 and n else None
    maxima = x.view(n, d // groups, groups).amax(1).numpy() if groups else None
    if groups is None or np.isnan(maxima).any():
        value, column = x.topk(min(k, d), dim=-1, sorted=False)
        row = torch.arange(n, device=x.device)[:, None].expand_as(column)
        active = ~(value <= 0)
        return row[active], column[active], value[active]
    maxima.partition(groups - k, axis=1)
    numbers = x.numpy()
    flat = np.flatnonzero(
        numbers >= np.maximum(maxima[:, groups - k, None], np.nextafter(np.float32(0), np.float32(1)))
    )
    row, value = flat // d, numbers.reshape(-1)[flat]
    count = np.bincount(row, minlength=n)
    if (most := int(count.max())) > k:
        place = np.arange(len(flat)) - (np.cumsum(count) - count)[row]
        kept = np.zeros((n, most), np.float32)
        kept[row, place] = value
        kept.partition(most - k, axis=1)
        least = kept[:, most - k][row]
        equal = value == least
        room = k - np.bincount(row[value > least], minlength=n)  # for those that equal the k-th
        before = np.cumsum(equal) - equal  # of these, in all rows
        first = before[np.minimum(np.cumsum(count) - count, len(flat) - 1)]
        keep = (value > least) | (equal & (before - first[row] < room[row]))
        flat, row, value = flat[keep], row[keep], value[keep]
    return torch.from_numpy(row), torch.from_numpy(flat - row * d), torch.from_numpy(value)


@functools.cache
def _groups(d: int, k: int) -> int | None:
    """Into how many groups d elements are put to find the k largest: of what divides d, what is nearest to 8 k; None
    where nothing suits."""
    return min((g for g in range(2 * k, d // 4 + 1) if d % g == 0), key=lambda g: abs(g - 8 * k), default=None)


def neuron_rows(values: torch.Tensor, k: int) -> Rows:
    """The k largest neurons of each token [n, d_mlp] as sparse rows; what is left of them below zero (SiLU's dip) is
    dropped."""
    row, feature, value = largest(values, k)
    check_values(value)
    return Rows(row, feature, value, *values.shape)
