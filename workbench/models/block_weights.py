"""The weight matrices of the blocks: which there are, what each is for, and a pass that computes with others in their
place.

Only the linear maps of attention and MLP count: embeddings, norms and biases are none of them. A map that holds several
(queries, keys and values in one) says which of its output features are whose.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.functional import linear

from workbench.core.errors import InputError
from workbench.models.running_pass import after

if TYPE_CHECKING:
    from workbench.models.model import Model

ATTENTION, MLP = "attention", "mlp"
_ROLES = {
    "q_proj": "q",
    "k_proj": "k",
    "v_proj": "v",
    "gate_proj": "gate",
    "up_proj": "in",
    "c_fc": "in",
    "fc1": "in",
    "fc_in": "in",
    "dense_h_to_4h": "in",
}
_PLAIN = ("FalconLinear",)  # maps with code of their own that do no more than nn.Linear
_QKV = ("query_key_value", "c_attn", "qkv_proj", "Wqkv")
# how a map that holds queries, keys and values lays them out, by the type of the model
_BY_HEAD = ("gpt_neox", "bloom")  # q, k, v of the first head, then of the second, …
_IN_BLOCKS = ("gpt2", "phi3", "mpt")  # all queries, then all keys, then all values


@dataclass(frozen=True, eq=False)
class BlockWeight:
    """One matrix of a block. ``name``: of the parameter, as in the state dict; ``transposed``: [in, out] (Conv1D of
    GPT-2), else [out, in]; ``roles``: what it holds, e.g. "attention q", and which output features are that (int64)."""

    name: str
    layer: int
    module: nn.Module
    transposed: bool
    roles: Mapping[str, torch.Tensor]

    @property
    def weight(self) -> torch.Tensor:
        return self.module.weight  # pyright: ignore[reportReturnType]  # a parameter, see `block_weights`

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.weight.shape)

    def of_role(self, values: torch.Tensor, role: str) -> torch.Tensor:
        """The part of ``values``, of the weight's shape, that belongs to a role."""
        return values.index_select(1 if self.transposed else 0, self.roles[role].to(values.device))

    def output(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """What the map makes of ``x`` [..., in] with another weight in place of its own, its bias as it is."""
        bias: torch.Tensor | None = self.module.bias  # pyright: ignore[reportAssignmentType]
        return linear(x, weight.T if self.transposed else weight, bias)


def block_weights(model: Model, *, for_what: str) -> list[BlockWeight]:
    """Every matrix of attention and MLP, layer by layer, in the order of the model's modules.

    Raises InputError for a block with weights that are no plain linear map (experts in one tensor, quantised numbers),
    for one that runs several times in a pass, and for two names of one weight."""
    model.require("blocks_run_once", for_what=for_what)
    names = {id(module): name for name, module in model.hf.named_modules()}
    found, seen = [], set()
    for layer, block in enumerate(model.anatomy.blocks):
        inside = {id(part) for part in block.attention.modules()}
        for module in block.block.modules():
            wide = {key: w for key, w in module._parameters.items() if w is not None and w.ndim > 1}
            if not wide:
                continue
            _refuse_unfit(model, module, wide, layer, for_what)
            if id(wide["weight"]) in seen:
                raise InputError(
                    f"The architecture {model.architecture} does not fit {for_what}: layer {layer} shares weights with "
                    f"another."
                )
            seen.add(id(wide["weight"]))
            part = ATTENTION if id(module) in inside or module is block.o_proj else MLP
            transposed = _transposed(module)
            outputs = wide["weight"].shape[1 if transposed else 0]
            own = names[id(module)].rpartition(".")[2]
            if module is block.o_proj:
                roles = {"o": torch.arange(outputs)}
            elif module is block.mlp_hidden:
                roles = {"out": torch.arange(outputs)}
            else:
                roles = _roles(model, own, outputs)
            named = {f"{part} {role}": which for role, which in roles.items()}
            found.append(BlockWeight(f"{names[id(module)]}.weight", layer, module, transposed, named))
    if not found:
        raise InputError(f"The architecture {model.architecture} does not fit {for_what}: its blocks hold no matrices.")
    return found


def _refuse_unfit(model: Model, module: nn.Module, wide: Mapping[str, torch.Tensor], layer: int, for_what: str) -> None:
    kind = type(module).__name__
    linear_map = type(module).forward is nn.Linear.forward or _transposed(module) or kind in _PLAIN
    plain = linear_map and set(wide) == {"weight"} and wide["weight"].is_floating_point() and wide["weight"].ndim == 2
    if plain and not wide["weight"].is_meta:
        return
    if plain:
        raise InputError(
            f"{model.name} keeps weights of layer {layer} outside the memory that it computes in, and {for_what} needs "
            f"them there; load it on a device that holds it whole."
        )
    raise InputError(
        f"The architecture {model.architecture} does not fit {for_what}: the {kind} in layer {layer} holds weights "
        f"({', '.join(wide)}) that are no plain linear map."
    )


def _transposed(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def _roles(model: Model, name: str, outputs: int) -> dict[str, torch.Tensor]:
    """Role → output features. A layout that is not known stays whole, under its own name."""
    every = torch.arange(outputs)
    if name == "gate_up_proj":
        return {"gate": every[: outputs // 2], "in": every[outputs // 2 :]}
    if name not in _QKV:
        return {_ROLES.get(name, name): every}
    kind = model.hf.config.get_text_config().model_type
    heads, groups, width = model.n_heads, model.n_kv_heads, model.d_head
    if kind in _BY_HEAD and outputs == 3 * heads * width:
        parts = every.reshape(heads, 3, width)
        return {role: parts[:, i].reshape(-1) for i, role in enumerate("qkv")}
    if kind in _IN_BLOCKS and outputs == (heads + 2 * groups) * width:
        return dict(zip("qkv", every.split([heads * width, groups * width, groups * width])))
    if kind == "falcon" and outputs == (heads + 2 * groups) * width:  # of every group its queries, a key, a value
        parts = every.reshape(groups, -1, width)
        return {"q": parts[:, :-2].reshape(-1), "k": parts[:, -2].reshape(-1), "v": parts[:, -1].reshape(-1)}
    return {"qkv": every}


def compute_with(
    weights: Sequence[BlockWeight], value_of: Callable[[BlockWeight], torch.Tensor], stack: contextlib.ExitStack
) -> None:
    """Until ``stack`` is closed, the passes of this thread compute with ``value_of`` a weight, of its shape, in its
    place. It is asked anew in every pass, so that one layer's values are held at a time. The weights themselves are not
    touched, and gradients reach the values."""
    for own in weights:

        def changed(_module, args, _output, own: BlockWeight = own) -> torch.Tensor:
            return own.output(args[0], value_of(own).to(args[0].device, args[0].dtype))

        stack.callback(after(own.module, changed).remove)
