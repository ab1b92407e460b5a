"""Autoencoders that are one PyTorch file, known by the names of their tensors: OpenAI, Qwen Scope, Goodfire, DeepSeek
R1 (qresearch), and those of attention outputs by Kissane and others."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from workbench.core.errors import InputError
from workbench.core.json_text import read_json_object
from workbench.sae.formats.checkpoint import SaeState, checkpoint, named_layer, need, of_release, torch_state

OPENAI = {  # where in the model, in the names of their folders
    "resid_post_mlp": "resid_post",
    "resid_post_attn": "resid_mid",
    "resid_delta_mlp": "mlp_out",
    "resid_delta_attn": "attn_out",
    "mlp_post_act": "mlp_hidden",
}


def about(weights: Path) -> dict[str, Any]:
    """What the names say: `resid_post_mlp_v5_32k/autoencoders/8.pt`, `SAE-Res-Qwen3-8B-Base-W32K-L0_50/layer0.sae.pt`,
    `DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt`, or a …_cfg.json beside the file."""
    config = weights.with_name(weights.name.removesuffix(".pt") + "_cfg.json")
    if config.is_file():
        found = read_json_object(config, what=config.name)
        return {"hook_name": found.get("act_name"), "model_name": found.get("model_name"), "prepend_bos": True}
    if place := of_release(weights.parent, "|".join(OPENAI)):
        layer = int(weights.stem) if weights.stem.isdigit() else named_layer(weights)
        model = "gpt2-small" if of_release(weights, "gpt2-small") else None
        return {
            "hook_name": f"{OPENAI[place[0]]}.{layer}" if layer is not None else None,
            "model_name": model,
            "prepend_bos": False,
        }
    if qwen := of_release(weights, r"SAE-Res-(.+)-W\d+K-L0_\d+"):
        layer = named_layer(Path(weights.name))
        return {"hook_name": f"resid_post.{layer}" if layer is not None else None, "model_name": f"Qwen/{qwen[1]}"}
    layer = named_layer(Path(weights.name))
    model = re.fullmatch(r"(.+)-SAE-l\d+\.\w+", weights.name)
    return {
        "hook_name": f"resid_post.{layer}" if layer is not None and model else None,
        "model_name": model[1] if model else None,
    }


def read(weights: Path) -> SaeState:
    """Raises InputError, with the tensors that it holds, for a file that is none of these."""
    raw, told = torch_state(weights), about(weights)
    if {"pre_bias", "latent_bias"} <= set(raw):
        return _openai(raw, told, weights)
    if "encoder_linear.weight" in raw:
        return checkpoint("standard", _linear(raw, "encoder_linear", "decoder_linear", weights), told)
    if {"encoder.weight", "decoder.bias"} <= set(raw):
        return checkpoint("standard", _linear(raw, "encoder", "decoder", weights), told)
    if not {"W_enc", "W_dec", "b_enc", "b_dec"} <= set(raw):
        raise InputError(
            f"{weights.name} holds {', '.join(map(str, list(raw)[:8]))}: of no autoencoder that we know (OpenAI has "
            f"pre_bias and latent_bias, Qwen Scope W_enc and b_enc, others encoder.weight or encoder_linear.weight)."
        )
    return _plain(raw, told, weights)


def _openai(raw: dict[str, Any], told: dict[str, Any], weights: Path) -> SaeState:
    """Top-k ones read activations that are normalised to mean 0 and deviation 1; ReLU ones read them as they are."""
    activation = str(raw.get("activation", "ReLU"))
    encoder, decoder, before, latent = need(
        raw, "encoder.weight", "decoder.weight", "pre_bias", "latent_bias", where=weights
    )
    state = {"W_enc": encoder.T, "W_dec": decoder.T, "b_enc": latent, "b_dec": before}
    if activation == "ReLU":
        return checkpoint("standard", state, told, apply_b_dec_to_input=True)
    inside = raw.get("activation_state_dict")
    k = inside.get("k") if isinstance(inside, dict) else None
    if activation != "TopK" or k is None:
        raise InputError(f"{weights.name} has the activation '{activation}' (k = {k}); supported are TopK and ReLU.")
    return checkpoint(
        "topk",
        state,
        told,
        k=int(k),
        apply_b_dec_to_input=True,
        normalize_activations="layer_norm",
        rescale_acts_by_decoder_norm=False,
    )


def _linear(raw: dict[str, Any], encoder: str, decoder: str, weights: Path) -> dict[str, torch.Tensor]:
    found = need(raw, f"{encoder}.weight", f"{decoder}.weight", f"{encoder}.bias", f"{decoder}.bias", where=weights)
    return {"W_enc": found[0].T, "W_dec": found[1].T, "b_enc": found[2], "b_dec": found[3]}


def _plain(raw: dict[str, Any], told: dict[str, Any], weights: Path) -> SaeState:
    encoder, decoder, b_enc, b_dec = need(raw, "W_enc", "W_dec", "b_enc", "b_dec", where=weights)
    if weights.with_name(weights.name.removesuffix(".pt") + "_cfg.json").is_file():
        state = {"W_enc": encoder, "W_dec": decoder, "b_enc": b_enc, "b_dec": b_dec}
        return checkpoint("standard", state, told, apply_b_dec_to_input=True, reshape_activations="hook_z")
    k = of_release(weights, r"L0_(\d+)")
    if k is None:
        raise InputError(
            f"{weights.name} looks like Qwen Scope, which says how many features are active in the name of its "
            f"repository only; keep that name (…-W32K-L0_50) in the path."
        )
    state = {"W_enc": encoder.T, "W_dec": decoder.T, "b_enc": b_enc, "b_dec": b_dec}
    return checkpoint("topk", state, told, k=int(k[1]), rescale_acts_by_decoder_norm=False)
