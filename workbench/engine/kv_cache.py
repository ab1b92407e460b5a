"""What was fed already: the keys and values of tokens, to be gone on from, cut, picked and merged.

A pass appends its keys to those before it. `torch.cat`, as in transformers' dynamic cache, copies all of them for every
pass; what `prefill` leaves has room behind it, so that it grows where it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from workbench.models.batching import ALIGNED, Batch, pad
from workbench.models.model import Model


@dataclass(eq=False)
class Cached:
    """Tokens that were fed already, with their keys and values. mask and position_ids [B, S]."""

    cache: DynamicCache
    past: Batch

    def fork(self, copies: int = 1) -> Cached:
        """The same past, to be continued independently (`copies` > 1: of one row, for a batch). Nothing is copied until
        it grows."""
        twin = _cache_of(
            (source.keys.expand(copies, -1, -1, -1), source.values.expand(copies, -1, -1, -1))
            if copies > 1
            else (source.keys, source.values)
            for source in self.cache.layers
        )
        widen = (lambda t: t.expand(copies, *t.shape[1:])) if copies > 1 else (lambda t: t)
        p = self.past
        return Cached(twin, Batch(widen(p.ids), widen(p.mask), widen(p.position_ids), widen(p.lengths), "left"))

    def pick(self, rows: list[int]) -> Cached:
        """The past of some rows only. The cache itself shrinks: this past is not to be used any more."""
        index, p = torch.tensor(rows, device=self.past.mask.device), self.past
        for number, layer in enumerate(self.cache.layers):  # one after the other, so that what leaves is freed
            here = index.to(layer.keys.device)
            self.cache.layers[number] = _layer(layer.keys.index_select(0, here), layer.values.index_select(0, here))
        return Cached(self.cache, Batch(p.ids[index], p.mask[index], p.position_ids[index], p.lengths[index], p.side))

    def first(self, columns: int, rows: Sequence[int] | None = None) -> Cached:
        """The past cut after its first `columns` columns, of the chosen rows (None: all). Only rows that are chosen are
        copied.

        Of all rows the cut is in the same memory: where this past has room to grow, the cut grows over what lies beyond
        it."""
        p, every = self.past, rows is None or list(rows) == list(range(len(self.past.ids)))
        ids, mask, position_ids = (t[:, :columns] for t in (p.ids, p.mask, p.position_ids))
        if every:
            cache = DynamicCache()
            cache.layers = [
                source.first(columns)
                if isinstance(source, _Growing)
                else _layer(source.keys[:, :, :columns], source.values[:, :, :columns])
                for source in self.cache.layers
            ]
            return Cached(cache, Batch(ids, mask, position_ids, mask.sum(1), "left"))
        index = torch.tensor(rows, device=ids.device)
        states = (
            (
                source.keys[index.to(source.keys.device), :, :columns],
                source.values[index.to(source.values.device), :, :columns],
            )
            for source in self.cache.layers
        )
        return Cached(
            _cache_of(states), Batch(ids[index], mask[index], position_ids[index], mask[index].sum(1), "left")
        )


class _Growing(DynamicLayer):
    """Keys and values [B, KV, S, D] of one layer at the beginning of a buffer that has room for `room` columns in
    all."""

    def __init__(self, room: int):
        super().__init__()
        self.room, self.buffers = room, None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args, **_kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before = self.get_seq_length()
        end = before + key_states.shape[-2]
        if self.buffers is None or end > self.buffers[0].shape[-2]:
            self.buffers = tuple(
                new.new_empty(*new.shape[:-2], max(self.room, end), new.shape[-1]) for new in (key_states, value_states)
            )
            if before:
                self.buffers[0][..., :before, :], self.buffers[1][..., :before, :] = self.keys, self.values
        for buffer, new in zip(self.buffers, (key_states, value_states)):
            buffer[..., before:end, :] = new
        self.keys, self.values = (buffer[..., :end, :] for buffer in self.buffers)
        return self.keys, self.values

    def first(self, columns: int) -> _Growing:
        """The first `columns` columns, in the same buffer."""
        cut = _layer(self.keys[..., :columns, :], self.values[..., :columns, :], _Growing(self.room))
        cut.buffers = self.buffers
        return cut


def _layer(keys: torch.Tensor, values: torch.Tensor, layer: DynamicLayer | None = None) -> DynamicLayer:
    """A layer that starts from keys and values as they are: `update` would copy them."""
    layer = DynamicLayer() if layer is None else layer
    layer.lazy_initialization(keys, values)
    layer.keys, layer.values = keys, values
    return layer


def _cache_of(states: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> DynamicCache:
    """A cache that starts from the keys and values of every layer."""
    cache = DynamicCache()
    cache.layers = [_layer(keys, values) for keys, values in states]
    return cache


def merge(pasts: Sequence[Cached]) -> Cached:
    """Pasts of any lengths as one batch, rows in their order, padded on the left."""
    if len(pasts) == 1:
        return pasts[0]
    size = max(p.past.mask.shape[1] for p in pasts)

    def joined(parts: list[torch.Tensor], dim: int) -> torch.Tensor:
        """Parts [B, ..., S, ...], S at `dim` counted from the end, filled up with zeros in front."""
        return torch.cat([torch.nn.functional.pad(x, [0, 0] * (-dim - 1) + [size - x.shape[dim], 0]) for x in parts])

    layers = zip(*(p.cache.layers for p in pasts))
    cache = _cache_of((joined([x.keys for x in same], -2), joined([x.values for x in same], -2)) for same in layers)
    columns = (joined([getattr(p.past, name) for p in pasts], -1) for name in ("ids", "mask", "position_ids"))
    return Cached(cache, Batch(*columns, torch.cat([p.past.lengths for p in pasts]), "left"))


def feed(
    model: Model, rows: Sequence[Sequence[int]], before: Cached | None, *, last_logits: int = 1
) -> tuple[Cached, torch.Tensor]:
    """Feed token rows (left-padded) after `before`; returns the grown past and the logits of the last `last_logits`
    columns."""
    batch = _after(model, rows, before)
    cache = before.cache if before is not None else DynamicCache()
    with torch.no_grad():
        out = model.forward(
            batch, cache=cache, past=before.past if before is not None else None, last_logits=last_logits
        )
    return _grown(before, batch, cache), out.logits[:, -last_logits:].float()


def _after(model: Model, rows: Sequence[Sequence[int]], before: Cached | None) -> Batch:
    """Token rows as a batch, padded on the left, whose positions count on after `before`."""
    batch = pad(rows, pad_id=model.pad_id, side="left", device=model.device)
    if before is None:
        return batch
    start = torch.where(before.past.mask, before.past.position_ids, -1).amax(1, keepdim=True) + 1
    return replace(batch, position_ids=torch.where(batch.mask, batch.position_ids + start, 0))


def _grown(before: Cached | None, batch: Batch, cache: DynamicCache) -> Cached:
    if before is None:
        return Cached(cache, batch)
    columns = (
        torch.cat([getattr(before.past, name), getattr(batch, name)], 1) for name in ("ids", "mask", "position_ids")
    )
    return Cached(cache, Batch(*columns, before.past.lengths + batch.lengths, "left"))


class _Remembered(Exception):
    """Raised once the last layer has its keys and values: what a pass would still compute is not needed to go on from
    there."""


class _KeysOnly(DynamicCache):
    """A cache that ends a pass with the last thing that it keeps of it."""

    def __init__(self, layers: list):
        super().__init__()
        self.layers = layers

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        both = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        if layer_idx == len(self.layers) - 1:
            raise _Remembered
        return both


def prefill(model: Model, rows: Sequence[Sequence[int]], before: Cached | None, *, room: int = 0) -> Cached:
    """The past of token rows (left-padded) after `before` (used up), as `feed` leaves it, without what follows the last
    layer's keys, and with room for `room` columns more.

    Where a mask is needed, they are read in blocks of columns: attention in a block sees only what comes before its
    end, and a CPU's caches hold the block."""
    batch = _after(model, rows, before)
    width, past = batch.ids.shape[1], 0 if before is None else before.past.mask.shape[1]
    padding = width - int(batch.lengths.min())
    at_once = model.tokens_at_once() // len(rows) if before is not None or padding else width
    step = max(at_once, padding + ALIGNED)  # the first block holds a token of every row
    layers = [_Growing(past + width + room) for _ in range(model.n_layers)]
    for layer, source in zip(layers, before.cache.layers if before is not None else ()):
        _layer(source.keys, source.values, layer)
    start = 0
    while start < width:
        stop = min(width, start + step - (past + start + step) % ALIGNED) if start + step < width else width
        ids, mask, positions = (t[:, start:stop] for t in (batch.ids, batch.mask, batch.position_ids))
        block = Batch(ids, mask, positions, mask.sum(1), "left")
        cache = _KeysOnly(layers)
        with torch.no_grad(), suppress(_Remembered):
            model.forward(block, cache=cache, past=before.past if before is not None else None, last_logits=1)
        cache = DynamicCache()
        cache.layers = [
            layer for layer in layers if layer.is_initialized
        ]  # last layers may use the keys of earlier ones
        before = _grown(before, block, cache)
        start = stop
    return before
