"""A device that is not there: the PyTorch device "virtual", whose tensors keep their numbers on the CPU.

It does what a GPU does to a program, and does it visibly. Tensors of different devices do not mix; the error names
the line of this repository. Launches, waits and copies are counted (`counting`, see tests/support/device_counts.py).
Memory has a limit. Copies that the host does not wait for hold no numbers until something has waited for them. Graphs
are captured under CUDA's rules (tests/support/device_graphs.py). The numbers are those of the CPU, bit for bit.

    from tests import virtual_accelerator as va

    with va.present():                                  # fixture `virtual` of tests/accelerator does the same
        model = load("tiny", device="virtual")
        with va.counting() as counts:
            model.hf(ids)
    assert counts.waits == 0, counts.of("wait", "to_device", "to_host")

`torch.virtual` is its module, as `torch.cuda` is CUDA's: `synchronize`, `mem_get_info`, `Stream`, `Event`, `CUDAGraph`,
`graph`, … Outside `present()` the device is there by name only: it counts zero devices and holds no tensors.

What it does not show: time; kernels (an operation of PyTorch counts as one launch, fused attention among them); races
between streams, save that a copy to the host has no numbers before it is waited for and that pinned memory may not be
written before a copy from it is done. Numbers on the device come from the CPU's generator, as the same seed should give
the same tables.
"""

from __future__ import annotations

import importlib
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._device import _device_constructors
from torch.utils._pytree import tree_leaves, tree_map_only

from tests.support.device_counts import KINDS, Counts, count, counting, source_line
from tests.support.device_graphs import Graph, not_captured, recording
from tests.support.device_operations import FREE, HOST_NUMBERS, INDEXED, WAITS, Operation, known_of, waits_for_a_mask
from tests.support.virtual_device import (
    NAME,
    Allocation,
    Device,
    Event,
    Stream,
    allocation_of,
    at,
    device_at,
    devices_here,
    host_waits,
    index_of,
)

__all__ = ["KINDS", "Counts", "Event", "Generator", "Graph", "Stream", "Tensor", "counting", "present"]

CPU = torch.device("cpu")
aten = torch.ops.aten
_BY_PYTHON = torch._C.DispatchKeySet(torch._C.DispatchKey.Python)
_generators: weakref.WeakValueDictionary[int, Generator] = weakref.WeakValueDictionary()  # by address: operations get
# another Python object for the same generator
_pinned: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()


# Tensors


class Tensor(torch.Tensor):
    """A tensor on a virtual device; `raw` is the CPU tensor with its numbers."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    raw: torch.Tensor
    allocation: Allocation
    from_number: bool  # the device's copy of a Python number, which CUDA leaves on the host when it assigns to a mask

    @staticmethod
    def __new__(cls, raw: torch.Tensor, index: int) -> Tensor:
        self = torch.Tensor._make_wrapper_subclass(
            cls,
            raw.shape,
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            layout=raw.layout,
            device=torch.device(NAME, index),
        )
        self.raw, self.allocation, self.from_number = raw, allocation_of(raw.untyped_storage(), index), False
        return self

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _run(op, args, kwargs or {})

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"Tensor({tuple(self.shape)}, {self.dtype}, {self.device})"

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.dim() == 0 else repr(self)

    def __deepcopy__(self, memo: dict) -> torch.Tensor:
        found = self.detach().clone().requires_grad_(self.requires_grad)
        if getattr(self, "_is_param", False):
            found._is_param = True
        memo[id(self)] = found
        return found

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(f"a tensor of {self.device} is pickled; move it to the CPU first ({source_line()})")

    def numpy(self, *, force: bool = False) -> Any:
        if force:
            return self.cpu().numpy()
        raise TypeError(f"can't convert {self.device} tensor to numpy; copy it to the host first ({source_line()})")

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self.numpy()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def data_ptr(self) -> int:
        return self.raw.data_ptr()

    def untyped_storage(self) -> Any:
        return self.raw.untyped_storage()

    def is_pinned(self, device: Any = None) -> bool:
        return False

    @property
    def data(self) -> torch.Tensor:
        return torch.Tensor.data.__get__(self)

    @data.setter
    def data(self, value: torch.Tensor) -> None:
        if not isinstance(value, Tensor):
            raise RuntimeError(f"a tensor of {self.device} is given the numbers of the host ({source_line()})")
        torch.Tensor.data.__set__(self, value)
        self.raw, self.allocation = value.raw, value.allocation


class Generator(torch.Generator):
    """`torch.Generator`, on a virtual device as well; the numbers are the CPU's."""

    def __new__(cls, device: Any = "cpu") -> Generator:
        self = super().__new__(cls, "cpu" if torch.device(device).type == NAME else device)
        self.on = torch.device(NAME, index_of(device)) if torch.device(device).type == NAME else torch.device(device)
        if self.on.type == NAME:
            _generators[self._cdata] = self
        return self

    @property
    def device(self) -> torch.device:
        return self.on


