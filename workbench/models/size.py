"""How large a model is, from its config.json alone: no weight is read or made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.core.errors import InputError
from workbench.core.wording import one_line
from workbench.models.load_options import check_dtype

BYTES = {"float64": 8, "float32": 4, "fp32": 4, "bfloat16": 2, "bf16": 2, "float16": 2, "fp16": 2}


@dataclass(frozen=True)
class Size:
    """Numbers of parameters. ``active``: those that a token meets (of a mixture of experts, the chosen ones only);
    an embedding that is only looked up is among ``total``, not here."""

    total: int
    active: int
    dtype: str  # as stored, where config.json says so

    def weight_bytes(self, dtype: str) -> int:
        """Bytes of the weights in that precision ("auto": as stored)."""
        check_dtype(dtype)
        return self.total * BYTES[self.dtype if dtype == "auto" else dtype]


def size_of(folder: Path) -> Size:
    """The size of the model in a folder. Raises InputError for an architecture that cannot be made from its config."""
    model = empty_model(folder)
    config = model.config
    expert_share = share_of_experts(config)
    total = active = 0
    looked_up = model.get_input_embeddings().weight
    tied = model.get_output_embeddings() is not None and model.get_output_embeddings().weight is looked_up
    for name, weight in model.named_parameters():
        total += weight.numel()
        if weight is looked_up and not tied:
            continue
        active += round(weight.numel() * (expert_share if ".experts." in name else 1))
    dtype = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
    return Size(total, active, dtype if dtype in BYTES else "float32")


def share_of_experts(config: Any) -> float:
    """The share of a mixture's experts that a token meets; 1 where there are none."""
    inner = config.get_text_config()
    of_experts = _first(inner, "num_local_experts", "num_experts", "n_routed_experts")
    chosen = _first(inner, "num_experts_per_tok", "num_experts_per_token", "moe_top_k")
    return chosen / of_experts if of_experts and chosen else 1.0


def empty_model(folder: Path, **options: Any) -> Any:
    """The Hugging Face model of a folder with shapes and no numbers (on the device "meta"); `options` of `from_config`.

    Raises InputError for an architecture that cannot be made from its config."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, **options).eval()
    except Exception as error:  # configs are programs, too
        raise InputError(
            f"{folder}: the size of the model cannot be told from its config.json ({one_line(error)})."
        ) from error


def _first(config: object, *names: str) -> int:
    return next((value for name in names if isinstance(value := getattr(config, name, None), int)), 0)
