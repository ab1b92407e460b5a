"""The same model with its weights in another precision."""

from __future__ import annotations

import copy

import torch

from probes.concept_depth.before_loading import check_engine
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.models.loading import wrap
from workbench.models.model import DTYPES, Model


def in_precision(model: Model, precision: str, context: Context) -> Model:
    """A copy of the model with its weights in another precision. int8 rounds every weight matrix but the embeddings and
    the unembedding to 8 bits per output row (absmax) and computes in the model's own dtype: the rounding of LLM.int8(),
    without its kernels."""
    if getattr(model.hf.config, "quantization_config", None) is not None:
        raise InputError(
            f"The checkpoint {model.name} is quantised already; its weights cannot be taken to {precision}. "
            f"Use the original checkpoint."
        )
    check_engine(context)
    hf = copy.deepcopy(model.hf)
    if precision == "int8":
        _round_to_int8(hf)
    else:
        if torch.finfo(DTYPES[precision]).bits > torch.finfo(model.dtype).bits:
            context.warn(
                f"The model was loaded in {str(model.dtype).removeprefix('torch.')}; {precision} cannot bring "
                f"back what that rounded away."
            )
        hf = hf.to(DTYPES[precision])
    return wrap(hf, model.tokenizer, name=f"{model.name} ({precision})")


def _round_to_int8(hf: torch.nn.Module) -> None:
    """Round the weight matrices where they are, the embeddings and the unembedding aside."""
    spared = {id(m.weight) for m in (hf.get_input_embeddings(), hf.get_output_embeddings()) if m is not None}
    for module in hf.modules():
        weight = getattr(module, "weight", None)
        if weight is None or weight.ndim != 2 or id(weight) in spared or isinstance(module, torch.nn.Embedding):
            continue
        by_row = 0 if type(module).__name__ == "Conv1D" else 1  # GPT-2 keeps its matrices transposed
        scale = weight.float().abs().amax(by_row, keepdim=True).clamp(min=1e-12) / 127
        weight.data = (torch.round(weight.float() / scale) * scale).to(weight.dtype)