# Operations


def _run(op: Any, args: tuple, kwargs: dict) -> Any:
    """One operation with a tensor of a virtual device in it: checked, counted, and done on the raw tensors."""
    known = known_of(op)
    if known.name == "copy_":
        return _copy(*args, **kwargs)
    if known.name == "_copy_from":
        return _copy(args[1], args[0], *args[2:], **kwargs)
    if known.name == "scaled_dot_product_attention":
        return _attention(*args, **kwargs)
    if known.composite:
        return op.decompose(*args, **kwargs)
    target = kwargs.get("device")
    if known.name == "_to_copy":
        return _to(op, args[0], args[0].device if target is None else target, kwargs)
    index = _one_device(known, args, kwargs)
    if target is not None:
        if target.type not in (NAME, "cpu"):
            raise RuntimeError(f"{known.name}: a tensor for {target} from one of {NAME} ({source_line()})")
        index = index_of(target) if target.type == NAME else None
    out = _compute(op, known, args, kwargs, index)
    if known.mutable:
        given = [args[place] if place < len(args) else kwargs.get(name) for place, name in known.written]
        for tensor in tree_leaves(given):
            if isinstance(tensor, Tensor) and known.reshapes:
                with torch._C._ExcludeDispatchKeyGuard(_BY_PYTHON):
                    op(*args, **kwargs)  # PyTorch's own, on a tensor without numbers: its shape becomes that of `raw`
            if isinstance(tensor, Tensor) and tensor.shape != tensor.raw.shape:
                raise NotImplementedError(f"{op}: changes the shape of a tensor in place ({source_line()})")
        if known.returned:
            found = tuple(given[place] for place in known.returned)
            return found[0] if len(found) == 1 else found
    if index is None:
        return out
    found = tree_map_only(torch.Tensor, lambda raw: Tensor(raw, index), out)
    if known.name == "scalar_tensor":
        found.from_number = True
    return found


def _compute(op: Any, known: Operation, args: tuple, kwargs: dict, index: int | None) -> Any:
    """The operation on raw tensors, counted, and recorded where a graph is captured."""
    if known.name in WAITS or waits_for_a_mask(known, args):
        host_waits(known.name, index=index)
    elif not (known.view or known.reshapes) and known.name not in FREE:
        if recording() is None:
            count("launch", known.name)
    raw_args = tuple(_raw(x) for x in args)
    raw_kwargs = {key: _raw(x) for key, x in kwargs.items() if key != "pin_memory"}
    capture = recording()
    if capture is not None and known.mutable:
        for place, name in known.written:
            for raw in tree_leaves(raw_args[place] if place < len(raw_args) else raw_kwargs.get(name)):
                if isinstance(raw, torch.Tensor):
                    capture.before_write(raw)
    if (
        known.name == "_efficientzerotensor"
    ):  # has no numbers, and is one to PyTorch by what it is, which is hidden here
        op = aten.zeros.default
    out = op(*raw_args, **raw_kwargs)
    if capture is not None:
        capture.record(op, raw_args, raw_kwargs, out, known.mutable)
    return out


