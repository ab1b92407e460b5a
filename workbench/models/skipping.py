"""Sub-layers and blocks that are left out of a pass: they add nothing to the residual stream, and are not computed.

What is left out is a module's `forward`, so hooks of the module still run and sites keep their places: what attention
and MLP add is zero, a block leaves the stream as it came. Where this thread looks inside of what is left out (a hook, a
reader of attention rows) or fills a key/value cache (whose first layer says how long the text is), it is computed and
then set to zero: the same numbers, without the time saved.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from transformers import Cache

from workbench.core.errors import InputError
from workbench.models.attention import hooks_of
from workbench.models.call_tape import first_tensor, hidden_argument
from workbench.models.model import Model
from workbench.models.running_pass import hooked

COMPONENTS = ("attention", "mlp", "block")
DROPPED = "dropped_modules"  # the key of a model's config that names sub-layers which add nothing

Own = Callable[..., Any]  # the module's own forward
Instead = Callable[..., Any]  # instead(own, *args, **kwargs)

_changing = threading.Lock()


class StandIn:
    """The `forward` of a module in whose place some threads (None: all of them) run something else."""

    def __init__(self, module: nn.Module):
        self.own: Own = module.forward
        self.was_there = "forward" in vars(module)
        self.instead: dict[int | None, list[Instead]] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        mine = self.instead.get(threading.get_ident()) or self.instead.get(None)
        return mine[-1](self.own, *args, **kwargs) if mine else self.own(*args, **kwargs)


@contextlib.contextmanager
def skipping(model: Model, component: str, layer: int) -> Iterator[None]:
    """While open, the passes of this thread go without attention, MLP or the whole block of a layer. The model is as
    before afterwards.

    The modules must have passed `check_droppable`."""
    with contextlib.ExitStack() as stack:
        for module, instead in _places(model, component, layer):
            stack.enter_context(_standing_in(module, instead, threading.get_ident()))
        yield


def skip_dropped(model: Model) -> None:
    """Leave out for good, in every thread, what the model's config says was dropped (`dropped_modules`, as an export
    writes it): the weights that it would add are zero, so no number changes.

    Where they are not, since the model was trained on or the config is another's, nothing is left out and the model
    says so in its warnings. Raises InputError for a config that cannot be read."""
    for component, layer in dropped_by_config(model):
        if any(bool(weight.any()) for weight in silenced(model, component, layer)):
            model.warnings += (
                f"The config of {model.name} says that {component} {layer} was dropped, and its weights are not zero: "
                f"it is run as it is.",
            )
            continue
        for module, instead in _places(model, component, layer):
            _put(module, instead, None)


def dropped_by_config(model: Model) -> list[tuple[str, int]]:
    """The sub-layers that the model's config says were dropped. Raises InputError for a config that cannot be read."""
    said = getattr(model.hf.config, DROPPED, None) or {}
    try:
        found = [(component, layer) for component, layers in said.items() for layer in layers]
        if any(component not in COMPONENTS[:2] or layer not in range(model.n_layers) for component, layer in found):
            raise ValueError
    except (AttributeError, TypeError, ValueError):
        raise InputError(
            f"The config of {model.name} has a {DROPPED} that is none ({{'attention': [3], 'mlp': [0]}}, layers from 0 "
            f"to {model.n_layers - 1}): {str(said)[:80]}."
        ) from None
    return found


def silenced(model: Model, component: str, layer: int) -> list[torch.Tensor]:
    """The weights of attention or MLP without which it adds exactly nothing to the stream: those of its last linear map
    (of experts, all of them), and the bias of a norm behind it."""
    block = model.anatomy.blocks[layer]
    last = block.o_proj if component == "attention" else block.mlp_hidden or block.mlp_out
    own, writer = (
        (block.attention, block.attention_writer) if component == "attention" else (block.mlp_out, block.mlp_writer)
    )
    found = list(last.parameters())
    bias = getattr(writer, "bias", None) if writer is not own else None
    return [*found, *([bias] if isinstance(bias, torch.Tensor) else [])]


def check_droppable(model: Model, component: str, layer: int) -> None:
    """Raise InputError for a sub-layer that does not just add to the residual stream, and for what runs more than once
    in a pass."""
    what = f"dropping {component} {layer}"
    model.require("blocks_run_once", for_what=what, layers=[layer])
    if component != "block":
        model.require("stream_adds_up", for_what=what, layers=[layer])


