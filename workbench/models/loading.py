"""Load any Hugging Face causal LM as a `Model`, and check that it is what the probes take it for.

Loading checks that the weights are finite, and refuses otherwise; of the identities which the probes rely on it finds
out which hold for this architecture (`model.facts`), and what needs one that does not is refused when it is asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from workbench.core.errors import InputError
from workbench.models.architecture import examine, find_anatomy, weight_of
from workbench.models.files import check_complete, check_folder, load_tokenizer, resolve
from workbench.models.load_checks import find_facts, install_attention
from workbench.models.model import DTYPES, Model

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load(
    name: str,
    revision: str | None = None,
    *,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device | None = None,
    trust_remote_code: bool = False,
) -> Model:
    """Load a causal LM for observation.

    `name`: an organism, a local folder in Hugging Face format, or a hub id. `dtype`: "float32" (default), "bfloat16",
    "float16", "float64" or "auto" (as stored). `device`: "cpu", "cuda", "cuda:1", or "auto" to spread it with
    accelerate; None takes a GPU if there is one. Raises InputError for a missing, incomplete, damaged or pickled model
    and for an architecture that does not fit."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    if isinstance(dtype, str) and dtype != "auto" and dtype not in DTYPES:
        raise InputError(f"'{dtype}' is not a dtype; choose one of auto, {', '.join(DTYPES)}.")
    device = _check_device(device)
    folder = resolve(name, revision=revision)
    check_folder(folder, name)
    options = {"device_map": "auto"} if str(device) == "auto" else {}
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # the table of what was not loaded becomes one sentence below
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=DTYPES.get(dtype, dtype) if isinstance(dtype, str) else dtype,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
        hf, info = loaded
    except (OSError, ValueError, KeyError, SafetensorError, RuntimeError) as error:
        raise InputError(f"The model '{name}' cannot be loaded: {str(error).splitlines()[0][:300]}") from error
    finally:
        logging.set_verbosity(verbosity)
    check_complete(hf, info, name)
    if not options:
        hf = hf.to(device)
    return wrap(
        hf, load_tokenizer(folder, trust_remote_code=trust_remote_code), name=name, revision=revision, folder=folder
    )


def _check_device(device: str | torch.device | None) -> str | torch.device:
    """The device to load on; InputError for one that is misspelt or not there."""
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if str(device) == "auto":
        return device
    try:
        found = torch.device(device)
    except RuntimeError:
        found = None
    if found is None or found.type not in ("cpu", "cuda", "mps"):
        raise InputError(f"'{device}' is not a device; use cpu, cuda, cuda:1, mps or auto.")
    if (
        found.type == "mps"
        and not torch.backends.mps.is_available()
        or found.type == "cuda"
        and not torch.cuda.is_available()
    ):
        raise InputError(f"The device '{device}' was asked for but this machine has no usable GPU; use --device cpu.")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"The device '{device}' was asked for but this machine has {torch.cuda.device_count()} GPU, "
            f"counted from cuda:0."
        )
    return device


def wrap(
    hf: PreTrainedModel, tokenizer=None, *, name: str = "model", revision: str | None = None, folder: Path | None = None
) -> Model:
    """A `Model` around a Hugging Face causal LM that is already in memory; checks it as `load` does."""
    hf = hf.eval().requires_grad_(False)
    for key, value in hf.named_parameters():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise InputError(
                f"The model '{name}' has NaN or infinite weights, first in {key}; its files are damaged, or "
                f"{str(value.dtype).removeprefix('torch.')} cannot hold its weights."
            )
    anatomy = find_anatomy(hf)
    embedding = weight_of(hf.get_input_embeddings())
    ids = (torch.arange(1, 8, device=embedding.device) * 7919 % len(embedding))[None]
    with torch.no_grad():
        own = hf(input_ids=ids, use_cache=False).logits
    through = install_attention(hf, anatomy, ids, own)
    examine(hf, anatomy, ids)
    model = Model(hf, tokenizer, name, revision, folder, anatomy, through, _prepends_bos(tokenizer))
    find_facts(model, ids, own)
    return model


def _prepends_bos(tokenizer) -> bool:
    if tokenizer is None or tokenizer.bos_token_id is None:
        return False
    found = tokenizer("a")["input_ids"]
    return len(found) > 0 and found[0] == tokenizer.bos_token_id
