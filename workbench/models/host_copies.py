"""Copies between the host and a device that nobody waits for before the device has its next work."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch

from workbench.models.devices import has_pinned_memory, is_cpu

Key = TypeVar("Key", bound=Hashable)
Label = TypeVar("Label")


def leaving(found: Mapping[Key, torch.Tensor]) -> Callable[[], dict[Key, torch.Tensor]]:
    """Begin to copy tensors of any shapes to the host. The function that is returned waits for them, and gives them
    with their shapes and dtypes.

    All of one device and dtype go in one copy into pinned memory, beside what the device computes next. Tensors of the
    host are given as they are, and so is the memory of a device without events: copied before this returns."""
    groups: dict[tuple[torch.device, torch.dtype], list[Key]] = {}
    for key, x in found.items():
        groups.setdefault((x.device, x.dtype), []).append(key)
    keys = list(found)
    begun = [(some, _begun([found[key] for key in some])) for some in groups.values()]

    def arrived() -> dict[Key, torch.Tensor]:
        out = {key: x for some, wait in begun for key, x in zip(some, wait())}
        return {key: out[key] for key in keys}

    return arrived


def _begun(tensors: Sequence[torch.Tensor]) -> Callable[[], Sequence[torch.Tensor]]:
    """`leaving` of tensors of one device and dtype."""
    device = tensors[0].device
    if is_cpu(device):
        return lambda: tensors
    shapes = [x.shape for x in tensors]
    together = tensors[0].reshape(-1) if len(tensors) == 1 else torch.cat([x.reshape(-1) for x in tensors])
    module = torch.get_device_module(device)
    event = None
    if hasattr(module, "Event") and hasattr(module, "Stream"):
        beside = module.Stream(device)
        beside.wait_stream(module.current_stream(device))
        with module.stream(beside):
            host = together.to("cpu", non_blocking=True)  # PyTorch makes it in pinned memory
            event = beside.record_event()
    else:
        host = together.cpu()
    kept = [together]  # until it is copied: the memory of a stream may be given to the next who asks

    def arrived() -> Sequence[torch.Tensor]:
        if event is not None:
            event.synchronize()
        kept.clear()
        return [x.view(shape) for x, shape in zip(host.split([shape.numel() for shape in shapes]), shapes)]

    return arrived


def arrivals(
    batches: Iterable[tuple[Label, Mapping[Key, torch.Tensor]]],
) -> Iterator[tuple[Label, dict[Key, torch.Tensor]]]:
    """(label, tensors on the host) of every batch, in order. Those of a device are waited for when the next batch has
    been asked for: `batches` launches its work before it yields. Where the next one raises, the last is given first:
    what is done is not lost."""
    waiting: tuple[Label, Callable[[], dict[Key, torch.Tensor]]] | None = None
    stopped: Exception | None = None
    upcoming = iter(batches)
    while stopped is None:
        try:
            label, found = next(upcoming)
        except StopIteration:
            break
        except Exception as error:
            stopped = error
            continue
        there, begun = all(is_cpu(x.device) for x in found.values()), (label, leaving(found))
        if waiting is not None:
            yield waiting[0], waiting[1]()
        waiting = begun
        if there:  # nothing to wait for: no batch is held for longer than it takes
            waiting = None
            yield label, begun[1]()
    if waiting is not None:
        yield waiting[0], waiting[1]()
    if stopped is not None:
        raise stopped


def arriving(x: torch.Tensor, device: torch.device | str, dtype: torch.dtype | None = None) -> torch.Tensor:
    """`x` on a device, in another dtype where one is given. From the host it goes through pinned memory, and nobody
    waits for it."""
    dtype = x.dtype if dtype is None else dtype
    if not is_cpu(x.device) or not has_pinned_memory(device):
        return x.to(device, dtype)
    return x.to(dtype).pin_memory().to(device, non_blocking=True)


class Resident:
    """A tensor wherever it is needed: sent once to each device, in each dtype."""

    def __init__(self, x: torch.Tensor):
        self._x = x
        self._there: dict[tuple[torch.device, torch.dtype], torch.Tensor] = {}

    def on(self, device: torch.device, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The tensor there."""
        key = device, self._x.dtype if dtype is None else dtype
        if key not in self._there:
            self._there[key] = arriving(self._x, *key)
        return self._there[key]
