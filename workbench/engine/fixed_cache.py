"""A key/value cache of fixed size: every step writes into the same memory and reads all of it, under a mask.

So each step is the same operations on the same tensors, which a device with graphs can record and run again. Where the
next token goes, and which columns are seen, are numbers on the device that the step itself moves on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import CacheLayerMixin

from workbench.engine.kv_cache import GrowingLayer, WholeLayer, WindowLayer, keys_and_values
from workbench.models.batching import ALIGNED, sent


@dataclass(eq=False)
class CacheColumns:
    """The columns of the layers of one kind: those that attend to everything, or those with the same window.

    last: [1] int64, the column of the newest token; hidden: [B, 1, 1, columns], what is added to the scores: 0, and the
    dtype's smallest number in columns that are not seen. The first column of a window is never seen: columns that leave
    the window before it is full leave there."""

    last: torch.Tensor
    hidden: torch.Tensor
    window: int | None
    begun: int  # columns that it was made with

    @classmethod
    def after(cls, real: torch.Tensor, room: int, window: int | None, like: torch.Tensor) -> CacheColumns:
        """Of rows whose columns held are tokens where `real` [B, held] says so, and that grow by `room`; in the dtype
        and on the device of `like`."""
        never = torch.zeros((len(real), int(window is not None)), dtype=torch.bool)
        held = torch.cat([never, real], 1)
        begun = held.shape[1]
        spare = -(begun + room) % ALIGNED  # kernels copy a mask of another width for every layer
        seen = torch.cat([held, torch.zeros((len(real), room + spare), dtype=torch.bool)], 1)
        last = torch.tensor([begun - 1])
        unseen, last = sent([(~seen)[:, None, None].long(), last], like.device)
        hidden = like.new_zeros(unseen.shape).masked_fill_(unseen.bool(), torch.finfo(like.dtype).min)
        return cls(last, hidden, window, begun)

    @property
    def size(self) -> int:
        return self.hidden.shape[-1]

    def move(self) -> None:
        """Go on to the next token: its column is seen, and the one that its window has left is not."""
        self.last.add_(1)
        self.hidden.index_fill_(3, self.last, 0.0)
        if self.window is not None:
            gone = (self.last - self.window).clamp_(min=0)
            self.hidden.index_fill_(3, gone, torch.finfo(self.hidden.dtype).min)


class FixedLayer(CacheLayerMixin):
    """Keys and values [B, KV, columns, D] of one layer, of which each step writes the newest column."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, columns: CacheColumns):
        super().__init__()
        self.columns, self.is_sliding = columns, columns.window is not None
        self.keys, self.values = self._filled(keys), self._filled(values)
        self.device, self.dtype, self.is_initialized = keys.device, keys.dtype, True

    def _filled(self, held: torch.Tensor) -> torch.Tensor:
        """What is held, in memory of the full size; zeros elsewhere: what is hidden still must be a number."""
        out = held.new_zeros(*held.shape[:2], self.columns.size, held.shape[-1])
        start = int(self.is_sliding)
        out[:, :, start : start + held.shape[2]] = held
        return out

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing: it is made with what it holds."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the newest column; → all columns."""
        keys, values = keys_and_values(self)
        keys.index_copy_(2, self.columns.last, key_states)
        values.index_copy_(2, self.columns.last, value_states)
        return keys, values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """All columns, from the first."""
        return self.columns.size, 0

    def get_seq_length(self) -> int:
        """Columns that any token may be in."""
        return self.columns.size

    def get_max_length(self) -> int:
        return self.columns.size

    def held(self, count: int, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of some rows [k] what a layer that has read `count` columns since it was made keeps: [k, KV, held, D]."""
        start = int(self.is_sliding)
        stop = self.columns.begun + count
        if self.columns.window is not None:
            start = max(start, stop - self.columns.window + 1)
        keys, values = keys_and_values(self)
        return keys[index, :, start:stop], values[index, :, start:stop]


def fixed(
    held: Sequence[tuple[torch.Tensor, torch.Tensor, int | None]], real: torch.Tensor, room: int
) -> tuple[DynamicCache, dict[int | None, CacheColumns]]:
    """A cache with room for `room` tokens more, from keys and values [B, KV, held, D] and the window of every layer;
    `real` [B, columns]: which columns are tokens, on the host. With the columns by window (None: all)."""
    kinds: dict[int | None, CacheColumns] = {}
    cache = DynamicCache()
    layers: list[Any] = cache.layers
    for keys, values, window in held:
        if window not in kinds:
            kinds[window] = CacheColumns.after(real[:, real.shape[1] - keys.shape[2] :], room, window, keys)
        layers.append(FixedLayer(keys, values, kinds[window]))
    return cache, kinds


def windows(cache: DynamicCache) -> list[int | None] | None:
    """The window of every layer of a cache that is filled (None: it attends to all columns), or None for a cache of
    which a fixed one cannot be made: with layers of other kinds, or on several devices."""
    out: list[int | None] = []
    layers: list[Any] = cache.layers
    for layer in layers:
        if type(layer) not in (WholeLayer, GrowingLayer, WindowLayer) or layer.device != layers[0].device:
            return None
        out.append(layer.sliding_window if isinstance(layer, WindowLayer) else None)
    return out or None
