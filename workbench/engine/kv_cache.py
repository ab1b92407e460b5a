"""What was fed already: the keys and values of tokens, to be gone on from, cut, picked and merged.

A pass appends its keys to those before it. `torch.cat`, as in transformers' dynamic cache, copies all of them for every
pass; what `prefill` leaves has room behind it, so that it grows where it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from workbench.models.batching import ALIGNED, Batch, pad, sent
from workbench.models.devices import is_cpu
from workbench.models.model import Model
from workbench.models.running_pass import positions_after

MORE = 256  # columns that a cache on an accelerator grows by


@dataclass(eq=False)
class Cached:
    """Tokens that were fed already, with their keys and values. mask and position_ids [B, S]."""

    cache: DynamicCache
    past: Batch

    def fork(self, copies: int = 1) -> Cached:
        """The same past, to be continued independently (`copies` > 1: of one row, for a batch). Nothing is copied until
        it grows."""

        def widen(t: torch.Tensor) -> torch.Tensor:
            return t.expand(copies, *t.shape[1:]) if copies > 1 else t

        twin = _cache(_layer(*map(widen, keys_and_values(layer))) for layer in self.cache.layers)
        p = self.past
        ids, mask, position_ids, real = map(widen, (p.ids, p.mask, p.position_ids, p.real))
        return Cached(twin, Batch(ids, mask, position_ids, "left", real))

    def pick(self, rows: list[int]) -> Cached:
        """The past of some rows only. The cache itself shrinks: this past is not to be used any more."""
        p = self.past
        (index,) = sent([torch.tensor(rows)], p.mask.device)
        for number, layer in enumerate(self.cache.layers):  # one after the other, so that what leaves is freed
            keys, values = keys_and_values(layer)
            here = index.to(keys.device)
            self.cache.layers[number] = _layer(keys.index_select(0, here), values.index_select(0, here))
        return Cached(self.cache, _rows(p, index, rows))

    def first(self, columns: int, rows: Sequence[int] | None = None) -> Cached:
        """The past cut after its first `columns` columns, of the chosen rows (None: all). Only rows that are chosen are
        copied.

        Of all rows the cut is in the same memory: where this past has room to grow, the cut grows over what lies beyond
        it."""
        p, every = self.past, rows is None or list(rows) == list(range(len(self.past.ids)))
        ids, mask, position_ids, real = (t[:, :columns] for t in (p.ids, p.mask, p.position_ids, p.real))
        front = Batch(ids, mask, position_ids, "left", real)
        if every:
            cut = _cache(
                source.first(columns)
                if isinstance(source, GrowingLayer)
                else _layer(*(state[:, :, :columns] for state in keys_and_values(source)))
                for source in self.cache.layers
            )
            return Cached(cut, front)
        assert rows is not None  # it would be every row
        (index,) = sent([torch.tensor(rows)], ids.device)
        chosen = _cache(
            _layer(*(state[index.to(state.device), :, :columns] for state in keys_and_values(source)))
            for source in self.cache.layers
        )
        return Cached(chosen, _rows(front, index, rows))


def _rows(past: Batch, index: torch.Tensor, rows: Sequence[int]) -> Batch:
    """Some rows of a batch: `index` [k] on its device, `rows` the same on the host."""
    ids, mask, position_ids = (t[index] for t in (past.ids, past.mask, past.position_ids))
    return Batch(ids, mask, position_ids, past.side, past.real[list(rows)])


def keys_and_values(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values [B, KV, S, D] in a layer of a cache (of transformers) that has read something."""
    keys, values = layer.keys, layer.values
    assert keys is not None and values is not None
    return keys, values


