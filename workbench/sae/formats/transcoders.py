"""Transcoders of circuit-tracer: one file a layer (layer_3.safetensors), and cross-layer ones (W_enc_3.safetensors and
W_dec_3.safetensors), with config.yaml."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from workbench.core.errors import InputError
from workbench.sae.formats.checkpoint import (
    SaeState,
    checkpoint,
    encoder_columns,
    need,
    safetensors_state,
    yaml_beside,
)


def about(weights: Path) -> dict[str, Any]:
    """config.yaml names the hooks; those of a single layer are the MLP's input and output where it does not."""
    config = yaml_beside(weights, "config.yaml")
    found = re.search(r"(\d+)\.safetensors$", weights.name)
    hooks = config.get("feature_input_hook") or "mlp.hook_in", config.get("feature_output_hook") or "hook_mlp_out"
    told = {"model_name": config.get("model_name"), "model_from_pretrained_kwargs": {"fold_ln": False}}
    if found is None:
        return told
    return told | {"hook_name": f"blocks.{found[1]}.{hooks[0]}", "hook_name_out": f"blocks.{found[1]}.{hooks[1]}"}


def read(weights: Path) -> SaeState:
    """z = ReLU(W_enc x + b_enc), x̂ = W_decᵀ z + b_dec (+ W_skip x); JumpReLU where there is a threshold."""
    raw = safetensors_state(weights)
    encoder, decoder, b_enc, b_dec = need(raw, "W_enc", "W_dec", "b_enc", "b_dec", where=weights)
    if encoder.shape[0] == encoder.shape[1]:
        raise InputError(f"{weights.name} has as many features as inputs, so its encoder may stand either way round.")
    state = {"W_enc": encoder_columns(encoder, b_enc), "W_dec": decoder, "b_enc": b_enc, "b_dec": b_dec}
    kind = ""
    threshold = next((raw[key] for key in ("threshold", "activation_function.threshold") if key in raw), None)
    if threshold is not None:
        state["threshold"] = threshold.expand(len(b_enc))
        kind = "jumprelu_"
    if "W_skip" in raw:
        state["W_skip"] = raw["W_skip"]
        kind += "skip_"
    return checkpoint(f"{kind}transcoder", state, about(weights))


def read_cross_layer(weights: Path) -> SaeState:
    """One layer of a cross-layer transcoder: its features, and what each writes summed over the layers it writes to
    (W_dec [features, layers, width])."""
    layer = re.search(r"(\d+)\.safetensors$", weights.name)
    reads = weights.with_name(weights.name.replace("W_dec_", "W_enc_"))
    if layer is None or not reads.is_file():
        raise InputError(f"The folder of {weights.name} has no {reads.name}.")
    raw = safetensors_state(reads) | safetensors_state(weights)
    names = [f"{name}_{layer[1]}" for name in ("W_enc", "W_dec", "b_enc", "b_dec")]
    encoder, decoder, b_enc, b_dec = need(raw, *names, where=weights)
    if "activation_function.threshold" in raw or f"threshold_{layer[1]}" in raw:
        raise InputError(f"{weights.name} is of a cross-layer transcoder with thresholds; only ReLU is supported.")
    if decoder.ndim != 3:
        raise InputError(f"W_dec_{layer[1]} has the shape {list(decoder.shape)}, not [features, layers, width].")
    state = {"W_enc": encoder.T, "W_dec": decoder.float().sum(1), "b_enc": b_enc, "b_dec": b_dec}
    made = checkpoint("transcoder", state, about(weights))
    return SaeState(made.config, made.state, reconstructs=False)
