"""Batches of token sequences: grouped by length, padded with explicit positions, halved when memory runs out.

With right padding no attention mask is needed: a causal model never looks right, so real tokens cannot see the padding,
and the fast attention kernels stay in use. Left padding (generation) carries a mask. Both give the numbers of a single
sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch

from workbench.core.errors import InputError
from workbench.models import devices
from workbench.models.host_copies import arriving

Item = TypeVar("Item")
Found = TypeVar("Found")
ALIGNED = 16  # attention on a CPU is up to twice as fast where the number of keys is a multiple of this


def batches(lengths: Sequence[int], *, max_tokens: int = 8192, max_rows: int = 256) -> list[list[int]]:
    """Row indices in batches of similar length: at most `max_rows` rows and, padded, `max_tokens` tokens (one row at
    least)."""
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    out: list[list[int]] = []
    for i in order:
        # sorted by length: the row that comes last is the longest of its batch
        if out and len(out[-1]) < max_rows and lengths[i] * (len(out[-1]) + 1) <= max_tokens:
            out[-1].append(i)
        else:
            out.append([i])
    return out


@dataclass(eq=False)
class Batch:
    """Padded token ids. ids [B, T]; mask [B, T], True on real tokens; position_ids [B, T]; `real`: the mask on the
    host, so that nobody waits for the device to learn how long the sequences are."""

    ids: torch.Tensor
    mask: torch.Tensor
    position_ids: torch.Tensor
    side: str
    real: torch.Tensor

    @cached_property
    def sizes(self) -> list[int]:
        """How many tokens each row has."""
        return self.real.sum(1).tolist()

    @cached_property
    def lengths(self) -> torch.Tensor:
        """`sizes` where the ids are, [B]."""
        return sent([self.real.sum(1)], self.ids.device)[0]

    @property
    def tokens(self) -> int:
        return sum(self.sizes)

    @cached_property
    def padded(self) -> bool:
        """Whether any column of any row is no token."""
        return not bool(self.real.all())

    def followed_by(self, more: Batch) -> Batch:
        """What was read before, and what is read after it, column by column: padded on the left."""
        mask = torch.cat([self.mask, more.mask], 1)
        return Batch(
            torch.cat([self.ids, more.ids], 1),
            mask,
            torch.cat([self.position_ids, more.position_ids], 1),
            "left",
            mask if mask.device.type == "cpu" else torch.cat([self.real, more.real], 1),
        )


def pad(
    ids: Sequence[Sequence[int]],
    *,
    pad_id: int,
    side: str = "right",
    device: torch.device | str = "cpu",
    first: Sequence[int] | None = None,
) -> Batch:
    """Pad sequences to the longest; positions count from `first` (0) at each sequence's first token, padding has
    position 0.

    The batch is made on the host and goes to `device` in one copy. Raises InputError for an empty sequence."""
    lengths = [len(row) for row in ids]
    if not lengths or min(lengths) == 0:
        where = lengths.index(0) if lengths else 0
        raise InputError(f"Sequence {where} has no tokens; give every prompt at least one token.")
    width = max(lengths)
    if side == "right":
        rows = [list(row) + [pad_id] * (width - len(row)) for row in ids]
    else:
        rows = [[pad_id] * (width - len(row)) + list(row) for row in ids]
    length = torch.tensor(lengths)
    start = torch.zeros_like(length) if side == "right" else width - length
    position = torch.arange(width) - start[:, None]
    real = (position >= 0) & (position < length[:, None])
    if first is not None:
        position += torch.tensor(first)[:, None]
    tokens, position, there = sent(
        [torch.tensor(rows, dtype=torch.long), torch.where(real, position, 0), real.long()], device
    )
    return Batch(tokens, there.bool(), position, side, real)


def sent(numbers: Sequence[torch.Tensor], device: torch.device | str) -> list[torch.Tensor]:
    """Whole numbers [...] int64 of the host on `device`, in one copy that the host does not wait for."""
    if devices.is_cpu(device):
        return list(numbers)
    together = arriving(torch.cat([x.flatten() for x in numbers]), device)
    return [part.view(x.shape) for part, x in zip(together.split([x.numel() for x in numbers]), numbers)]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the CPU (which torch reports as a plain RuntimeError) had no room for a tensor."""
    refused = isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("not enough memory", "can't allocate memory")
    )
    return refused or isinstance(error, (torch.OutOfMemoryError, MemoryError))


def halving(
    items: Sequence[Item], compute: Callable[[list[Item]], Found], check: Callable[[], None] | None = None
) -> Iterator[tuple[list[Item], Found]]:
    """(part, compute(part)) for all the items at once or, where that runs out of memory, for their halves, quarters, …
    in order.

    Raises the error when one item alone is too much. `check` is called before every part and may raise
    (cancellation)."""
    queue = [list(items)]
    while queue:
        if check is not None:
            check()
        part = queue.pop()
        try:
            found = compute(part)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or len(part) == 1:
                raise
        else:
            yield part, found
            continue
        # outside the handler: the error holds on to the frames, and so to the memory, of the pass that failed
        devices.free_caches()
        half = len(part) // 2
        queue += [part[half:], part[:half]]


def in_batches(
    lengths: Sequence[int],
    step: Callable[[list[int]], object],
    *,
    max_tokens: int,
    max_rows: int,
    check: Callable[[], None] | None = None,
) -> Iterator[list[int]]:
    """Call `step(indices)` for every batch of sequences of these lengths and yield the indices done; a batch that runs
    out of memory is halved and tried again. `check` is called before each and may raise (cancellation)."""
    for batch in batches(lengths, max_tokens=max_tokens, max_rows=max_rows):
        for indices, _ in halving(batch, step, check):
            yield indices
