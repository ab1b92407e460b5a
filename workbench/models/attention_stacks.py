"""Attention rows of several layers, reduced together: one matrix product a layer, and the rest once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from workbench.models.attention_weights import KeyMasking, Rows, Weights
from workbench.models.devices import is_cpu
from workbench.models.running_pass import PassPositions, positions

# Scores held at once: on a CPU as many as stay in its caches, elsewhere more (256 MiB), as launches count there.
ON_CPU, ELSEWHERE = 1 << 18, 1 << 26


@dataclass(eq=False)
class _Stack:
    """Products of queries and keys of layers that are masked alike: [room, B, H, R, S], filled as far as there are
    layers."""

    masking: KeyMasking
    rows: Rows
    products: torch.Tensor
    layers: list[int] = field(default_factory=list)

    def takes(self, masking: KeyMasking, shape: Sequence[int], device: torch.device) -> bool:
        mine = self.products
        return mine.device == device and mine.shape[1:] == shape and self.masking.alike(masking)

    def rows_of_layers(self) -> torch.Tensor:
        return self.masking.scores(self.products[: len(self.layers)], self.rows).softmax(-1)


@dataclass(eq=False)
class StackedRows:
    """What is read of a pass in `layers`: `reduce(weights [n, B, H, R, S])` → [n, ...] is left in `seen` under its
    layer."""

    layers: Sequence[int]
    reduce: Callable[[torch.Tensor], torch.Tensor]
    seen: dict[int, torch.Tensor]
    _pass: PassPositions | None = None
    _left: int = 0  # layers that this pass has still to come to
    _stacks: list[_Stack] = field(default_factory=list)

    @torch.no_grad()
    def read(self, layer: int, weigh: Weights, rows: Rows) -> None:
        """Take up the rows of a layer of the pass in progress."""
        if self._pass is not positions():
            self._pass, self._left = positions(), len(self.layers)
            self._stacks.clear()
        stack = self._stack_for(weigh, rows)
        weigh.products(rows, out=stack.products[len(stack.layers)])
        stack.layers.append(layer)
        self._left -= 1
        for one in list(self._stacks):
            if self._left == 0 or len(one.layers) == len(one.products):
                self._stacks.remove(one)
                self.seen.update(zip(one.layers, self.reduce(one.rows_of_layers())))

    def _stack_for(self, weigh: Weights, rows: Rows) -> _Stack:
        B, H, Q, _ = weigh.query.shape
        count = len(range(Q)[rows]) if isinstance(rows, slice) else rows.shape[-1]
        shape, device, masking = (B, H, count, weigh.key.shape[2]), weigh.query.device, weigh.masking
        for stack in self._stacks:
            if stack.takes(masking, shape, device):
                return stack
        most = ON_CPU if is_cpu(device) else ELSEWHERE
        room = max(1, min(self._left, most // (B * H * count * shape[-1])))
        self._stacks.append(_Stack(masking, rows, torch.empty(room, *shape, device=device)))
        return self._stacks[-1]
