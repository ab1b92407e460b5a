"""Batches of token sequences: grouped by length, padded with explicit positions, halved when memory runs out.

With right padding no attention mask is needed: a causal model never looks right, so real tokens cannot see the padding,
and the fast attention kernels stay in use. Left padding (generation) carries a mask. Both give the numbers of a single
sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from workbench.core.errors import InputError

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
    """Padded token ids. ids [B, T]; mask [B, T], True on real tokens; position_ids [B, T]; lengths [B]."""

    ids: torch.Tensor
    mask: torch.Tensor
    position_ids: torch.Tensor
    lengths: torch.Tensor
    side: str

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum())


def pad(ids: Sequence[Sequence[int]], *, pad_id: int, side: str = "right", device="cpu") -> Batch:
    """Pad sequences to the longest; positions count from 0 at each sequence's first token, padding has position 0.

    Raises InputError for an empty sequence."""
    lengths = [len(row) for row in ids]
    if not lengths or min(lengths) == 0:
        where = lengths.index(0) if lengths else 0
        raise InputError(f"Sequence {where} has no tokens; give every prompt at least one token.")
    width = max(lengths)
    if side == "right":
        rows = [list(row) + [pad_id] * (width - len(row)) for row in ids]
    else:
        rows = [[pad_id] * (width - len(row)) + list(row) for row in ids]
    tokens = torch.tensor(rows, dtype=torch.long, device=device)
    length = torch.tensor(lengths, device=device)
    column = torch.arange(width, device=device).expand(len(rows), -1)
    start = torch.zeros_like(length) if side == "right" else width - length
    position = column - start[:, None]
    mask = (position >= 0) & (position < length[:, None])
    return Batch(tokens, mask, torch.where(mask, position, 0), length, side)


@dataclass(eq=False)
class Frame:
    """Where the tokens of the forward pass in progress are: what edits and readers use to find positions.

    position_ids [B, Q] of the queries; mask [B, Q] of real queries; key_position [B, S] of every key column, -1 on
    padding."""

    position_ids: torch.Tensor
    mask: torch.Tensor
    key_position: torch.Tensor

    def last_columns(self) -> torch.Tensor:
        """Query column of each sequence's last token, [B]."""
        width = self.mask.shape[1]
        return width - 1 - self.mask.flip(1).to(torch.uint8).argmax(1)

    def columns(self, positions: torch.Tensor) -> torch.Tensor:
        """Query columns [B, R] of token positions [R] or [B, R]; negative positions count from each sequence's end.

        Raises InputError when a sequence of this pass does not hold the position."""
        positions = positions.expand(len(self.position_ids), -1)
        last = self.position_ids.gather(1, self.last_columns()[:, None])
        wanted = torch.where(positions < 0, last + 1 + positions, positions)
        match = (self.position_ids[:, None, :] == wanted[:, :, None]) & self.mask[:, None, :]
        if not match.any(-1).all():
            row, k = (~match.any(-1)).nonzero()[0].tolist()
            raise InputError(
                f"Position {int(positions[row, k])} is not among the tokens of sequence {row} in this pass."
            )
        return match.to(torch.uint8).argmax(-1)

    def at(self, positions: torch.Tensor) -> torch.Tensor:
        """Mask [B, Q]: the queries of this pass at token positions [B, R] (-1 = none); positions outside it are
        ignored."""
        match = (self.position_ids[:, None, :] == positions[:, :, None]) & (positions >= 0)[:, :, None]
        return match.any(1) & self.mask

    def columns_of_keys(self, size: int) -> torch.Tensor:
        """Position of each of a layer's `size` keys, [B, size]: the last columns, as a layer with a window may keep
        only those."""
        return self.key_position[:, self.key_position.shape[1] - size :]

    def key_columns(self, positions: torch.Tensor, size: int) -> torch.Tensor:
        """Mask [B, S] of the key columns at token positions [B, K] (-1 = none)."""
        match = (self.columns_of_keys(size)[:, None] == positions[:, :, None]) & (positions >= 0)[:, :, None]
        return match.any(1)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the CPU (which torch reports as a plain RuntimeError) had no room for a tensor."""
    refused = isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("not enough memory", "can't allocate memory")
    )
    return refused or isinstance(error, (torch.OutOfMemoryError, MemoryError))


def in_batches(
    ids: Sequence[Sequence[int]],
    step: Callable[[list[int]], None],
    *,
    max_tokens: int = 8192,
    max_rows: int = 256,
    check: Callable[[], None] | None = None,
) -> Iterator[list[int]]:
    """Call `step(indices)` for every batch and yield the indices done; a batch that runs out of memory is halved and
    tried again.

    `check` is called before each batch and may raise (cancellation)."""
    queue = batches([len(row) for row in ids], max_tokens=max_tokens, max_rows=max_rows)
    queue.reverse()
    while queue:
        if check is not None:
            check()
        indices = queue.pop()
        try:
            step(indices)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or len(indices) == 1:
                raise
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            half = len(indices) // 2
            queue += [indices[half:], indices[:half]]
            continue
        yield indices
