"""Masks of single weights: a pass in which some weights of attention and MLP are zero, and the files that hold such
masks.

A mask says of every weight of every matrix of the blocks whether it stays. Biases, norms, embeddings and the
unembedding are never masked. The file is safetensors: one bool tensor for each matrix, of its shape and under the name
that it has in the model's state dict; the masks of github.com/tylerachang/bigram-subnetworks (a pickled dict of numpy
arrays) are read too.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from workbench.core.errors import InputError
from workbench.core.files import read_plain, write_bytes
from workbench.core.wording import one_line
from workbench.engine.edit_sites import Prompts
from workbench.engine.pickled_arrays import arrays_and_texts
from workbench.models.block_weights import BlockWeight, block_weights, compute_with
from workbench.models.host_copies import Resident
from workbench.models.model import Model

FORMAT = "workbench weight mask"
PICKLE = b"\x80"  # how a pickle of protocol 2 or later begins


@dataclass(frozen=True, eq=False)
class WeightMask:
    """Compute with some weights at zero: those that `kept` does not name, or with `remove` those that it names.

    `names`: of the matrices, in the order of the model; `kept` [all their weights, one matrix after another] bool."""

    names: tuple[str, ...]
    kept: torch.Tensor
    remove: bool = False

    @classmethod
    def of(cls, masks: Mapping[str, torch.Tensor], *, remove: bool = False) -> WeightMask:
        """From a bool tensor for each matrix, by name."""
        flat = [mask.reshape(-1).to(torch.bool) for mask in masks.values()]
        return cls(tuple(masks), torch.cat(flat) if flat else torch.zeros(0, dtype=torch.bool), remove)

    def check(self, model: Model, prompts: Prompts | None = None) -> None:
        """Raise InputError for a model with other matrices than the mask has."""
        self._by_weight(model)

    def for_prompts(self, indices: Sequence[int]) -> WeightMask:
        """Itself: it is the same for every prompt."""
        return self

    def hang(self, model: Model, stack: contextlib.ExitStack) -> None:
        """Hang it on the passes of this thread until `stack` is closed."""
        parts = self._by_weight(model)
        stays = {own.name: Resident(part) for own, part in parts}

        def masked(own: BlockWeight) -> torch.Tensor:
            stay = stays[own.name].on(own.weight.device)
            return own.weight.masked_fill(stay if self.remove else ~stay, 0)

        compute_with([own for own, _ in parts], masked, stack)

    def _by_weight(self, model: Model) -> list[tuple[BlockWeight, torch.Tensor]]:
        weights = block_weights(model, for_what="a mask of weights")
        if {own.name for own in weights} != set(self.names):
            odd = sorted({own.name for own in weights} ^ set(self.names))[0]
            raise InputError(f"The weight mask is of another model: only one of it and {model.name} has {odd}.")
        by_name = {own.name: own for own in weights}
        ordered = [by_name[name] for name in self.names]
        sizes = [own.weight.numel() for own in ordered]
        if sum(sizes) != len(self.kept):
            raise InputError(
                f"The weight mask is of another model: it has {len(self.kept):,} weights and {model.name} has "
                f"{sum(sizes):,}."
            )
        return [(own, part.reshape(own.shape)) for own, part in zip(ordered, self.kept.split(sizes))]


@dataclass(frozen=True, eq=False)
class SavedWeightMask:
    """A mask of a file: `masks` by name of the matrix, a note, and the model that it is of (`model`: name and
    fingerprint, as far as the file says)."""

    masks: Mapping[str, torch.Tensor]
    note: str = ""
    model: Mapping[str, str] = field(default_factory=dict)

    @property
    def edit(self) -> WeightMask:
        """What it does to a model: the weights that it does not keep are zero."""
        return WeightMask.of(self.masks)

    def mismatch_warning(self, model: Model) -> str | None:
        """A sentence when the mask is of other weights than `model`'s; None where it is not, or does not say. Raises
        InputError for a mask that does not fit `model`."""
        fit_masks(self.masks, model, where="The weight mask")
        if self.model.get("fingerprint") in (None, model.fingerprint):
            return None
        return (
            f"The weight mask was found on {self.model.get('name', 'another model')}, not on these weights of "
            f"{model.name}: what it keeps may do something else here."
        )


def fit_masks(masks: Mapping[str, torch.Tensor], model: Model, *, where: str) -> dict[str, torch.Tensor]:
    """The masks in the order of the model's matrices. Raises InputError, beginning with `where`, for one that is
    missing, one too many, or one of another shape."""
    weights = block_weights(model, for_what="a mask of weights")
    for own in weights:
        if own.name not in masks:
            raise InputError(f"{where} has none for {own.name}, which {model.name} has.")
        if tuple(masks[own.name].shape) != own.shape:
            shapes = [" × ".join(map(str, shape)) for shape in (masks[own.name].shape, own.shape)]
            raise InputError(f"{where} for {own.name} is {shapes[0]}, and in {model.name} that is {shapes[1]}.")
    if more := sorted(masks.keys() - {own.name for own in weights}):
        raise InputError(f"{where} also has one for {more[0]}, which is no matrix of a block of {model.name}.")
    return {own.name: masks[own.name] for own in weights}


def save_masks(path: Path, masks: Mapping[str, torch.Tensor], *, note: str = "", model: Model | None = None) -> None:
    """Write a weight mask, to be applied elsewhere with `--edit`; `model`: the one that it is of, by name and
    weights."""
    from safetensors.torch import save

    about = {} if model is None else {"name": str(model.name), "fingerprint": model.fingerprint}
    tensors = {name: mask.detach().cpu().to(torch.bool).contiguous() for name, mask in masks.items()}
    write_bytes(Path(path), save(tensors, metadata={"format": FORMAT, "note": note, "model": json.dumps(about)}))


def is_safetensors(data: bytes) -> bool:
    """Whether bytes begin as a safetensors file does: the length of its header, then the header, which is JSON."""
    return data[8:9] == b"{" and data[:1] != b"{"


def read_masks(path: str | Path) -> SavedWeightMask:
    """The weight mask of a file. Raises InputError for a file that is none."""
    try:
        data = read_plain(Path(path))
    except OSError as error:
        raise InputError(f"The weight mask '{path}' cannot be read: {error.strerror or error}.") from error
    return parse_masks(data, Path(path))


def parse_masks(data: bytes, path: Path) -> SavedWeightMask:
    """The weight mask in the bytes of a file. Raises InputError for one that is none."""
    if data[:1] == PICKLE and not is_safetensors(data):
        arrays, texts = arrays_and_texts(data, path)
        name = texts.get("orig_model_name")
        return SavedWeightMask(_as_bool(arrays, path), "published mask", {"name": name} if name else {})
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays = load(data)
        meta = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__") or {}
        about = json.loads(meta.get("model") or "{}")
        about = {key: str(about[key]) for key in ("name", "fingerprint") if key in about}
    except (SafetensorError, ValueError, AttributeError, TypeError, KeyError) as error:
        raise InputError(f"{path} is no weight mask (safetensors, or a published pickle): {one_line(error)}.") from None
    return SavedWeightMask(_as_bool(arrays, path), str(meta.get("note", "")), about)


def _as_bool(arrays: Mapping[str, np.ndarray], path: Path) -> dict[str, torch.Tensor]:
    if not arrays:
        raise InputError(f"{path} holds no mask.")
    for name, array in arrays.items():
        if array.ndim != 2 or (array.dtype != bool and not np.isin(array, (0, 1)).all()):
            raise InputError(f"{path}: '{name}' is no mask of a matrix (0 and 1, two dimensions).")
    return {name: torch.from_numpy(np.ascontiguousarray(array).astype(bool)) for name, array in arrays.items()}
