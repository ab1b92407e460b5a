"""EleutherAI sparsify: cfg.json and sae.safetensors, in a folder named like its hook point.

Theirs subtract the decoder bias from the input whatever `normalize_decoder` says, and keep W_dec as [features, width],
which the converter of sae-lens 6.54 takes otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from workbench.core.errors import InputError
from workbench.core.json_text import read_json_object
from workbench.sae.formats.checkpoint import SaeState, checkpoint, need, safetensors_state
from workbench.sae.hook_names import site_of


def about(weights: Path) -> dict[str, Any]:
    """The hook point is the folder's name; a transcoder reads what goes into that module, and writes what comes out."""
    config = read_json_object(weights.parent / "cfg.json", what="cfg.json")
    above = weights.parent.parent / "config.json"
    run = read_json_object(above, what=str(above)) if above.is_file() else {}
    hook, out = weights.parent.name, None
    site = site_of(hook)
    if config.get("transcode") and site is not None:
        into = {"mlp_out": "mlp_in", "resid_post": "resid_pre"}.get(site.kind)
        hook, out = (f"{into}.{site.layer}", str(site)) if into else (None, None)
    told = {"model_name": run.get("model"), "dataset_path": run.get("dataset"), "context_size": run.get("ctx_len")}
    return {"hook_name": hook, "hook_name_out": out} | told


def read(weights: Path) -> SaeState:
    """z = TopK(ReLU(W_enc (x − b_dec) + b_enc)), x̂ = W_decᵀ z + b_dec; a transcoder does not subtract b_dec, and may
    add W_skip x."""
    folder = weights.parent
    config = read_json_object(folder / "cfg.json", what=str(folder / "cfg.json"))
    where = f"The sparsify checkpoint {folder.name}"
    if config.get("signed"):
        raise InputError(f"{where} has 'signed'; that is not supported.")
    if config.get("activation", "topk") != "topk":
        raise InputError(f"{where} has the activation '{config['activation']}'; only topk is supported.")
    if config.get("skip_connection") and not config.get("transcode"):
        raise InputError(f"{where} has 'skip_connection' without 'transcode'; that is not supported.")
    raw = safetensors_state(weights)
    if "W_dec" not in raw:
        raise InputError(f"{where} has no decoder (W_dec).")
    encoder, decoder, b_dec = need(raw, "encoder.weight", "W_dec", "b_dec", where=weights)
    k = config.get("k")
    if not isinstance(k, int) or not 1 <= k <= len(encoder):
        raise InputError(f"{where} says k = {k!r}, of {len(encoder)} features.")
    state = {
        "W_enc": encoder.T,
        "b_enc": raw.get("encoder.bias", encoder.new_zeros(len(encoder))),
        "W_dec": decoder,
        "b_dec": b_dec,
    }
    told = about(weights)
    if not config.get("transcode"):
        return checkpoint("topk", state, told, k=k, apply_b_dec_to_input=True, rescale_acts_by_decoder_norm=False)
    if "W_skip" in raw:
        state["W_skip"] = raw["W_skip"]
    elif config.get("skip_connection"):
        raise InputError(f"{where} says 'skip_connection', but has no W_skip.")
    if told["hook_name_out"] is None:
        raise InputError(f"{where} is a transcoder of '{folder.name}', which is no MLP or block that we know.")
    made = checkpoint("skip_transcoder" if "W_skip" in state else "transcoder", state, told)
    return SaeState(made.config, made.state, top_k=k)