def _places(model: Model, component: str, layer: int) -> Iterator[tuple[nn.Module, Instead]]:
    """The modules to stand in for, and what runs instead of each."""
    block = model.anatomy.blocks[layer]
    parts = ("attention", "mlp") if component == "block" else (component,)
    if component != "block" or model.lacks("stream_adds_up", layers=[layer]) is None:
        if "attention" in parts:
            yield block.attention, _nothing(model, block.attention, lambda: _attention_watched(model, layer))
            if block.attention_writer is not block.attention:
                yield block.attention_writer, _zeros
        if "mlp" in parts:
            yield from _mlp_places(model, layer)
    if component == "block":
        inside = [module for module in block.block.modules() if module is not block.block]
        yield block.block, _nothing(model, block.block, lambda: _block_watched(model, layer, inside), through=True)


def _mlp_places(model: Model, layer: int) -> Iterator[tuple[nn.Module, Instead]]:
    block = model.anatomy.blocks[layer]
    inside = [m for module in {block.mlp_in, block.mlp_out} for m in module.modules()]
    inside = [m for m in inside if m not in (block.mlp_in, block.mlp_out)]
    apart = block.mlp_in is not block.mlp_out  # two linear maps, and whatever stands between them

    def watched() -> bool:
        return any(hooked(module) for module in inside) or (apart and hooked(block.mlp_out))

    if apart:  # what it reads goes on as it is: cheap, and what comes of it is dropped
        yield block.mlp_in, lambda own, x, *more, **named: own(x, *more, **named) if watched() else x
    yield block.mlp_out, _nothing(model, block.mlp_out, watched)
    if block.mlp_writer is not block.mlp_out:
        yield block.mlp_writer, _zeros


def _nothing(model: Model, module: nn.Module, watched: Callable[[], bool], *, through: bool = False) -> Instead:
    """In place of a module: zeros, or with `through` what it was given, in a tuple where it gives one."""
    items = model.anatomy.returns.get(module, 0)

    def instead(own: Own, *args: Any, **kwargs: Any) -> Any:
        given = hidden_argument(args, kwargs)
        if watched() or any(isinstance(value, Cache) for value in (*args, *kwargs.values())):
            kept = given.clone() if through else None  # some blocks add in place
            found = own(*args, **kwargs)
            out = torch.zeros_like(first_tensor(found)) if kept is None else kept
            return out if isinstance(found, torch.Tensor) else (out, *found[1:])
        out = given if through else torch.zeros_like(given)
        return (out, *[None] * (items - 1)) if items else out

    return instead


def _zeros(_own: Own, *args: Any, **kwargs: Any) -> torch.Tensor:
    """In place of a norm behind what is dropped."""
    return torch.zeros_like(hidden_argument(args, kwargs))


def _attention_watched(model: Model, layer: int) -> bool:
    """Whether this thread reads or edits anything inside an attention."""
    attention = model.attention(layer)
    if model.attention_interface:
        thread, hooks = threading.get_ident(), hooks_of(attention)
        if any(owner == thread for owner, _ in (*hooks.readers, *hooks.edits)):
            return True
    elif hooked(attention):  # its rows come out with its result
        return True
    return any(hooked(module) for module in attention.modules() if module is not attention)


def _block_watched(model: Model, layer: int, inside: list[nn.Module]) -> bool:
    return any(hooked(module) for module in inside) or _attention_watched(model, layer)


@contextlib.contextmanager
def _standing_in(module: nn.Module, instead: Instead, thread: int) -> Iterator[None]:
    here = _put(module, instead, thread)
    try:
        yield
    finally:
        with _changing:
            here.instead[thread].remove(instead)
            if not here.instead[thread]:
                del here.instead[thread]
            if not here.instead:
                if here.was_there:
                    module.__dict__["forward"] = here.own
                else:
                    del module.__dict__["forward"]


def _put(module: nn.Module, instead: Instead, thread: int | None) -> StandIn:
    with _changing:
        here = module.__dict__.get("forward")
        if not isinstance(here, StandIn):
            here = StandIn(module)
            module.__dict__["forward"] = here
        here.instead.setdefault(thread, []).append(instead)
    return here
