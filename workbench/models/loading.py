"""Load any Hugging Face causal LM as a `Model`, and check that it is what the probes take it for.

Loading checks that the weights are finite and that the identities which the probes rely on hold for this architecture,
and refuses otherwise.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from workbench.core.errors import InputError, RunFailed, WorkbenchError
from workbench.core.file_hashes import stamp
from workbench.core.wording import one_line
from workbench.models.adapters import WEIGHTS, Adapter, merge, other_base, read_adapter
from workbench.models.architecture import Anatomy, examine, find_anatomy, hidden_argument, weight_of
from workbench.models.attention import edit, hooks_of, install, observe, unexplained
from workbench.models.batching import is_out_of_memory, pad
from workbench.models.files import (
    ADAPTER_CONFIG,
    check_complete,
    check_folder,
    check_number_format,
    load_tokenizer,
    read_json_object,
    resolve,
)
from workbench.models.load_options import check_device, check_dtype, read_day
from workbench.models.model import DTYPES, Model
from workbench.models.prompt_templates import uses_date
from workbench.models.running_pass import after

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load(
    name: str,
    revision: str | None = None,
    *,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device | None = None,
    trust_remote_code: bool = False,
    adapter: str | Path | None = None,
    date: str | datetime.date | None = None,
) -> Model:
    """Load a causal LM for observation.

    `name`: an organism, a local folder in Hugging Face format, or a hub id (`revision` is the hub's). `dtype`:
    "float32" (default), "bfloat16", "float16", "float64" or "auto" (as stored). `device`: "cpu", "cuda", "cuda:1", or
    "auto" to spread it with accelerate; None takes a GPU if there is one. `adapter`: a folder of peft's, merged into
    the weights. `date`: the day (2025-01-31) that a chat template which prints today's date is told; always the same
    one by default. Raises InputError for a missing, incomplete, damaged or pickled model, one whose libraries are not
    here, and an architecture or adapter that does not fit."""
    if isinstance(dtype, str):
        check_dtype(dtype)
    device = check_device(device)
    day = read_day(date)
    folder = resolve(name, revision=revision)
    check_folder(folder, name)
    patch = None if adapter is None else read_adapter(adapter)
    before = _stamps(folder, patch)
    try:
        check_number_format(folder, name, _methods())
        hf, info = _from_files(folder, dtype, device, trust_remote_code)
        check_complete(hf, info, name)
        hf = hf if str(device) == "auto" else hf.to(device)
        hf = hf if patch is None else merge(hf, patch, name=name)
        tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
        model = wrap(hf, tokenizer, name=name, revision=revision, folder=folder)
    except (WorkbenchError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # Rust panics are no Exceptions, and libraries raise whatever they like
        raise _why_not(error, folder, name) from error
    model.adapter, model.day = patch, day
    model.warnings = tuple(filter(None, [patch and other_base(patch, name)]))
    if date is not None and not uses_date(model):
        raise InputError(f"The day {day} means nothing to '{name}', whose chat template prints no date; leave it out.")
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


def _from_files(folder: Path, dtype: Any, device: Any, trust_remote_code: bool) -> tuple[Any, dict]:
    """The Hugging Face model in a folder, and what transformers says of its loading."""
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
            **({"device_map": "auto"} if str(device) == "auto" else {}),
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
    asked = read_json_object(folder / "config.json", name).get("quantization_config")
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
    through = install_attention(hf, anatomy, ids)
    examine(hf, anatomy, ids)
    _check_unchanged(hf, ids, own)
    model = Model(hf, tokenizer, name, revision, folder, anatomy, through, _prepends_bos(tokenizer))
    _check_logits(model, ids)
    _check_attention(model, ids)
    _check_heads_apart(model, ids)
    return model


def install_attention(hf: PreTrainedModel, anatomy: Anatomy, ids: torch.Tensor) -> bool:
    """Our attention function in place of the model's, where it lets us; also counts the key/value heads that it really
    has."""

    attentions = [block.attention for block in anatomy.blocks]
    through = install(hf, attentions, ids)
    if through:
        anatomy.n_kv_heads = hooks_of(attentions[0]).groups
    else:
        anatomy.n_kv_heads = int(
            getattr(attentions[0], "num_kv_heads", anatomy.n_kv_heads)
        )  # Falcon, where configs of old and new differ
    return through


def _prepends_bos(tokenizer) -> bool:
    if tokenizer is None or tokenizer.bos_token_id is None:
        return False
    found = tokenizer("a")["input_ids"]
    return len(found) > 0 and found[0] == tokenizer.bos_token_id


def _check_logits(model: Model, ids: torch.Tensor) -> None:
    """The model's logits are its unembedding of the final norm (scaled or capped as `logits_from` does); otherwise
    refused."""
    seen: list[torch.Tensor] = []
    handle = after(model.final_norm, lambda _module, _args, output: seen.append(output))
    try:
        with torch.no_grad():
            found = model.hf(input_ids=ids, use_cache=False).logits.float()
    finally:
        handle.remove()
    ours = model.logits_from(seen[-1].detach(), normed=True).reshape(found.shape).to(found.device)
    tolerance = 1e-4 if model.dtype in (torch.float32, torch.float64) else 4e-2
    if not (ours - found).abs().max() <= tolerance * (1e-6 + found.abs().max()):
        raise InputError(
            f"The architecture {model.architecture} does not fit: its logits are not the unembedding of its final norm."
        )


def _check_unchanged(hf: PreTrainedModel, ids: torch.Tensor, own: torch.Tensor) -> None:
    """Our attention function gives the logits of the model's own attention; otherwise it computes something that ours
    leaves out."""
    with torch.no_grad():
        found = hf(input_ids=ids, use_cache=False).logits
    tolerance = (
        1e-3 if found.dtype in (torch.float32, torch.float64) else 0.15
    )  # two kernels, in few bits, through every layer
    if not (found.float() - own.float()).abs().max() <= tolerance * (1e-6 + own.float().abs().max()):
        raise InputError(
            f"The architecture {type(hf).__name__} does not fit: its own attention computes more than scores, "
            f"mask and softmax, for example sinks."
        )


def _check_heads_apart(model: Model, ids: torch.Tensor) -> None:
    """A head that attends to nothing puts nothing into the output projection and leaves the other heads as they are."""
    if not model.attention_interface or model.n_heads == 1:
        return

    heard: list[torch.Tensor] = []

    def silence(weights: torch.Tensor, _start: int, _weigh) -> torch.Tensor:
        weights = weights.clone()
        weights[:, 0] = 0
        return weights

    def unchanged(weights: torch.Tensor, _start: int, _weigh) -> torch.Tensor:
        return weights

    # the first layer only: beyond it the silenced head changes what every head reads
    handle = model.o_proj(0).register_forward_pre_hook(
        lambda _m, args, kwargs: heard.append(hidden_argument(args, kwargs).detach().float()), with_kwargs=True
    )
    try:
        for change in (unchanged, silence):
            with torch.no_grad(), edit(model, 0, change):
                model.forward(pad(ids.tolist(), pad_id=0, device=ids.device))
    finally:
        handle.remove()
    before, after = (x.reshape(-1, model.n_heads, model.d_head) for x in heard)
    if after[:, 0].any() or (before[:, 1:] - after[:, 1:]).abs().max() > 1e-4 * before.abs().max():
        raise InputError(
            f"The architecture {model.architecture} does not fit: heads are mixed before the output "
            f"projection, so no head has an output of its own."
        )


def _check_attention(model: Model, ids: torch.Tensor) -> None:
    """In every layer the attention rows sum to 1, give no weight to later tokens, and are those that the attention
    output was mixed with; otherwise the model is refused."""

    later = torch.ones(ids.shape[1], ids.shape[1], device=ids.device).triu(1).bool()

    def worst(_layer: int, weights: torch.Tensor) -> torch.Tensor:
        return torch.maximum(
            (weights.sum(-1) - 1).abs().max(), weights.masked_select(later.to(weights.device)).abs().max()
        )

    batch = pad(ids.tolist(), pad_id=0, device=ids.device)
    with torch.no_grad(), observe(model, worst, rows="all") as seen:
        model.forward(batch)
    for layer in range(model.n_layers):
        if layer not in seen or not float(seen[layer]) < 2e-2:
            raise InputError(
                f"The architecture {model.architecture} does not fit: the attention rows of layer {layer} do "
                f"not sum to 1 over the past."
            )
    tolerance = 1e-4 if model.dtype in (torch.float32, torch.float64) else 4e-2
    for layer, distance in unexplained(model, batch).items():
        if not distance <= tolerance:
            raise InputError(
                f"The architecture {model.architecture} does not fit: the attention rows of layer {layer} are "
                f"not those that its output is mixed with."
            )
