"""A model without some of its modules as weights and a config that plain Hugging Face reads: blocks are gone, attention
and MLPs that were dropped from a block that stays write zeros."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from workbench.core.errors import InputError
from workbench.core.wording import one_line
from workbench.models.model import Model
from workbench.models.skipping import DROPPED, dropped_by_config, silenced


def without_modules(model: Model, modules: Sequence[tuple[str, int]]) -> Any:
    """The Hugging Face model without `modules` ("attention", "mlp" or "block", layer), on the weights of this one.

    Blocks are taken out of weights and config (layer count, lists with one entry a layer). Code of Hugging Face always
    runs attention and MLP, so the weights with which a dropped one writes are zero; the config names them under
    `dropped_modules`, by which `load` leaves them out. Raises InputError for a model that cannot be written so."""
    gone = sorted({layer for component, layer in modules if component == "block"})
    kept = [layer for layer in range(model.n_layers) if layer not in gone]
    if not kept:
        raise InputError(f"All {model.n_layers} blocks of {model.name} are dropped: no model is left to write.")
    quiet = sorted({*dropped_by_config(model), *(m for m in modules if m[0] != "block")})
    quiet = [(component, layer) for component, layer in quiet if layer in kept]
    state = _renumbered(model, _silent_state(model, quiet), kept)
    config = _config(model, kept)
    if quiet:
        named = {kind: [kept.index(layer) for one, layer in quiet if one == kind] for kind in ("attention", "mlp")}
        setattr(config, DROPPED, {kind: layers for kind, layers in named.items() if layers})
    try:
        with torch.device("meta"):
            smaller = type(model.hf)(config)
        smaller.load_state_dict(state, assign=True)
    except Exception as error:  # modelling code raises whatever it likes
        raise InputError(
            f"{model.name} ({model.architecture}) cannot be written without blocks {', '.join(map(str, gone))}: what a "
            f"layer is depends on its number there ({one_line(error)})."
        ) from error
    smaller.generation_config = model.hf.generation_config
    return smaller.eval()


def _silent_state(model: Model, quiet: Sequence[tuple[str, int]]) -> dict[str, torch.Tensor]:
    """The weights by name, those with which dropped attention and MLPs write set to zero; nothing of the model
    changes."""
    state = dict(model.hf.state_dict())
    silent = {id(weight) for component, layer in quiet for weight in silenced(model, component, layer)}
    for name, weight in model.hf.named_parameters(remove_duplicate=False):
        if id(weight) in silent:
            if not weight.is_floating_point():
                raise InputError(f"{model.name} has quantised weights ({name}); give the original model.")
            state[name] = torch.zeros_like(weight)
    return state


def _renumbered(model: Model, state: Mapping[str, torch.Tensor], kept: Sequence[int]) -> dict[str, torch.Tensor]:
    """The weights of the blocks that stay, with their new numbers, and all others."""
    names = {id(module): name for name, module in model.hf.named_modules()}
    places = [names[id(block.block)] for block in model.anatomy.blocks]
    above = {place.rpartition(".")[0] for place in places}
    if len(above) != 1 or [place.rpartition(".")[2] for place in places] != [str(n) for n in range(model.n_layers)]:
        raise InputError(f"The blocks of {model.name} are in no one list; it cannot be written without some of them.")
    new = {f"{places[layer]}.": f"{above.copy().pop()}.{number}." for number, layer in enumerate(kept)}
    out = {}
    for name, weight in state.items():
        old = next((place for place in (f"{p}." for p in places) if name.startswith(place)), None)
        if old is None:
            out[name] = weight
        elif old in new:
            out[new[old] + name.removeprefix(old)] = weight
    return out


def _config(model: Model, kept: Sequence[int]) -> Any:
    """The config with fewer layers, and of each list with one entry a layer what is of those that stay."""
    config = model.hf.config
    if config.get_text_config() is not config and len(kept) < model.n_layers:
        raise InputError(
            f"The layers of {model.name} are those of a part of its config; it cannot be written without blocks."
        )
    values = copy.deepcopy(config.to_dict())
    values.pop("_attn_implementation", None)
    count = getattr(config, "attribute_map", {}).get("num_hidden_layers", "num_hidden_layers")
    if len(kept) < model.n_layers:
        if values.get(count) != model.n_layers:
            raise InputError(f"The config of {model.name} does not say how many layers it has; no block can go.")
        values[count] = len(kept)
        for name, value in values.items():
            if isinstance(value, list) and len(value) == model.n_layers and ("layer" in name or "block" in name):
                values[name] = [value[layer] for layer in kept]
        if "attention_types" in values and "attention_layers" in values:  # GPT-Neo: the short form of the list
            values["attention_types"] = [[[kind], 1] for kind in values["attention_layers"]]
        if isinstance(limit := values.get("max_window_layers"), int):
            values["max_window_layers"] = sum(layer < limit for layer in kept)
    made = type(config).from_dict(values)
    made._attn_implementation = None  # a name that only this process knows must not be written
    return made
