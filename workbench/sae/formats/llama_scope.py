"""Llama Scope and later autoencoders of lm_saes: hyperparams.json with checkpoints/final.safetensors, or config.json
with sae_weights.safetensors. Both expect activations scaled to a mean norm of √d, which is folded into the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from workbench.core.errors import InputError
from workbench.core.json_text import read_json_object
from workbench.sae.formats.checkpoint import SaeState, checkpoint, need, safetensors_state

MODEL = "meta-llama/Llama-3.1-8B"
READ_AS = {"prepend_bos": True, "context_size": 1024, "dataset_path": "cerebras/SlimPajama-627B"}


def settings_file(weights: Path) -> Path:
    """hyperparams.json, beside the folder `checkpoints` or the weights; config.json for the later ones."""
    if weights.name != "final.safetensors":
        return weights.parent / "config.json"
    return (weights.parent.parent if weights.parent.name == "checkpoints" else weights.parent) / "hyperparams.json"


def about(weights: Path) -> dict[str, Any]:
    """Hook names as recorded; the two are the same for an autoencoder."""
    config = _settings(weights)
    hook, out = config.get("hook_point_in"), config.get("hook_point_out")
    told = {"hook_name": hook, "hook_name_out": out if out != hook else None}
    return READ_AS | {"model_name": config.get("model_name") or MODEL} | told


def read(weights: Path) -> SaeState:
    """JumpReLU with one threshold for all features. The threshold is scaled with the weights, as sae-lens does."""
    config = _settings(weights)
    state = _linear(weights)
    d_in, d_sae = state["W_enc"].shape
    scale = d_in**0.5 / _average_norm(config, weights, "in")
    if (threshold := config.get("jump_relu_threshold")) is None:
        raise InputError(f"{settings_file(weights).name} has no jump_relu_threshold; only JumpReLU is supported.")
    state["threshold"] = torch.full((d_sae,), float(threshold) * scale)
    return _folded(state, about(weights), config, weights, scale)


def read_later(weights: Path) -> SaeState:
    """JumpReLU with a threshold per feature, stored as its logarithm."""
    config = _settings(weights)
    if str(config.get("act_fn", "jumprelu")) != "jumprelu":
        raise InputError(f"config.json says act_fn '{config['act_fn']}'; only jumprelu is supported.")
    state = _linear(weights)
    (log,) = need(safetensors_state(weights), "log_jumprelu_threshold", where=weights)
    state["threshold"] = log.float().exp()
    told = about(weights)
    if "dataset_average_activation_norm" not in config:
        scale = _registered_scale(weights)
        if scale is None:
            return checkpoint(
                _kind(told), state, told, normalize_activations="expected_average_only_in"
            )  # loading refuses it: the scale is not known
    else:
        scale = state["W_enc"].shape[0] ** 0.5 / _average_norm(config, weights, "in")
    return _folded(state, told, config, weights, scale)


def _linear(weights: Path) -> dict[str, torch.Tensor]:
    raw = safetensors_state(weights)
    found = need(raw, "encoder.weight", "decoder.weight", "encoder.bias", "decoder.bias", where=weights)
    encoder, decoder, b_enc, b_dec = (value.float() for value in found)
    return {"W_enc": encoder.T, "W_dec": decoder.T, "b_enc": b_enc, "b_dec": b_dec}


def _folded(
    state: dict[str, torch.Tensor], told: dict[str, Any], config: dict[str, Any], weights: Path, scale: float
) -> SaeState:
    out = told.get("hook_name_out")
    back = state["W_dec"].shape[1] ** 0.5 / _average_norm(config, weights, "out") if out else scale
    state |= {"W_enc": state["W_enc"] * scale, "W_dec": state["W_dec"] / back, "b_dec": state["b_dec"] / back}
    return checkpoint(_kind(told), state, told)


def _kind(told: dict[str, Any]) -> str:
    return "jumprelu_transcoder" if told.get("hook_name_out") else "jumprelu"


def _average_norm(config: dict[str, Any], weights: Path, side: str) -> float:
    found = config.get("dataset_average_activation_norm")
    value = found.get(side) if isinstance(found, dict) else found
    if not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise InputError(
            f"{settings_file(weights).name} does not say by how much activations are scaled "
            f"(dataset_average_activation_norm, {side!r})."
        )
    return float(value)


def _registered_scale(weights: Path) -> float | None:
    """The scale that sae-lens has on record for a folder of a release, by the end of its path."""
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    known = get_pretrained_saes_directory().get("llama_scope_r1_distill")
    inside = "/".join(weights.parent.parts[-2:])
    found = [own for own, path in known.saes_map.items() if path == inside] if known else []
    return known.norm_scaling_factor.get(found[0]) if known and found else None


def _settings(weights: Path) -> dict[str, Any]:
    path = settings_file(weights)
    return read_json_object(path, what=path.name)
