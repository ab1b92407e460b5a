"""sae-lens' own folders: cfg.json and sae_weights.safetensors, of any version; also its training checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from workbench.core.errors import InputError
from workbench.core.json_text import read_json_object
from workbench.sae.formats.checkpoint import SaeState

BY_BATCH = ("batchtopk", "matryoshka_batchtopk")  # classes for training, used through the threshold that they learn


def about(weights: Path) -> dict[str, Any]:
    """What cfg.json says beside the sizes: hook names, and how the model was read."""
    config = read_json_object(weights.parent / "cfg.json", what="cfg.json")
    metadata = config.get("metadata") or {}
    if not isinstance(metadata, dict):
        return {}
    # before version 6 it stood beside the sizes
    return {"hook_name": config.get("hook_name") or config.get("hook_point")} | config | metadata


def read(weights: Path) -> SaeState:
    """Config and weights as sae-lens reads them; a batch-top-k checkpoint of a training becomes the JumpReLU
    autoencoder that sae-lens saves of it."""
    from sae_lens.loading.pretrained_sae_loaders import handle_config_defaulting, sae_lens_disk_loader

    config = read_json_object(weights.parent / "cfg.json", what="cfg.json")
    if config.get("architecture") in BY_BATCH:
        return _by_threshold(weights, config)
    overrides = {"dtype": "float32", "device": "cpu"}
    found, state = sae_lens_disk_loader(weights.parent, "cpu", overrides)
    found = handle_config_defaulting(found)
    found["metadata"] = {"sae_lens_version": "6.0.0"} | dict(found.get("metadata") or {})  # it is of that form now
    return SaeState(found, state)


def _by_threshold(weights: Path, config: dict[str, Any]) -> SaeState:
    from workbench.sae.formats.checkpoint import safetensors_state

    state = {name: value.float() for name, value in safetensors_state(weights).items()}
    if "topk_threshold" in state:
        state["threshold"] = torch.ones_like(state["b_enc"]) * state.pop("topk_threshold")
    if "threshold" not in state:
        raise InputError(
            f"The {config['architecture']} autoencoder has no threshold, so what fires would depend on the batch; save "
            f"it with sae-lens' save_inference_model."
        )
    if config.get("rescale_acts_by_decoder_norm"):
        norm = state["W_dec"].norm(dim=-1).clamp(min=1e-8)
        state["W_enc"], state["b_enc"] = state["W_enc"] * norm, state["b_enc"] * norm
        state["W_dec"] = state["W_dec"] / norm[:, None]
    kept = ("d_in", "d_sae", "apply_b_dec_to_input", "normalize_activations", "reshape_activations", "metadata")
    own = {key: config[key] for key in kept if key in config}
    own["metadata"] = {"sae_lens_version": "6.0.0"} | dict(own.get("metadata") or {})
    return SaeState(own | {"architecture": "jumprelu", "dtype": "float32", "device": "cpu"}, state)
