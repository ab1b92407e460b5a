"""What a device says of itself, whichever it is: a CPU, CUDA, MPS, XPU, or one that somebody else registered with
PyTorch. Nobody else asks `torch.cuda`.

A device is given as PyTorch takes it: "cuda:1", `torch.device("mps")`. torch is imported by what needs it only.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

CPU = "cpu"


def current() -> str:
    """The kind of device that models are put on where none is named: the accelerator of this machine, else "cpu"."""
    import torch

    found = torch.accelerator.current_accelerator(check_available=True)
    return CPU if found is None else found.type


def is_cpu(device: torch.device | str) -> bool:
    return str(device).partition(":")[0] == CPU


def known(kind: str) -> bool:
    """Whether PyTorch knows a device of this name that can hold numbers, here or elsewhere."""
    import torch

    try:
        return torch.device(kind).type not in ("meta", "privateuseone")
    except RuntimeError:
        return False


def count(kind: str) -> int:
    """How many devices of this kind PyTorch can use here; 0 of a kind that is not here."""
    import torch

    if kind == CPU:
        return 1
    module = getattr(torch, kind, None) if known(kind) else None
    return module.device_count() if module is not None and module.is_available() else 0


def listed() -> list[str]:
    """Every accelerator of this machine, "cuda:0", "cuda:1", …; none where torch has not been imported yet."""
    if "torch" not in sys.modules or (kind := current()) == CPU:
        return []
    return [f"{kind}:{index}" for index in range(count(kind))]


def name(device: torch.device | str) -> str:
    """What the maker calls it: "NVIDIA H200"; the kind, where PyTorch cannot say."""
    said = getattr(_module(device), "get_device_name", None)
    return str(device).partition(":")[0] if said is None else str(said(device))


def memory(device: torch.device | str) -> tuple[int, int]:
    """(free, total) bytes of a device; of a CPU what the system could give, or what a limit of the process's control
    group leaves."""
    if is_cpu(device):
        return _host_memory()
    module: Any = _module(device)
    if hasattr(module, "mem_get_info"):
        free, total = module.mem_get_info(device)
        return int(free), int(total)
    if hasattr(module, "recommended_max_memory"):  # MPS
        total = int(module.recommended_max_memory())
        return max(0, total - int(module.driver_allocated_memory())), total
    return _host_memory()  # it does not say; most that do not share the host's


def _host_memory() -> tuple[int, int]:
    import psutil

    seen = psutil.virtual_memory()
    free, total, group = int(seen.available), int(seen.total), Path("/sys/fs/cgroup")
    try:
        limit, used = (int((group / file).read_text()) for file in ("memory.max", "memory.current"))
    except (OSError, ValueError):  # no such limit
        return free, total
    return max(0, min(free, limit - used)), min(total, limit)


def widest(device: torch.device | str) -> torch.dtype:
    """What a device adds and compares in: float64, and float32 where it has none."""
    import torch

    return torch.float32 if str(device).startswith("mps") else torch.float64


def synchronise(device: torch.device | str) -> None:
    """Wait until a device has done all that it was given."""
    if is_cpu(device):
        return
    module: Any = _module(device)
    if str(device).startswith("mps"):
        module.synchronize()
    else:
        module.synchronize(device)


def free_caches() -> None:
    """Give back what a pass or a model that is gone still holds, on accelerators too. Imports no torch."""
    gc.collect()
    for module in _in_use():
        module.empty_cache()


def reset_peak_memory() -> None:
    """Start a new peak of the memory held on accelerators, where they count it. Imports no torch."""
    for module in _in_use():
        if hasattr(module, "reset_peak_memory_stats"):
            for index in range(module.device_count()):
                module.reset_peak_memory_stats(index)


def peak_memory_bytes() -> int | None:
    """The most that torch held on one accelerator since `reset_peak_memory`; None where there is none, or none that
    counts it. Imports no torch."""
    peaks = [
        int(module.max_memory_allocated(index))
        for module in _in_use()
        if hasattr(module, "max_memory_allocated")
        for index in range(module.device_count())
    ]
    return max(peaks, default=None)


def has_pinned_memory(device: torch.device | str) -> bool:
    """Whether copies to and from this device can go on while the host does: there is host memory that it reads."""
    if is_cpu(device):
        return False
    import torch

    try:
        return torch.empty(1).pin_memory().is_pinned()
    except (RuntimeError, NotImplementedError):
        return False


def graphs(device: torch.device | str) -> tuple[Any, Any] | None:
    """(class of a graph, function that opens the block to be captured into one), as `torch.cuda.CUDAGraph` and
    `torch.cuda.graph`; None for a device without."""
    if is_cpu(device):
        return None
    module = _module(device)
    made = getattr(module, "CUDAGraph", None) or getattr(module, "XPUGraph", None)
    opened = getattr(module, "graph", None)
    return None if made is None or opened is None else (made, opened)


@contextmanager
def kept_randomness(device: torch.device | str) -> Iterator[None]:
    """What is drawn or seeded in the block leaves the generators of the CPU and of this device as they were."""
    import torch

    kind = str(device).partition(":")[0]
    others = [] if kind in (CPU, "mps") else [torch.device(device)]  # MPS does not tell the state of its generator
    with torch.random.fork_rng(devices=others, device_type="cuda" if kind in (CPU, "mps") else kind):
        yield


def _module(device: torch.device | str) -> Any:
    import torch

    return torch.get_device_module(torch.device(device))


def _in_use() -> list[Any]:
    """The modules of accelerators that are here and hold something already: asking another would start it."""
    torch = sys.modules.get("torch")
    if torch is None or (kind := current()) == CPU:
        return []
    module = getattr(torch, kind)
    return [module] if getattr(module, "is_initialized", lambda: True)() else []
