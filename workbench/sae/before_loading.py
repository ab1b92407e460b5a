"""What the files of an autoencoder say against a model before the weights of either are read."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from workbench.core.errors import InputError
from workbench.core.json_text import read_json_object
from workbench.core.paths import user_path
from workbench.models.sites import Site
from workbench.models.unloaded_model import UnloadedModel
from workbench.sae.formats import recognised
from workbench.sae.load import find, recorded_site

WIDTHS = ("d_in", "d_model", "activation_dim")  # what formats call the size of what is read
IN_STREAM = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "mlp_in", "final_norm")


def check_recorded(source: str, model: UnloadedModel, *, site: str | None = None) -> None:
    """Raise InputError for an autoencoder that is not there, of a layer that the model does not have, or of another
    width, as far as its files say so without their weights. One of the hub is not fetched for it."""
    if ":" in source and not user_path(source).exists():
        return
    path = find(source)
    where = recorded_site(path) or (Site.parse(site) if site is not None else None)
    if where is None:
        return
    model.check_site(where)
    width = None if path is None else recorded_width(path)
    if width is not None and model.width and where.kind in IN_STREAM and width != model.width:
        raise InputError(
            f"The sparse autoencoder '{source}' reads {width} numbers, but {where} of {model.name} has {model.width}; "
            f"it belongs to another model."
        )


def recorded_width(path: Path) -> int | None:
    """How many numbers an autoencoder reads, from its config or the shape of W_enc; None where neither says so."""
    form, weights = recognised(path, path)
    config = next((weights.parent / name for name in form.files if name.endswith(".json")), None)
    if config is not None and config.is_file():
        said = read_json_object(config, what=str(config))
        found = next((said[name] for name in WIDTHS if isinstance(said.get(name), int)), None)
        if found is not None:
            return found
    shape = _shape(weights, "W_enc")
    return None if shape is None else shape[0]


def _shape(weights: Path, name: str) -> tuple[int, ...] | None:
    """The shape of a tensor, from the head of its file."""
    if weights.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(weights, "np") as file:
                return tuple(file.get_slice(name).get_shape())
        except SafetensorError:
            return None  # loading says what is wrong with it
    if weights.suffix != ".npz":
        return None
    try:
        with zipfile.ZipFile(weights) as file, file.open(f"{name}.npy") as head:
            version = np.lib.format.read_magic(head)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            return tuple(read(head)[0])
    except (zipfile.BadZipFile, KeyError, ValueError, OSError):
        return None
