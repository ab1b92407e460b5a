"""A sparse autoencoder beside an opened model: by name, folder or release, held against the model before it is read.

`default` is the one that ships with the model; `SOURCE@resid_post.3` says where one belongs whose own files do not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from workbench import organisms
from workbench.core import file_hashes
from workbench.core.errors import InputError
from workbench.engine.hf import stream
from workbench.explorer.opened_model import Opened
from workbench.explorer.reference_texts import reference
from workbench.models.sites import Site
from workbench.sae import conventions
from workbench.sae import load as loading
from workbench.sae.autoencoder import Sae
from workbench.sae.written_parts import rebuilt

DEFAULT = "default"
KEPT = 2  # autoencoders of one model that are held


@dataclass(frozen=True, eq=False)
class Autoencoder:
    """One that fits its model. `source`: as it was asked for; `key`: changes when its files do; `warnings`: what
    deserves one."""

    sae: Sae
    source: str
    key: str
    warnings: tuple[str, ...]


def open_autoencoder(opened: Opened, source: str = DEFAULT) -> Autoencoder:
    """The autoencoder `source` (see the module), loaded once per model while its files stay the same.

    Raises InputError where none ships with the model or none is found, for a site or width that the model does not
    have, and for one of another model that explains nothing of this one's activations."""
    where, site = _place(opened, source)
    path = Path(where).expanduser()
    key = f"{source} {file_hashes.folder_stamps(path) if path.is_dir() else ''}"
    with opened.lock:
        found = opened.autoencoders.get(key)
        if found is None:
            found = _load(opened, source, where, site, key)
            for old in [*opened.autoencoders][: 1 - KEPT or None]:
                del opened.autoencoders[old]
            opened.autoencoders[key] = found
    return found


def shipped(opened: Opened) -> bool:
    """Whether an autoencoder ships with the model."""
    return organisms.autoencoder(opened.model.name) is not None


def _place(opened: Opened, source: str) -> tuple[str, Site | None]:
    """(folder, file or release, the site that is named)."""
    if source in ("", DEFAULT):
        folder = organisms.autoencoder(opened.model.name)
        if folder is None:
            raise InputError(
                f"No autoencoder ships with {opened.model.name}: give a folder, owner/repository:path or release:id."
            )
        return str(folder), None
    where, mark, named = source.rpartition("@")
    if mark:
        try:
            return where, Site.parse(named)
        except InputError:
            pass  # the mark is part of a name
    return source, None


def _load(opened: Opened, source: str, where: str, site: Site | None, key: str) -> Autoencoder:
    model = opened.model
    sae = loading.load(where, device=model.device, site=site)
    warned = loading.check_fits(sae, model)
    sae, said = conventions.obey(sae, model)
    if warned:
        share = explained_variance(opened, sae, reference(opened))
        if share is not None and share <= 0:
            raise InputError(
                f"The autoencoder '{where}' belongs to {sae.trained_on.get('model_name') or 'another model'}: it "
                f"explains nothing of {sae.writes} of {model.name} (explained variance {share:.2g})."
            )
        if share is not None:
            warned = [f"{sentence} On the reference texts that is {share:.1%}." for sentence in warned]
    return Autoencoder(sae, source, key, (*warned, *said))


@torch.no_grad()
def explained_variance(opened: Opened, sae: Sae, rows: list[list[int]]) -> float | None:
    """1 less the squared error over the squared distance from the mean, of texts without their special tokens; None
    where the autoencoder rebuilds nothing by itself."""
    if not sae.reconstructs:
        return None
    model = opened.model
    lost, total, states = 0.0, None, []
    with opened.lock:
        sites = list(dict.fromkeys([sae.site, sae.writes]))
        for indices, found, _ in stream(model, rows, sites, positions="all", dtype=torch.float32):
            counted = torch.tensor([token not in model.special_ids for i in indices for token in rows[i]])
            x, y = (found[site][counted.to(found[site].device)] for site in (sae.site, sae.writes))
            error = (y - rebuilt(sae, sae.encode(x), x).reshape(y.shape)).double()
            lost += float(error.square().sum())
            states.append(y.double().flatten(1).cpu())
    y = torch.cat(states)
    total = float((y - y.mean(0)).square().sum())
    return 1 - lost / total if total else None