def _raw(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x.raw
    if isinstance(x, (list, tuple)):
        return type(x)(_raw(part) for part in x)
    return CPU if isinstance(x, torch.device) else x


def _one_device(known: Operation, args: tuple, kwargs: dict) -> int | None:
    """The index of the one device that all operands are on; RuntimeError where they are on several."""
    found: set[int] = set()
    host, index_from_host = [], False
    for place, x in enumerate((*args, *kwargs.values())):
        if isinstance(x, Tensor):
            found.add(x.device.index)
        elif isinstance(x, torch.Tensor):
            host.append((place, x, known.pointwise or known.name in HOST_NUMBERS))
        elif isinstance(x, (list, tuple)):
            for part in x:
                if isinstance(part, Tensor):
                    found.add(part.device.index)
                elif isinstance(part, torch.Tensor):
                    if known.name in INDEXED:
                        index_from_host = True
                    else:
                        host.append((place, part, False))
        elif isinstance(x, torch._C.Generator) and x._cdata not in _generators:
            raise RuntimeError(f"{known.name}: expected a generator of '{NAME}', found the host's ({source_line()})")
    if not found:
        return None
    written = {place for place, _ in known.written}
    refused = [x for place, x, number in host if x.dim() > 0 or not number or place in written]
    if len(found) > 1 or refused:
        names = sorted({f"{NAME}:{index}" for index in found} | ({"cpu"} if refused else set()))
        raise RuntimeError(
            f"{known.name}: expected all tensors to be on the same device, found {' and '.join(names)} "
            f"({source_line()})"
        )
    if index_from_host:
        if not isinstance(args[0], Tensor):
            raise RuntimeError(f"{known.name}: a host tensor is indexed with one of {NAME} ({source_line()})")
        host_waits(f"{known.name} with host indices", "to_device")
    return found.pop()


def _to(op: Any, source: torch.Tensor, target: torch.device, kwargs: dict) -> torch.Tensor:
    """`.to()` of a device's tensor: within it (another dtype), to the host, or to another device."""
    kwargs = {key: x for key, x in kwargs.items() if key not in ("device", "pin_memory")}
    asynchronous = kwargs.pop("non_blocking", False)
    if target.type == NAME:
        index = index_of(target)
        known = known_of(op)
        if index == source.device.index:
            return Tensor(_compute(op, known, (source,), kwargs, index), index)
        count("between_devices", "to")
        return Tensor(op(source.raw, **kwargs), index)
    if target.type == "meta":  # forward-mode gradients look at shapes so
        return op(source.raw, **kwargs | {"device": target})
    if target.type != "cpu":
        raise RuntimeError(f"a tensor of {source.device} is moved to {target} ({source_line()})")
    if not asynchronous:
        host_waits("to", "to_host", source.device.index)
        return op(source.raw, **kwargs)
    out = op(source.raw, **kwargs)  # PyTorch makes it in pinned memory
    _pinned[out.untyped_storage()] = True
    _later_on_host(out, out.clone(), source.device.index)
    return out


def _copy(target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    """`target.copy_(source)`, at least one of them on a device."""
    here, there = (x.device.index if isinstance(x, Tensor) else None for x in (target, source))
    if here == there:
        _compute(aten.copy_.default, known_of(aten.copy_.default), (target, source), {}, here)
        return target
    if here is not None and there is not None:
        count("between_devices", "copy_")
        target.raw.copy_(source.raw)
        return target
    pinned = non_blocking and _is_pinned(source if here is not None else target)
    if here is None and not pinned:
        host_waits("copy_", "to_host", there)
        target.copy_(source.raw)
    elif here is None:
        _later_on_host(target, source.raw.to(target.dtype, copy=True), there)
    elif not pinned:
        host_waits("copy_", "to_device", here)
        target.raw.copy_(source)
    else:
        _compute_copy(target, source, here)
    return target


def _compute_copy(target: Tensor, source: torch.Tensor, index: int) -> None:
    """A copy from pinned memory, which must stay as it is until something has waited for the copy."""
    count("to_device_async", "copy_")
    capture = recording()
    if capture is not None:
        capture.before_write(target.raw)
        capture.record(aten.copy_.default, (target.raw, source), {}, None, True)
    target.raw.copy_(source)
    before, line = source.detach().clone(), source_line()

    def check() -> None:
        same = torch.equal(_comparable(source), _comparable(before))
        if not same:
            raise RuntimeError(
                f"pinned memory was written to before the copy from it was waited for (copied at {line})"
            )

    if capture is None:
        device_at(index).pending.setdefault(at[1], []).append(check)


def _comparable(x: torch.Tensor) -> torch.Tensor:
    return x.detach().contiguous().view(torch.uint8) if x.dim() else x.detach().reshape(1).view(torch.uint8)


def _later_on_host(target: torch.Tensor, numbers: torch.Tensor, index: int) -> None:
    """A copy to the host that it did not wait for: no numbers until it does."""
    not_captured("a copy to the host")
    count("to_host_async", "to")
    held = target.detach()
    held.fill_(torch.nan if held.is_floating_point() or held.is_complex() else False)
    if not (held.is_floating_point() or held.is_complex() or held.dtype == torch.bool):
        held.fill_(torch.iinfo(held.dtype).max)
    done: list[bool] = []

    def finish() -> None:
        if not done:
            held.copy_(numbers)
            done.append(True)

    device_at(index).pending.setdefault(at[1], []).append(finish)


class _Attention(torch.autograd.Function):
    """Fused attention: one launch forward, one backward, the CPU's numbers."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: dict) -> Tensor:
        ctx.save_for_backward(query, key, value, mask)
        ctx.options = options
        given = tuple(_raw(x) for x in (query, key, value, mask))
        return Tensor(_recorded(lambda q, k, v, m: _raw_attention(q, k, v, m, **options), given), query.device.index)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple:
        count("launch", "scaled_dot_product_attention backward")
        given = [None if x is None else x.raw.detach() for x in ctx.saved_tensors]
        wanted = [place for place in range(4) if ctx.needs_input_grad[place]]
        with torch.enable_grad():
            for place in wanted:
                given[place].requires_grad_()
            out = _raw_attention(*given, **ctx.options)
            found = torch.autograd.grad(out, [given[place] for place in wanted], gradient.raw)
        gradients: list = [None] * 5
        for place, one in zip(wanted, found, strict=True):
            gradients[place] = Tensor(one, gradient.device.index)
        return tuple(gradients)


def _raw_attention(q: Any, k: Any, v: Any, mask: Any, **options: Any) -> torch.Tensor:
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, **options)


def _recorded(operation: Any, given: tuple) -> torch.Tensor:
    """One fused operation on raw tensors: one launch, or one step of the graph that is captured."""
    capture = recording()
    out = operation(*given)
    if capture is None:
        count("launch", "scaled_dot_product_attention")
    else:
        capture.record(operation, given, {}, out, False)
    return out


def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    known = known_of(aten.scaled_dot_product_attention.default)
    _one_device(known, (query, key, value, attn_mask), {})
    options = {"dropout_p": dropout_p, "is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
    return _Attention.apply(query, key, value, attn_mask, options)


# What reaches the device without a tensor of it: factories


def _make(op: Any, *args: Any, **kwargs: Any) -> Any:
    if kwargs.get("pin_memory"):
        raise RuntimeError(f"only tensors of the host can be pinned ({source_line()})")
    return _run(op, args, kwargs)


def _factory(op: Any) -> Any:
    return lambda *args, **kwargs: _make(op, *args, **kwargs)


_all, _aten = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
_all.fallback(_make, "PrivateUse1")
_aten.impl("copy_", lambda *args, **kwargs: _copy(*args, **kwargs), "PrivateUse1")
for _key in ("AutogradPrivateUse1", "PrivateUse1"):
    _aten.impl("scaled_dot_product_attention", _attention, _key)
# PyTorch makes these by resizing an empty tensor, which a tensor with its numbers elsewhere cannot be.
for _op in (
    aten.arange.default,
    aten.arange.start,
    aten.arange.start_step,
    aten.range.default,
    aten.range.step,
    aten.eye.default,
    aten.eye.m,
    aten.linspace.default,
    aten.logspace.default,
    aten.randperm.default,
    aten.randperm.generator,
    aten.scalar_tensor.default,
):
    _aten.impl(_op.name().removeprefix("aten::").removesuffix(".default"), _factory(_op), "PrivateUse1")


# Being there


def _pin(tensor: torch.Tensor, device: Any = None) -> torch.Tensor:
    """A copy in pinned memory, of which this module keeps the list."""
    if isinstance(tensor, Tensor):
        raise RuntimeError(f"cannot pin a tensor of {tensor.device} ({source_line()})")
    out = tensor if _is_pinned(tensor) else tensor.detach().clone()
    _pinned[out.untyped_storage()] = True
    return out


def _is_pinned(tensor: torch.Tensor, device: Any = None) -> bool:
    return not isinstance(tensor, Tensor) and tensor.untyped_storage() in _pinned


def _pinning(make: Any) -> Any:
    """A factory of PyTorch that takes `pin_memory=True`."""

    def made(*args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        out = make(*args, **kwargs)
        return _pin(out) if pin_memory else out

    torch.jit._builtins._register_builtin(made, f"aten::{make.__name__}")  # for functions that are scripted meanwhile
    return made


@contextmanager
def present(devices: int = 1, memory: int = 16 * 2**30) -> Iterator[Any]:
    """Inside the block this machine has that many virtual devices of that many bytes each; gives `torch.virtual`."""
    if devices_here:
        raise RuntimeError("virtual devices are present already")
    devices_here.extend(Device(memory) for _ in range(devices))
    patched = [
        (torch.Tensor, "pin_memory", _pin),
        (torch.Tensor, "is_pinned", _is_pinned),
        (torch, "Generator", Generator),
    ]
    importlib.import_module("torch._decomp.decompositions_for_jvp")  # is compiled with the factories of now
    _device_constructors()  # remembers the factories of when it is first asked: `with torch.device(…)` knows them by it
    patched += [(torch, name, _pinning(getattr(torch, name))) for name in ("empty", "zeros", "full", "empty_like")]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in patched]
    for owner, name, value in patched:
        setattr(owner, name, value)
    threads = torch.autograd.set_multithreading_enabled(False)
    try:
        with threads:
            yield torch.get_device_module(NAME)
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)
        devices_here.clear()
        at[:] = [0, 0]


def set_memory(limit: int, device: int = 0) -> None:
    """How many bytes a virtual device has, from now on."""
    device_at(device).limit = limit
