"""Load any Hugging Face causal LM as a `Model`, and check that it is what the probes take it for.

Loading checks that the weights are finite, and refuses otherwise; of the identities which the probes rely on it finds
out which hold for this architecture (`model.facts`), and what needs one that does not is refused when it is asked for.
"""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from workbench.core.errors import InputError, RunFailed, WorkbenchError
from workbench.core.file_hashes import stamp
from workbench.core.wording import one_line
from workbench.models.adapters import WEIGHTS, Adapter, merge, other_base, read_adapter
from workbench.models.architecture import examine, find_anatomy, weight_of
from workbench.models.batching import is_out_of_memory
from workbench.models.files import (
    ADAPTER_CONFIG,
    check_complete,
    check_folder,
    check_number_format,
    load_tokenizer,
    read_part,
    resolve,
)
from workbench.models.load_checks import find_facts, install_attention
from workbench.models.load_options import AUTOMATIC, check_device, check_dtype, read_day
from workbench.models.model import DTYPES, Model
from workbench.models.precision import check_fits, dtype_for
from workbench.models.prompt_templates import check_date
from workbench.models.skipping import skip_dropped
from workbench.models.tensor_parallel import check_tensor_parallel, restrict, tensor_parallel_options
from workbench.models.text_side import prepends_bos

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load(
    name: str,
    revision: str | None = None,
    *,
    dtype: str | torch.dtype = AUTOMATIC,
    device: str | torch.device | None = None,
    trust_remote_code: bool = False,
    adapter: str | Path | None = None,
    date: str | datetime.date | None = None,
    tp_plan: str | None = None,
) -> Model:
    """Load a causal LM for observation.

    `name`: an organism, a local folder in Hugging Face format, or a hub id (`revision` is the hub's). `dtype`:
    "float32", "bfloat16", "float16", "float64" or "auto" (as stored); by default float32 on a CPU and as stored on an
    accelerator (`precision.dtype_for`). `device`: "cpu", "cuda", "cuda:1", or "auto" to spread it with accelerate; None
    takes a GPU if there is one. `tp_plan`: "auto" spreads it over the processes that torchrun started
    (`tensor_parallel`): sites of the stream, scores and decoding, for scripts of one's own. `adapter`: a folder of
    peft's, merged into the weights. `date`: the day (2025-01-31) that a chat template which prints today's date is
    told; always the same one by default. Raises InputError for a missing, incomplete, damaged or pickled model, one
    whose libraries are not here, an architecture or adapter that does not fit, and weights that the device has no room
    for."""
    if isinstance(dtype, str):
        check_dtype(dtype)
    asked, device = device, check_device(device)
    day = read_day(date)
    folder = resolve(name, revision=revision)
    check_folder(folder, name)
    if tp_plan is not None:
        check_tensor_parallel(folder, name, tp_plan, device=asked, adapter=adapter)
    dtype = dtype_for(folder, device) if dtype == AUTOMATIC else dtype
    processes = 1 if tp_plan is None else int(os.environ["WORLD_SIZE"])
    check_fits(folder, name, dtype=str(dtype).removeprefix("torch."), device=device, parts=processes)
    patch = None if adapter is None else read_adapter(adapter)
    before = _stamps(folder, patch)
    try:
        check_number_format(folder, name, _methods())
        spread = tensor_parallel_options() if tp_plan else {"device_map": "auto"} if str(device) == "auto" else {}
        hf, info = _from_files(folder, dtype, spread, trust_remote_code)
        check_complete(hf, info, name)
        hf = hf if spread else hf.to(device)
        hf = hf if patch is None else merge(hf, patch, name=name)
        tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
        model = wrap(hf, tokenizer, name=name, revision=revision, folder=folder)
    except (WorkbenchError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # Rust panics are no Exceptions, and libraries raise whatever they like
        raise _why_not(error, folder, name) from error
    model.adapter, model.day = patch, day
    model.warnings += tuple(filter(None, [patch and other_base(patch, name)]))
    check_date(model, date)
    _ = model.fingerprint  # taken now: the files may become others later
    if _stamps(folder, patch) != before:
        raise InputError(f"The files of '{name}' changed while it was loaded; load it again.")
    return model


def _stamps(folder: Path, adapter: Adapter | None) -> tuple:
    """Other ones once a file of the model has changed."""
    weights = [path for path in sorted(folder.rglob("*")) if path.suffix in (".safetensors", ".json", ".py")]
    weights += [] if adapter is None else [adapter.path / ADAPTER_CONFIG, adapter.path / WEIGHTS]
    return tuple((str(path), stamp(path)) for path in weights if path.is_file())


def _methods() -> list[str]:
    """The kinds of quantised weights that transformers reads, or refuses with what is missing."""
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    return list(AUTO_QUANTIZATION_CONFIG_MAPPING)


def _from_files(folder: Path, dtype: Any, spread: dict[str, Any], trust_remote_code: bool) -> tuple[Any, dict]:
    """The Hugging Face model in a folder, and what transformers says of its loading. `spread`: over which devices."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # the table of what was not loaded becomes one sentence of check_complete
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=DTYPES.get(dtype, dtype) if isinstance(dtype, str) else dtype,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
            **spread,
        )
    finally:
        logging.set_verbosity(verbosity)
    return loaded


def _why_not(error: BaseException, folder: Path, name: str) -> WorkbenchError:
    """One sentence of what kept a model from being loaded."""
    if is_out_of_memory(error):
        return RunFailed(
            f"There is not enough memory for the model '{name}' ({one_line(error)}); use a smaller dtype or model, or "
            f"another device."
        )
    asked = read_part(folder / "config.json", name).get("quantization_config")
    method = asked.get("quant_method") if isinstance(asked, dict) else None
    quantised = f" (it is quantised: {method or 'quantization_config'}; without that support, give the original model)"
    return InputError(
        f"The model '{name}' cannot be loaded: {one_line(error, 300)}{quantised if asked is not None else ''}."
    )


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
    model = Model(hf, tokenizer, name, revision, folder, anatomy, through, prepends_bos(tokenizer))
    find_facts(model, ids, own)
    restrict(model)
    skip_dropped(model)
    return model
