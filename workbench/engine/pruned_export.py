"""A model without some of its heads, modules or weights, as a Hugging Face folder for any other software."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from workbench.core.errors import InputError
from workbench.core.wording import one_line
from workbench.engine.dropping import DropModules, Module, ModuleSet, check_modules, named, save_modules
from workbench.engine.edit_files import SavedEdit
from workbench.engine.edits import apply
from workbench.engine.head_masks import HeadMask, save_heads
from workbench.engine.weight_masks import fit_masks
from workbench.models.architecture import weight_of, weight_of_head
from workbench.models.batching import pad
from workbench.models.float32 import EXACT
from workbench.models.model import Model
from workbench.models.without_modules import without_modules


@dataclass(frozen=True)
class Exported:
    """What a folder is without: `kind` ("heads", "modules", or "weights" of which only some are left), their names or
    how many are left, and the same in words."""

    kind: str
    what: list[str] | int
    said: str


def check_exportable(saved: SavedEdit, path: Path) -> None:
    """Raise InputError for a mask of heads that does more than set heads to zero."""
    if isinstance(saved, HeadMask) and saved.how != "zero":
        does = {
            "uniform": "makes heads attend evenly",
            "dual run": "adds what heads say in a run of their own",
            "components": "scales components of heads",
        }[saved.how]
        raise InputError(
            f"The mask {path} {does} ({saved.how}); of masks of heads only those that set heads to zero are written as "
            f"weights."
        )


def export_edit(model: Model, saved: SavedEdit, folder: str | Path) -> Exported:
    """Write the model with a saved edit made for good; raises as the function for its kind below."""
    if isinstance(saved, HeadMask):
        export_pruned(model, saved.heads, folder)
        heads = [f"{layer}.{head}" for layer, head in saved.heads]
        count = f"{len(heads)} of its {model.n_layers * model.n_heads} heads"
        return Exported("heads", heads, f"{model.name} without {count} ({', '.join(heads)})")
    if isinstance(saved, ModuleSet):
        export_without(model, saved.modules, folder)
        modules = named(saved.modules)
        return Exported("modules", modules, f"{model.name} without {', '.join(modules)}")
    export_masked(model, saved.masks, folder)
    kept = sum(int(mask.sum()) for mask in saved.masks.values())
    return Exported("weights", kept, f"{model.name} with {kept:,} of the weights of its attention and MLPs")


def export_pruned(model: Model, heads: Sequence[tuple[int, int]], folder: str | Path) -> Path:
    """Write a Hugging Face folder of the model with the output weights of `heads` set to zero: the heads then add
    nothing.

    The model in memory stays as it is. Raises InputError for no heads, heads that do not exist and a folder that is not
    empty."""
    folder = Path(folder)
    if not heads:
        raise InputError("No head is named: the exported model would be the model itself.")
    model.check_heads(heads)
    layers = sorted({layer for layer, _ in heads})
    model.require("heads_apart", "heads_add_up", for_what="an export without some heads", layers=layers)
    _check_free(folder)
    names = {id(module): name for name, module in model.hf.named_modules()}
    state = {key: value for key, value in model.hf.state_dict().items()}
    for layer in layers:
        o_proj = model.o_proj(layer)
        key = f"{names[id(o_proj)]}.weight"
        weight = state[key].clone()
        for at, head in heads:
            if at == layer:
                weight[weight_of_head(o_proj, head, model.d_head)] = 0
        state[key] = weight
    _write(model, state, folder)
    note = f"already zero in these weights, which were {model.name}'s ({model.fingerprint[:12]})"
    save_heads(folder / "pruned_heads.json", heads, note=note, model=model)
    return folder


def export_without(model: Model, modules: Sequence[Module], folder: str | Path) -> Path:
    """Write a Hugging Face folder of the model without `modules` ("attention", "mlp" or "block", layer).

    Blocks are gone from weights and config. Attention and MLPs of a block that stays write zeros, so that plain Hugging
    Face gives the logits of the model without them, and the config says under `dropped_modules` which they are, so that
    `load` does not run them. What was written is loaded by plain Hugging Face and held against the model in memory,
    which stays as it is. Raises InputError for modules that do not exist or cannot be dropped, for a folder that is not
    empty, and for an architecture that comes out as another model."""
    folder = Path(folder)
    check_modules(model, modules)
    _check_free(folder)
    smaller = without_modules(model, modules)
    made = not folder.exists()
    smaller.save_pretrained(folder)
    try:
        _check_written(model, modules, folder)
    except BaseException:
        shutil.rmtree(folder)
        if not made:
            folder.mkdir()
        raise
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(folder)
    note = (
        f"gone or silent in this folder, whose weights were {model.name}'s ({model.fingerprint[:12]}); layers are "
        f"numbered as they were there"
    )
    save_modules(folder / "dropped_modules.json", modules, note=note, model=model)
    return folder


def export_masked(model: Model, masks: Mapping[str, torch.Tensor], folder: str | Path) -> Path:
    """Write a Hugging Face folder of the model in which what a mask (by name of the matrix) does not keep is zero; what
    no mask covers stays.

    The model in memory stays as it is. Raises InputError for masks that do not fit it and for a folder that is not
    empty."""
    folder = Path(folder)
    _check_free(folder)
    state = {key: value for key, value in model.hf.state_dict().items()}
    for name, mask in fit_masks(masks, model, where="The weight mask").items():
        state[name] = state[name].masked_fill(~mask.to(state[name].device), 0)
    _write(model, state, folder)
    return folder


@torch.no_grad()
def _check_written(model: Model, modules: Sequence[Module], folder: Path) -> None:
    """Raise InputError where the folder, read by plain Hugging Face, gives other scores than the model without the
    modules."""
    size = len(weight_of(model.hf.get_input_embeddings()))
    ids = [token * 7919 % size for token in range(1, 10)]
    batch = pad([ids], pad_id=model.pad_id, device=model.device)
    with apply(model, [DropModules(tuple(modules))]):
        wanted = model.forward(batch).logits.float().cpu()
    found = _read_plainly(model, folder, ids)
    tolerance = 1e-3 if model.dtype in EXACT else 0.15  # two attention kernels, in few bits, through every layer
    if not (found - wanted).abs().max() <= tolerance * (1e-6 + wanted.abs().max()):
        raise InputError(
            f"{model.name} ({model.architecture}) cannot be written without these modules: plain Hugging Face gives "
            f"other scores than the model without them; nothing was left in {folder}."
        )


def _read_plainly(model: Model, folder: Path, ids: Sequence[int]) -> torch.Tensor:
    """Scores [1, T, V] of plain Hugging Face. Raises InputError where it cannot read the folder."""
    from transformers import AutoModelForCausalLM

    try:
        written = AutoModelForCausalLM.from_pretrained(folder, dtype=model.dtype).eval()
        return written(input_ids=torch.tensor([list(ids)]), use_cache=False).logits.float()
    except Exception as error:  # modelling code raises whatever it likes
        raise InputError(
            f"{model.name} ({model.architecture}) cannot be written without these modules: plain Hugging Face does not "
            f"read the folder ({one_line(error)})."
        ) from error


def _write(model: Model, state: dict[str, torch.Tensor], folder: Path) -> None:
    """The folder of a model with other weights, and its tokenizer."""
    config = model.hf.config
    implementation = config._attn_implementation
    try:
        config._attn_implementation = None  # a name that only this process knows must not be written
        model.hf.save_pretrained(folder, state_dict=state)
    finally:
        config._attn_implementation = implementation
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(folder)


def _check_free(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is there already and is not an empty folder; choose another for the pruned model.")
