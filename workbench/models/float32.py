"""Final norm and unembedding in float32, whatever the dtype of their weights.

Scores in bfloat16 have 8 bits: the difference of two read-outs is rounding. The few weights of a norm are copied; of an
unembedding never more than a block of the vocabulary is in float32 at once.
"""

from __future__ import annotations

from collections import OrderedDict
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

EXACT = (torch.float32, torch.float64)  # dtypes that are computed in as they are
BLOCK = 1 << 24  # numbers of one block of an unembedding in float32


def in_float32(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What a small module makes of `x`, computed in float32 at least; without its hooks where its weights are in fewer
    bits.

    Modules whose weights are elsewhere (offloaded), or whose computation was replaced, are called as they are."""
    wide = torch.promote_types(x.dtype, torch.float32)
    states = [*module.parameters(), *module.buffers()]
    if states:
        x = x.to(states[0].device)
    if all(not t.is_floating_point() or t.dtype in EXACT for t in states) and x.dtype in EXACT:
        return module(x)
    twin = None if any(t.is_meta for t in states) else _widened(module, wide)
    if twin is None:
        return module(x.to(next((t.dtype for t in states if t.is_floating_point()), x.dtype))).to(wide)
    return twin(x.to(wide)).to(wide)


def _widened(module: nn.Module, dtype: torch.dtype) -> Any:
    """A copy of a module with its weights in `dtype` and without hooks, which shares nothing that is written: threads
    may use the module meanwhile. None where the module's own computation was replaced by something unknown."""
    if isinstance(module, torch.jit.ScriptModule):
        return None
    if isinstance(module, torch.jit.ScriptModule):
        return None
    twin = module.__class__.__new__(module.__class__)
    own = dict(module.__dict__)
    forward = own.pop("forward", None)
    if forward is not None and "_hf_hook" not in own:  # accelerate's only moves what is offloaded
        if getattr(forward, "__self__", None) is not module:
            return None
        own["forward"] = MethodType(forward.__func__, twin)
    for key, value in own.items():
        if key.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called")) and isinstance(value, dict):
            own[key] = OrderedDict()
    inner = {name: None if part is None else _widened(part, dtype) for name, part in module._modules.items()}
    if any(part is None and module._modules[name] is not None for name, part in inner.items()):
        return None
    own["_modules"] = inner
    for key in ("_parameters", "_buffers"):
        own[key] = {name: _wide(t, dtype) for name, t in own[key].items()}
    twin.__dict__.update(own)
    return twin


def _wide(t: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    return t.detach().to(dtype) if t is not None and t.is_floating_point() else t


def _ordinary(weight: torch.Tensor) -> bool:
    """Whether a weight is numbers and nothing else: packed and quantised ones have classes of their own. So have all
    tensors of a device that is written in Python."""
    written_in_python = weight.device.type == torch._C._get_privateuse1_backend_name()
    return type(weight) is nn.Parameter or (written_in_python and isinstance(weight, nn.Parameter))


def plain_unembedding(module: nn.Module) -> bool:
    """Whether a module is a linear map that does nothing else: its weights may be used without calling it."""
    weight = module._parameters.get("weight")
    if type(module) is not nn.Linear or weight is None or weight.is_meta or not _ordinary(weight):
        return False
    replaced = "forward" in module.__dict__ and not hasattr(module, "_hf_hook")  # accelerate's only moves
    hooked = module._forward_hooks or module._forward_pre_hooks
    return weight.is_floating_point() and not hooked and not replaced


def unembedded(module: nn.Module, states: torch.Tensor, dtype: torch.dtype, *, bias: bool = True) -> torch.Tensor:
    """Scores [..., V] of final states [..., width] on the unembedding's device, in float32 at least. `dtype`: what the
    module computes in.

    What is not a plain linear map (quantised, adapted, offloaded) is called as it is, in its own dtype."""
    if not plain_unembedding(module):
        return module(states.to(dtype)).float()
    assert isinstance(module, nn.Linear)
    states = states.to(module.weight.device, torch.promote_types(states.dtype, torch.float32))
    return _InBlocks.apply(states, module.weight, module.bias if bias else None)  # pyright: ignore[reportReturnType]


class _InBlocks(torch.autograd.Function):
    """A linear map whose weights are widened block by block, for the gradient of what it reads as well."""

    @staticmethod
    def forward(ctx, states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(weight)
        out = states.new_empty(*states.shape[:-1], len(weight))
        for rows in blocks_of(weight):
            some = None if bias is None else bias[rows].to(states.dtype)
            out[..., rows] = linear(states, weight[rows].to(states.dtype), some)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *slopes: torch.Tensor):
        (slope,), (weight,) = slopes, ctx.saved_tensors
        found = slope.new_zeros(*slope.shape[:-1], weight.shape[1])
        for rows in blocks_of(weight):
            found += slope[..., rows] @ weight[rows].to(slope.dtype)
        return found, None, None


def blocks_of(weight: torch.Tensor) -> list[slice]:
    """Rows of a matrix, in blocks of at most BLOCK numbers."""
    size = max(1, BLOCK // weight.shape[1])
    return [slice(start, min(start + size, len(weight))) for start in range(0, len(weight), size)]


def mean_row(weight: torch.Tensor) -> torch.Tensor:
    """The mean [width] of the rows of a matrix, in float32."""
    if weight.dtype in EXACT:
        return weight.float().mean(0)
    total = weight.new_zeros(weight.shape[1], dtype=torch.float32)
    for rows in blocks_of(weight):
        total += weight[rows].float().sum(0)
    return total / len(weight)
