"""dictionary_learning (saprmarks, SAEBench): ae.pt and config.json; standard, gated, TopK, BatchTopK, Matryoshka and
JumpReLU dictionaries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from workbench.core.errors import InputError
from workbench.core.json_text import read_json_object
from workbench.core.nearest_name import nearest
from workbench.sae.formats.checkpoint import SaeState, checkpoint, torch_state
from workbench.sae.hook_names import site_of

CLASSES = {
    "AutoEncoder": "standard",
    "AutoEncoderTopK": "topk",
    "BatchTopKSAE": "jumprelu",
    "MatryoshkaBatchTopKSAE": "jumprelu",
    "JumpReluAutoEncoder": "jumprelu",
    "GatedAutoEncoder": "gated",
}
RENAMED = {
    "bias": "b_dec",
    "decoder_bias": "b_dec",
    "encoder.bias": "b_enc",
    "mag_bias": "b_mag",
    "gate_bias": "b_gate",
}


def about(weights: Path) -> dict[str, Any]:
    """Model, submodule and context as its trainer recorded them."""
    config = read_json_object(weights.parent / "config.json", what="config.json")
    trainer, buffer = _part(config, "trainer"), _part(config, "buffer")
    name, layer = str(trainer.get("submodule_name") or ""), trainer.get("layer")
    kind = next((k for k in ("resid_pre", "resid_mid", "attn_out", "mlp_out") if k in name), "resid_post")
    if not isinstance(layer, int):
        hook = None
    elif name and site_of(name) is not None:
        hook = str(site_of(name))
    elif name and kind == "resid_post" and "resid_post" not in name:
        hook = None  # a submodule that we do not know
    else:
        hook = f"{kind}.{layer}"
    return {
        "hook_name": hook,
        "model_name": trainer.get("lm_name"),
        "context_size": buffer.get("ctx_len"),
        "dataset_path": buffer.get("dataset") or buffer.get("dataset_name"),
    }


def read(weights: Path) -> SaeState:
    """The class that the trainer names says how it encodes; those by batch use the threshold that they learnt."""
    config = read_json_object(weights.parent / "config.json", what="config.json")
    trainer = _part(config, "trainer")
    kind = str(trainer.get("dict_class") or "")
    if kind not in CLASSES:
        raise InputError(
            f"config.json names the dictionary class '{kind}'{nearest(kind, CLASSES)}; supported are "
            f"{', '.join(CLASSES)}."
        )
    raw = torch_state(weights)
    state = {RENAMED.get(name, name): value for name, value in raw.items() if isinstance(value, torch.Tensor)}
    for name in ("encoder", "decoder"):
        if (weight := state.pop(f"{name}.weight", None)) is not None:
            state["W_enc" if name == "encoder" else "W_dec"] = weight.T
    architecture = CLASSES[kind]
    extra = {"apply_b_dec_to_input": kind != "JumpReluAutoEncoder" or bool(raw.get("apply_b_dec_to_input", False))}
    if architecture == "jumprelu":
        if "threshold" not in state or "W_enc" not in state or bool((state["threshold"] < 0).any()):
            raise InputError(
                f"{weights.name} has no threshold that was learnt, so what fires would depend on the batch; only a "
                f"finished training can be used."
            )
        state["threshold"] = state["threshold"].float().expand(state["W_enc"].shape[1])
    else:
        state.pop("threshold", None)  # AutoEncoderTopK keeps one, but encodes with its k
    if architecture == "topk":
        k = trainer.get("k", raw.get("k"))
        extra |= {"k": int(k) if k is not None else 0, "rescale_acts_by_decoder_norm": False}
        if extra["k"] < 1:
            raise InputError("config.json does not say how many features are active (trainer, k).")
    known = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold", "b_mag", "b_gate", "r_mag")
    state = {name: state[name] for name in known if name in state}
    if architecture == "gated":
        state.pop("b_enc", None)
    elif "b_enc" not in state:
        raise InputError(f"{weights.name} has no bias of the encoder.")
    return checkpoint(architecture, state, about(weights), **extra)


def _part(config: dict[str, Any], name: str) -> dict[str, Any]:
    found = config.get(name)
    return found if isinstance(found, dict) else {}
