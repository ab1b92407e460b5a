"""Adapters (LoRA and its kin, as peft writes them): checked against a model, merged into its weights.

The merged model is measured like any other; that it computes what peft computes with the adapter beside the weights is
checked with a small pass. peft is an optional dependency, imported when an adapter is given.
"""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.core.errors import InputError
from workbench.core.wording import one_line
from workbench.models.files import ADAPTER_CONFIG, fingerprint_folder, read_part, tensor_names
from workbench.models.load_options import local_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WEIGHTS = "adapter_model.safetensors"
# Ways of making the first weights that leave the model's own as they are. The others (PiSSA, OLoRA, LoftQ, CorDA …)
# take a part out of the model's weights, in some by chance.
_HARMLESS_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")


@dataclass(frozen=True)
class Adapter:
    """An adapter folder that was looked at: its path, SHA-256 (hex) of its two files, its config."""

    path: Path
    fingerprint: str
    config: dict[str, Any]


def read_adapter(folder: str | Path) -> Adapter:
    """Look at an adapter folder without loading a model. Raises InputError for one that is not there, incomplete,
    pickled, or of a kind that cannot be merged."""
    from workbench.core.file_hashes import hashes
    from workbench.core.paths import cache_root

    path = local_folder(str(folder))
    if path is None or not str(folder):
        raise InputError(f"There is no adapter folder '{folder}'.")
    if not (path / ADAPTER_CONFIG).is_file():
        raise InputError(f"The adapter folder '{folder}' has no {ADAPTER_CONFIG}; give the folder that peft wrote.")
    config = read_part(path / ADAPTER_CONFIG, str(folder))
    if not (path / WEIGHTS).is_file():
        if list(path.glob("adapter_model.*")):
            raise InputError(
                f"The adapter '{folder}' has only pickled weights, which can run code when opened; convert them to "
                f"{WEIGHTS} first."
            )
        raise InputError(f"The adapter folder '{folder}' has no weights ({WEIGHTS}).")
    tensor_names(path / WEIGHTS)
    start = config.get("init_lora_weights")
    if start not in _HARMLESS_STARTS:
        raise InputError(
            f"The adapter '{folder}' began with a part taken out of the model's weights (init_lora_weights={start}); "
            f"convert it to a plain LoRA with peft's save_pretrained(path_initial_model_for_weight_conversion=...)."
        )
    found = hashes([path / ADAPTER_CONFIG, path / WEIGHTS], cache_root() / "fingerprints.json")
    return Adapter(path, hashlib.sha256("\n".join(found).encode()).hexdigest(), config)


def other_base(adapter: Adapter, name: str) -> str | None:
    """A warning where the adapter says that it was made for a model of another name."""
    base = adapter.config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base or Path(base).name.casefold() == Path(name).name.casefold():
        return None
    return f"The adapter {adapter.path.name} says that it was made for '{base}', and was merged into '{name}'."


def fingerprint_files(folder: Path, *, hf: Any = None, adapter: Adapter | None = None) -> str:
    """The fingerprint of a model that was loaded from files: of its folder, with the code that came with it where that
    was run, and of the adapter that was merged."""
    own_code = type(hf).__module__.split(".")[0] == "transformers_modules"
    found = fingerprint_folder(folder, code=own_code)
    return found if adapter is None else hashlib.sha256(f"{found}\n{adapter.fingerprint}".encode()).hexdigest()


def merge(hf: PreTrainedModel, adapter: Adapter, *, name: str) -> PreTrainedModel:
    """`hf` with the adapter in its weights. Raises InputError when peft is missing, for an adapter that does not fit
    the model (targets, shapes, weights left over or lacking), cannot be merged, or changes nothing."""
    import torch

    from workbench.models.architecture import weight_of

    try:
        import peft
    except ImportError as error:
        raise InputError(
            "peft is not installed here, which merges adapters; install the extra "
            "(pip install 'interpretability-workbench[adapter]')."
        ) from error
    said = f"The adapter '{adapter.path}' does not fit '{name}'"
    before = _traces(hf)
    ids = torch.arange(1, 8, device=hf.device)[None] % len(weight_of(hf.get_input_embeddings()))
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they tell of is refused below
            beside = _put_on(hf.eval(), adapter, peft, said)
            if not hasattr(beside.base_model, "merge_and_unload"):
                raise InputError(f"{said}: it is a {adapter.config.get('peft_type')}, which no weights can hold.")
            wanted = beside(input_ids=ids, use_cache=False).logits
            merged = beside.merge_and_unload(safe_merge=True)
            found = merged(input_ids=ids, use_cache=False).logits
    except InputError:
        raise
    except Exception as error:  # peft and torch raise what they like for targets and shapes that are not there
        raise InputError(f"{said}: {one_line(error, 300)}.") from error
    with contextlib.suppress(AttributeError):
        del merged.peft_config  # else transformers takes the model for one with an adapter beside it
    after = _traces(merged)
    if before.keys() != after.keys():
        odd = sorted(before.keys() ^ after.keys())[0]
        raise InputError(f"{said}: merging it would leave the model with other weights, first {odd}.")
    if before == after:
        raise InputError(
            f"The adapter '{adapter.path}' changes nothing in '{name}': its weights are zero, or too small."
        )
    tolerance = 1e-3 if found.dtype in (torch.float32, torch.float64) else 0.15
    if not (found.float() - wanted.float()).abs().max() <= tolerance * (1e-6 + wanted.float().abs().max()):
        raise InputError(
            f"{said}: merged into the weights it computes something else than beside them (input and output embeddings "
            f"that are one matrix, for example)."
        )
    return merged


def _put_on(hf: PreTrainedModel, adapter: Adapter, peft: Any, said: str) -> Any:
    """peft's model with the adapter beside the weights, every weight of the file in its place."""
    from peft.utils import set_peft_model_state_dict
    from safetensors.torch import load_file

    config = peft.PeftConfig.from_pretrained(str(adapter.path))
    config.inference_mode = True
    config.base_model_name_or_path = None  # it would be looked up on the hub
    weights = load_file(adapter.path / WEIGHTS, device=str(hf.device))
    bad = next((key for key, value in weights.items() if not value.isfinite().all()), None)
    if bad is not None:
        raise InputError(f"The adapter '{adapter.path}' has NaN or infinite weights, first in {bad}.")
    beside = peft.get_peft_model(hf, config)
    own = {key for key, _ in beside.named_parameters() if _of_adapter(key)}
    outcome = set_peft_model_state_dict(beside, weights, ignore_mismatched_sizes=False)
    if outcome.unexpected_keys:
        first, count = sorted(outcome.unexpected_keys)[0], len(outcome.unexpected_keys)
        raise InputError(f"{said}: the model has no place for its weights {first} ({count} in all).")
    lacking = sorted(own & set(outcome.missing_keys))
    if lacking:
        raise InputError(f"{said}: its files lack {lacking[0]} ({len(lacking)} in all).")
    return beside


def _of_adapter(key: str) -> bool:
    """Whether peft added this parameter of its model."""
    return ".base_layer." not in key and (".default" in key or ".modules_to_save." in key)


def _traces(hf: Any) -> dict[str, int]:
    """A number per parameter that changes with any of its bits (sums of them as integers)."""
    import torch

    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return {
        key: int(value.detach().contiguous().view(kinds[value.element_size()]).sum(dtype=torch.int64))
        for key, value in hf.named_parameters()
    }