class GrowingLayer(DynamicLayer):
    """Keys and values [B, KV, S, D] of one layer at the beginning of a buffer that has room for `room` columns in all,
    and for `more` beyond those that are needed where it has to be made anew."""

    def __init__(self, room: int, more: int = 0):
        super().__init__()
        self.room, self.more = room, more
        self.buffers: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args, **_kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            _start(self, key_states[..., :0, :], value_states[..., :0, :])
        before = self.get_seq_length()
        end = before + key_states.shape[-2]
        buffers = self.buffers
        if buffers is None or end > buffers[0].shape[-2]:
            buffers = self._empty(key_states, end), self._empty(value_states, end)
            if before:
                buffers[0][..., :before, :], buffers[1][..., :before, :] = keys_and_values(self)
            self.buffers = buffers
        for buffer, new in zip(buffers, (key_states, value_states)):
            buffer[..., before:end, :] = new
        self.keys, self.values = buffers[0][..., :end, :], buffers[1][..., :end, :]
        return self.keys, self.values

    def _empty(self, new: torch.Tensor, size: int) -> torch.Tensor:
        """A buffer for states like `new`, of `size` columns at least."""
        return new.new_empty(*new.shape[:-2], max(self.room, size + self.more), new.shape[-1])

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows only, or repeat them; their buffer is made when they grow."""
        super().batch_select_indices(indices)
        self.buffers = None

    def first(self, columns: int) -> GrowingLayer:
        """The first `columns` columns, in the same buffer."""
        cut = GrowingLayer(self.room, self.more)
        _start(cut, *(state[..., :columns, :] for state in keys_and_values(self)))
        cut.buffers = self.buffers
        return cut


def _start(layer: DynamicLayer, keys: torch.Tensor, values: torch.Tensor) -> None:
    """Let a new layer start from keys and values as they are: `update` would copy them, and `lazy_initialization` sends
    two empty tensors to the device."""
    layer.dtype, layer.device, layer.is_initialized = keys.dtype, keys.device, True
    layer.keys, layer.values = keys, values


def _layer(keys: torch.Tensor, values: torch.Tensor) -> DynamicLayer:
    """A layer that starts from keys and values as they are."""
    layer = DynamicLayer()
    _start(layer, keys, values)
    return layer


def _cache(layers: Iterable[DynamicLayer]) -> DynamicCache:
    """A cache that starts from these layers."""
    cache = DynamicCache()
    cache.layer_class_to_replicate = WholeLayer  # of those that are still to come
    cache.layers.extend(layers)
    return cache


def cache_of(layers: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> DynamicCache:
    """A cache that holds these keys and values [B, KV, S, D] of every layer, all of them: layers that attend over a
    window keep what lies before it too."""
    return _cache(_layer(keys, values) for keys, values in layers)


def merge(pasts: Sequence[Cached]) -> Cached:
    """Pasts of any lengths as one batch, rows in their order, padded on the left."""
    if len(pasts) == 1:
        return pasts[0]
    size = max(p.past.mask.shape[1] for p in pasts)

    def joined(parts: Sequence[torch.Tensor], dim: int) -> torch.Tensor:
        """Parts [B, ..., S, ...], S at `dim` counted from the end, filled up with zeros in front."""
        return torch.cat([torch.nn.functional.pad(x, [0, 0] * (-dim - 1) + [size - x.shape[dim], 0]) for x in parts])

    layers = (zip(*map(keys_and_values, same)) for same in zip(*(p.cache.layers for p in pasts)))
    cache = _cache(_layer(joined(keys, -2), joined(values, -2)) for keys, values in layers)
    ids, mask, position_ids, real = (
        joined([getattr(p.past, name) for p in pasts], -1) for name in ("ids", "mask", "position_ids", "real")
    )
    return Cached(cache, Batch(ids, mask, position_ids, "left", real))


class WholeLayer(DynamicLayer):
    """A layer of transformers' dynamic cache whose first tensors are not made from Python numbers, which would be two
    copies to the device."""

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        _start(self, key_states[..., :0, :], value_states[..., :0, :])


class WindowLayer(DynamicSlidingWindowLayer):
    """The same of a layer that attends over a window."""

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        _start(self, key_states[..., :0, :], value_states[..., :0, :])


def empty_cache(model: Model, columns: int) -> DynamicCache:
    """A cache that has read nothing, of the kinds of layers that the architecture has, for `columns` and some more.

    On an accelerator it grows where it is: what `torch.cat` copies for every token is as much as attention reads."""
    cache = DynamicCache(config=model.hf.config)
    layers: list[Any] = cache.layers
    for number, layer in enumerate(layers):
        if type(layer) is DynamicLayer:
            layers[number] = WholeLayer() if is_cpu(model.device) else GrowingLayer(columns + MORE, MORE)
        elif type(layer) is DynamicSlidingWindowLayer:
            layers[number] = WindowLayer(layer.sliding_window)
    if not layers:  # they are made when they are first written to
        cache.layer_class_to_replicate = WholeLayer
    return cache


def select_rows(cache: DynamicCache, index: torch.Tensor) -> None:
    """Keep these rows [k] of a cache only, or repeat them."""
    layers: list[Any] = cache.layers  # of whatever kinds the architecture has
    there = {index.device: index}  # a model spread over several devices has its cache there too
    for layer in layers:
        device = getattr(layer, "device", index.device)
        layer.batch_select_indices(there.setdefault(device, index.to(device)))


def feed(
    model: Model, rows: Sequence[Sequence[int]], before: Cached | None, *, last_logits: int = 1
) -> tuple[Cached, torch.Tensor]:
    """Feed token rows (left-padded) after `before`; returns the grown past and the logits of the last `last_logits`
    columns."""
    batch = _after(model, rows, before)
    cache = before.cache if before is not None else _cache(())
    here = positions_after(batch, before.past if before is not None else None)
    with torch.no_grad():
        out = model.forward(batch, cache=cache, here=here, last_logits=last_logits)
    return Cached(cache, here.whole or batch), out.logits[:, -last_logits:].float()


def _after(model: Model, rows: Sequence[Sequence[int]], before: Cached | None) -> Batch:
    """Token rows as a batch, padded on the left, whose positions count on after `before`."""
    first = None if before is None else before.past.sizes
    return pad(rows, pad_id=model.pad_id, side="left", device=model.device, first=first)


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
    end, and a CPU's caches hold the block. Where blocks run more than once, whose last keys are not those of the last
    layer, the whole pass runs."""
    if model.facts.why_not("blocks_run_once") is not None:
        return feed(model, rows, before)[0]
    batch = _after(model, rows, before)
    width, past = batch.ids.shape[1], 0 if before is None else before.past.mask.shape[1]
    padding = width - min(batch.sizes)
    at_once = model.tokens_at_once() // len(rows) if before is not None or padding else width
    step = max(at_once, padding + ALIGNED)  # the first block holds a token of every row
    layers = [GrowingLayer(past + width + room) for _ in range(model.n_layers)]
    for layer, source in zip(layers, before.cache.layers if before is not None else ()):
        _start(layer, *keys_and_values(source))
    start = 0
    while start < width:
        stop = min(width, start + step - (past + start + step) % ALIGNED) if start + step < width else width
        ids, mask, positions, real = (t[:, start:stop] for t in (batch.ids, batch.mask, batch.position_ids, batch.real))
        block = Batch(ids, mask, positions, "left", real)
        cache, here = _KeysOnly(layers), positions_after(block, before.past if before is not None else None)
        with torch.no_grad(), suppress(_Remembered):
            model.forward(block, cache=cache, here=here, last_logits=1)
        # last layers may use the keys of earlier ones
        before = Cached(_cache(layer for layer in layers if layer.is_initialized), here.whole or block)
        start = stop
    assert before is not None  # every row has a token
    return before
