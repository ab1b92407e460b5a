"""The devices of the virtual accelerator: how many there are, what they hold, what they were given to do, and what
`torch.virtual` answers. Tensors on them are in tests/virtual_accelerator.py."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from tests.support.device_counts import count, source_line
from tests.support.device_graphs import Graph, graph, not_captured, recording

NAME = "virtual"


@dataclass
class Device:
    """One virtual device: bytes held, and the copies that nothing has waited for yet, by stream."""

    limit: int
    held: int = 0
    peak: int = 0
    pending: dict[int, list[Any]] = field(default_factory=dict)

    def settle(self, stream: int | None = None) -> None:
        """All that this stream (None: any) was given is done: copies have their numbers now."""
        for key in list(self.pending) if stream is None else [stream]:
            for done in self.pending.pop(key, []):
                done()


devices_here: list[Device] = []
at = [0, 0]  # index of the device, number of the stream
storages: weakref.WeakValueDictionary[int, Allocation] = weakref.WeakValueDictionary()


class Allocation:
    """The bytes of one storage, held until no tensor is over it."""

    def __init__(self, storage: Any, index: int) -> None:
        self.device = None
        device, self.nbytes, self.index = device_at(index), storage.nbytes(), index
        if device.held + self.nbytes > device.limit:
            raise torch.OutOfMemoryError(
                f"{NAME} out of memory. Tried to allocate {self.nbytes} bytes; {NAME}:{index} has {device.limit} "
                f"bytes, of which {device.limit - device.held} are free. ({source_line()})"
            )
        self.device = device
        device.held += self.nbytes
        device.peak = max(device.peak, device.held)

    def __del__(self) -> None:
        if self.device is not None:
            self.device.held -= self.nbytes


def allocation_of(storage: Any, index: int) -> Allocation:
    """The bytes of a storage on a device: those that other tensors over it hold, or new ones."""
    found = storages.get(storage._cdata)
    if found is None or found.index != index:
        found = storages[storage._cdata] = Allocation(storage, index)
    return found


def device_at(index: int | None = None) -> Device:
    index = at[0] if index is None else index
    if not 0 <= index < len(devices_here):
        raise RuntimeError(f"{NAME}: invalid device ordinal {index}; {len(devices_here)} are present ({source_line()})")
    return devices_here[index]


def index_of(device: Any = None) -> int:
    """The index of a device given as torch takes one: None, 1, "virtual:1", torch.device("virtual")."""
    index = device if isinstance(device, int) or device is None else torch.device(device).index
    return at[0] if index is None else index


def host_waits(what: str, kind: str = "wait", index: int | None = None) -> None:
    """The host waits for the stream that it is on."""
    not_captured(what)
    count(kind, what)
    device_at(index).settle(at[1])


class Stream:
    """A queue of work. All of them run at once here: what matters is which copies have been waited for."""

    _numbers = iter(range(1, 1 << 62))

    def __init__(self, device: Any = None, priority: int = 0) -> None:
        self.index, self.number = index_of(device), next(self._numbers)

    @property
    def device(self) -> torch.device:
        return torch.device(NAME, self.index)

    def synchronize(self) -> None:
        not_captured("Stream.synchronize")
        count("wait", "Stream.synchronize")
        device_at(self.index).settle(self.number)

    def record_event(self, event: Event | None = None) -> Event:
        event = Event() if event is None else event
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        self._after(event.before)

    def wait_stream(self, stream: Stream) -> None:
        self._after(device_at(stream.index).pending.get(stream.number, []))

    def _after(self, copies: list[Any]) -> None:
        """Whoever waits for this stream waits for these copies too."""
        device_at(self.index).pending.setdefault(self.number, []).extend(copies)


class Event:
    """A point in a stream: `synchronize` waits for what the stream was given before it, and for nothing else."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False) -> None:
        self.before: list[Any] = []

    def record(self, stream: Stream | None = None) -> None:
        index, number = (stream.index, stream.number) if stream is not None else tuple(at)
        self.before = list(device_at(index).pending.get(number, []))

    def wait(self, stream: Stream | None = None) -> None:
        (stream or current_stream()).wait_event(self)

    def query(self) -> bool:
        self._done()
        return True

    def synchronize(self) -> None:
        not_captured("Event.synchronize")
        count("event_wait", "Event.synchronize")
        self._done()

    def _done(self) -> None:
        for done in self.before:
            done()
        self.before = []


def current_stream(device: Any = None) -> Stream:
    stream = Stream.__new__(Stream)
    stream.index, stream.number = index_of(device), at[1]
    return stream


class Module:
    """What `torch.virtual` answers."""

    Stream, Event, Graph, CUDAGraph = Stream, Event, Graph, Graph
    graph, current_stream = staticmethod(graph), staticmethod(current_stream)

    def is_available(self) -> bool:
        return bool(devices_here)

    def is_initialized(self) -> bool:
        return bool(devices_here)

    def device_count(self) -> int:
        return len(devices_here)

    def current_device(self) -> int:
        return at[0]

    def set_device(self, device: Any) -> None:
        device_at(index_of(device))
        at[0] = index_of(device)

    @contextmanager
    def device(self, device: Any) -> Iterator[None]:
        before, at[0] = at[0], index_of(device)
        try:
            yield
        finally:
            at[0] = before

    @contextmanager
    def stream(self, stream: Stream | None) -> Iterator[None]:
        before = at[1]
        at[1] = before if stream is None else stream.number
        try:
            yield
        finally:
            at[1] = before

    def synchronize(self, device: Any = None) -> None:
        not_captured("synchronize")
        count("wait", "synchronize")
        device_at(index_of(device)).settle()

    def get_device_name(self, device: Any = None) -> str:
        return f"virtual accelerator {index_of(device)}"

    def mem_get_info(self, device: Any = None) -> tuple[int, int]:
        one = device_at(index_of(device))
        return one.limit - one.held, one.limit

    def memory_allocated(self, device: Any = None) -> int:
        return device_at(index_of(device)).held

    def max_memory_allocated(self, device: Any = None) -> int:
        return device_at(index_of(device)).peak

    def reset_peak_memory_stats(self, device: Any = None) -> None:
        one = device_at(index_of(device))
        one.peak = one.held

    def empty_cache(self) -> None:
        pass

    def is_current_stream_capturing(self) -> bool:
        return recording() is not None

    def is_bf16_supported(self, including_emulation: bool = True) -> bool:
        return True

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def manual_seed_all(self, seed: int) -> None:
        pass  # the CPU's generator is seeded anyway

    def manual_seed(self, seed: int) -> None:
        pass

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)

    def _is_in_bad_fork(self) -> bool:
        return False


class Hook(torch._C._acc.PrivateUse1Hooks):
    def is_available(self) -> bool:
        return bool(devices_here)

    def has_primary_context(self, device_index: int) -> bool:
        return bool(devices_here)

    def is_built(self) -> bool:
        return True


_setup_privateuseone_for_python_backend(NAME, Module(), Hook())
