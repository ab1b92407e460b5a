"""Graphs of a virtual device: operations recorded once, and run again as one launch, under CUDA's rules.

As on CUDA, what is recorded is not run: tensors that were there before have the numbers they had, and those that the
recording made hold no numbers (NaN) before the first replay. To know shapes, operations are run all the same; the
storages that they write to are put back at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager

import torch
from torch.utils._pytree import tree_leaves

from tests.support.device_counts import count, source_line

_recording: list[Graph] = []


class Graph:
    """As `torch.cuda.CUDAGraph`: `capture_begin`, `capture_end`, `replay`, `reset`."""

    def __init__(self, keep_graph: bool = False) -> None:
        self.steps: list[Callable[[], None]] = []
        self._made: dict[int, torch.Tensor] = {}  # storages born in the recording, by their address
        self._before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # storages written to: (bytes, what they were)
        self._ready = False

    def capture_begin(self, pool: object = None, capture_error_mode: str = "global") -> None:
        if _recording:
            raise RuntimeError("a graph is being captured already")
        self.reset()
        _recording.append(self)

    def capture_end(self) -> None:
        if _recording != [self]:
            raise RuntimeError("capture_end without capture_begin")
        _recording.clear()
        for storage, numbers in self._before.values():
            storage.copy_(numbers)
        for storage in self._made.values():
            storage.fill_(255)  # NaN in every float
        self._before.clear()
        self._ready = True

    def replay(self) -> None:
        if not self._ready:
            raise RuntimeError("a graph is replayed that was not captured")
        count("launch", "graph replay")
        for step in self.steps:
            step()

    def reset(self) -> None:
        self.steps.clear()
        self._made.clear()
        self._before.clear()
        self._ready = False

    def pool(self) -> tuple[int, int]:
        return (0, id(self))

    def before_write(self, raw: torch.Tensor) -> None:
        """Remember what a storage holds that is about to be written to."""
        key = raw.untyped_storage().data_ptr()
        if key and key not in self._made and key not in self._before:
            whole = _bytes(raw)
            self._before[key] = (whole, whole.clone())

    def record(self, operation: Callable, args: tuple, kwargs: dict, out: object, mutable: bool) -> None:
        """`out` = operation(*args, **kwargs), to be done again into the same storages."""
        if mutable:
            self.steps.append(lambda: operation(*args, **kwargs))
            return
        given = {_address(x) for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        outs = [x for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        fresh = [x for x in outs if _address(x) and _address(x) not in given]
        for x in fresh:
            self._made.setdefault(_address(x), _bytes(x))
        if not fresh:
            return

        def again() -> None:
            found = [x for x in tree_leaves(operation(*args, **kwargs)) if isinstance(x, torch.Tensor)]
            for target, numbers in zip(outs, found, strict=True):
                if target.shape != numbers.shape:
                    raise RuntimeError(f"{operation}: a replay gave another shape than the capture")
                target.copy_(numbers)

        self.steps.append(again)


@contextmanager
def graph(cuda_graph: Graph, pool: object = None, stream: object = None, capture_error_mode: str = "thread_local"):
    """As `torch.cuda.graph`: what is done in the block is captured into the graph."""
    cuda_graph.capture_begin(pool, capture_error_mode)
    try:
        yield
    except BaseException:
        _recording.clear()
        cuda_graph.reset()
        raise
    cuda_graph.capture_end()


def recording() -> Graph | None:
    """The graph that is being captured."""
    return _recording[0] if _recording else None


def not_captured(what: str) -> None:
    """Refuse what CUDA refuses while a graph is captured: whatever makes the host wait."""
    if _recording:
        raise RuntimeError(f"{what}: operation not permitted when stream is capturing ({source_line()})")


def _address(raw: torch.Tensor) -> int:
    return raw.untyped_storage().data_ptr()


def _bytes(raw: torch.Tensor) -> torch.Tensor:
    """The whole storage behind a tensor, as bytes."""
    return torch.empty(0, dtype=torch.uint8).set_(raw.untyped_storage())
