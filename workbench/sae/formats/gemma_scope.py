"""Gemma Scope: params.npz (Gemma 2) and params.safetensors (Gemma 3), JumpReLU; model, site and layer stand in the
names of the repository and its folders."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from workbench.core.errors import InputError
from workbench.core.wording import one_line
from workbench.sae.formats.checkpoint import (
    SaeState,
    beside,
    checkpoint,
    named_layer,
    need,
    of_release,
    safetensors_state,
)

READ_AS = {"prepend_bos": True, "context_size": 1024, "dataset_path": "monology/pile-uncopyrighted"}
HOOKS = {
    "res": ("hook_resid_post", None),
    "mlp": ("hook_mlp_out", None),
    "att": ("attn.hook_z", None),
    "transcoders": ("ln2.hook_normalized", "hook_mlp_out"),
}
SECOND = {  # Gemma Scope 2
    "resid_post": ("hook_resid_post", None),
    "attn_out": ("attn.hook_z", None),
    "mlp_out": ("hook_mlp_out", None),
    "transcoder": ("mlp.hook_in", "hook_mlp_out"),
    "clt": ("mlp.hook_in", "hook_mlp_out"),
}


def about(weights: Path) -> dict[str, Any]:
    """Of `…/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71`: the model and the site."""
    found = of_release(weights, r"gemma-scope-(\d+b)-(pt|it)-(res|mlp|att|transcoders)")
    if found is None:
        return dict(READ_AS)
    embedding = any("embedding" in part for part in weights.parts)
    hook, out = ("hook_embed", None) if embedding else _hooks(HOOKS[found[3]], named_layer(weights))
    name = f"gemma-2-{found[1]}" + ("-it" if found[2] == "it" else "")
    return READ_AS | {"model_name": name, "hook_name": hook, "hook_name_out": out}


def read(weights: Path) -> SaeState:
    """z = a · 1[a > threshold] of a = ReLU(x W_enc + b_enc); x̂ = z W_dec + b_dec."""
    try:
        with np.load(weights, allow_pickle=False) as data:
            raw = {key.lower(): torch.from_numpy(np.asarray(data[key], np.float32)) for key in data}
    except (OSError, ValueError, zipfile.BadZipFile, KeyError) as error:
        raise InputError(f"{weights.name} cannot be read ({one_line(error)}).") from error
    told = about(weights)
    state = _state(raw, weights)
    if told.get("hook_name") == "hook_embed":  # trained on embeddings that were not scaled by √d yet
        scale = state["W_enc"].shape[0] ** 0.5
        state |= {"W_enc": state["W_enc"] / scale, "W_dec": state["W_dec"] * scale}
    return checkpoint("jumprelu_transcoder" if told.get("hook_name_out") else "jumprelu", state, told)


def about_second(weights: Path) -> dict[str, Any]:
    """Of `…/gemma-scope-2-4b-pt/resid_post/layer_17_width_16k_l0_medium`: the model and the site."""
    config = beside(weights, "config.json")
    found = of_release(weights, r"gemma-scope-2-(\w+)-(pt|it)")
    named = of_release(weights, r"^(?:.*[-_])?(resid_post|attn_out|mlp_out|transcoder|clt)(?:_all)?$")
    name = config.get("model_name") or (f"gemma-3-{found[1]}-{found[2]}" if found else None)
    hook, out = _hooks(SECOND[named[1]], named_layer(weights)) if named else (None, None)
    told = {"model_name": name.replace("-v3", "-3") if isinstance(name, str) else None}
    return READ_AS | told | {"hook_name": hook, "hook_name_out": out, "hf_hook_name": config.get("hf_hook_point_in")}


def read_second(weights: Path) -> SaeState:
    """As the first, with an affine skip connection where there is one; of a cross-layer transcoder what each feature
    writes, summed over the layers."""
    raw = safetensors_state(weights)
    told = about_second(weights)
    state = _state(raw, weights)
    skip = raw.get("affine_skip_connection")
    crossing = state["W_dec"].ndim == 3
    if crossing:
        state["W_dec"] = state["W_dec"].sum(1)
    if skip is not None:
        state["W_skip"] = skip
    if skip is not None and not told.get("hook_name_out"):
        raise InputError(f"{weights.name} has a skip connection, but its folder does not say that it is a transcoder.")
    kind = "jumprelu"
    if told.get("hook_name_out"):
        kind = "jumprelu_skip_transcoder" if skip is not None else "jumprelu_transcoder"
    made = checkpoint(kind, state, told)
    return SaeState(made.config, made.state, reconstructs=not crossing)


def _state(raw: dict[str, torch.Tensor], weights: Path) -> dict[str, torch.Tensor]:
    names = ("w_enc", "w_dec", "b_enc", "b_dec", "threshold")
    found = {name.replace("w_", "W_"): value for name, value in zip(names, need(raw, *names, where=weights))}
    scale = raw.get("scaling_factor")
    if scale is not None and not torch.allclose(scale, torch.ones_like(scale)):
        raise InputError(f"{weights.name} has a scaling factor per feature; that is not supported.")
    return found


def _hooks(names: tuple[str, str | None], layer: int | None) -> tuple[str | None, str | None]:
    if layer is None:
        return None, None
    return f"blocks.{layer}.{names[0]}", f"blocks.{layer}.{names[1]}" if names[1] else None
