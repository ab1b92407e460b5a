"""A model without some of its heads or weights, as a Hugging Face folder for any other software."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from workbench.core.errors import InputError
from workbench.engine.head_masks import save_heads
from workbench.engine.weight_masks import fit_masks
from workbench.models.architecture import weight_of_head
from workbench.models.model import Model


def export_pruned(model: Model, heads: Sequence[tuple[int, int]], folder: str | Path) -> Path:
    """Write a Hugging Face folder of the model with the output weights of `heads` set to zero: the heads then add
    nothing.

    The model in memory stays as it is. Raises InputError for no heads, heads that do not exist and a folder that is not
    empty."""
    folder = Path(folder)
    if not heads:
        raise InputError("No head is named: the exported model would be the model itself.")
    model.check_heads(heads)
    layers = sorted({layer for layer, _ in heads})
    model.require("heads_apart", "heads_add_up", for_what="an export without some heads", layers=layers)
    names = {id(module): name for name, module in model.hf.named_modules()}
    state = {key: value for key, value in model.hf.state_dict().items()}
    for layer in layers:
        o_proj = model.o_proj(layer)
        key = f"{names[id(o_proj)]}.weight"
        weight = state[key].clone()
        for at, head in heads:
            if at == layer:
                weight[weight_of_head(o_proj, head, model.d_head)] = 0
        state[key] = weight
    _write(model, state, folder)
    note = f"already zero in these weights, which were {model.name}'s ({model.fingerprint[:12]})"
    save_heads(folder / "pruned_heads.json", heads, note=note, model=model)
    return folder


def export_masked(model: Model, masks: Mapping[str, torch.Tensor], folder: str | Path) -> Path:
    """Write a Hugging Face folder of the model in which what a mask (by name of the matrix) does not keep is zero; what
    no mask covers stays.

    The model in memory stays as it is. Raises InputError for masks that do not fit it and for a folder that is not
    empty."""
    folder = Path(folder)
    state = {key: value for key, value in model.hf.state_dict().items()}
    for name, mask in fit_masks(masks, model, where="The weight mask").items():
        state[name] = state[name].masked_fill(~mask.to(state[name].device), 0)
    _write(model, state, folder)
    return folder


def _write(model: Model, state: dict[str, torch.Tensor], folder: Path) -> None:
    """The folder of a model with other weights, and its tokenizer."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is there already and is not an empty folder; choose another for the pruned model.")
    config = model.hf.config
    implementation = config._attn_implementation
    try:
        config._attn_implementation = None  # a name that only this process knows must not be written
        model.hf.save_pretrained(folder, state_dict=state)
    finally:
        config._attn_implementation = implementation
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(folder)
