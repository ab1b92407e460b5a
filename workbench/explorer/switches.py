"""Heads, MLPs and features of an autoencoder that are switched: which, how, and the edits of the model that do it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from workbench.core.errors import InputError
from workbench.engine.edits import Edit, HeadAblation, Patch
from workbench.engine.hf import stream
from workbench.engine.mean_head_outputs import mean_head_outputs
from workbench.explorer.autoencoders import open_autoencoder
from workbench.explorer.opened_model import Head, Opened
from workbench.explorer.reference_texts import reference
from workbench.models.sites import Site, sites
from workbench.sae.feature_edits import FeatureChange, FeatureEdit

HOW = ("zero", "mean", "uniform", "patch")


@dataclass(frozen=True)
class Switches:
    """Heads and MLPs (layers) that are switched, and features of the autoencoder `autoencoder` that are changed;
    hashable so that results can be kept by it. `how` is of heads and MLPs, `donor`: token ids of the prompt to patch
    from."""

    heads: tuple[Head, ...] = ()
    how: str = "zero"
    donor: tuple[int, ...] = ()
    mlps: tuple[int, ...] = ()
    features: tuple[FeatureChange, ...] = ()
    autoencoder: str = ""

    @property
    def any(self) -> bool:
        """Whether something is switched."""
        return bool(self.heads or self.mlps or self.features)


def edits_of(opened: Opened, switches: Switches, ids: Sequence[int]) -> tuple[Edit, ...]:
    """The edits that switch these heads, MLPs and features on this prompt, features last. Raises InputError for what
    does not exist, for a donor that is missing, and for MLPs that are to attend uniformly.

    "mean" puts the mean output over the reference texts (`reference`) in place; "patch" the output on the donor prompt,
    position by position where both are equally long, otherwise aligned at their ends (the last min(T, T') tokens)."""
    features: tuple[Edit, ...] = ()
    if switches.features:
        features = (FeatureEdit(open_autoencoder(opened, switches.autoencoder).sae, switches.features),)
    if not switches.heads and not switches.mlps:
        return features
    _check(opened, switches)
    if switches.how == "patch":
        return (*_patches(opened, switches, ids), *features)
    heads: tuple[Edit, ...] = ()
    if switches.heads:
        mean = _mean(opened) if switches.how == "mean" else None
        heads = (HeadAblation(switches.heads, switches.how, mean=mean),)
    width = opened.model.width
    values = (
        _mlp_mean(opened) if switches.mlps and switches.how == "mean" else torch.zeros(opened.model.n_layers, width)
    )
    return (*heads, *(Patch(Site("mlp_out", layer), values[layer]) for layer in switches.mlps), *features)


def _check(opened: Opened, switches: Switches) -> None:
    model = opened.model
    for layer, head in switches.heads:
        if not (0 <= layer < model.n_layers and 0 <= head < model.n_heads):
            raise InputError(
                f"Head {layer}.{head} does not exist: {model.name} has layers 0–{model.n_layers - 1} and "
                f"heads 0–{model.n_heads - 1}."
            )
    for layer in switches.mlps:
        if not 0 <= layer < model.n_layers:
            raise InputError(f"There is no MLP of layer {layer}: {model.name} has the layers 0–{model.n_layers - 1}.")
    if switches.how not in HOW:
        raise InputError(f"'{switches.how}' is no way to switch a head; choose {', '.join(HOW)}.")
    if switches.how == "uniform" and switches.mlps:
        raise InputError("Only heads can attend uniformly: switch MLPs by zero, mean or patch.")
    if switches.how == "patch" and not switches.donor:
        raise InputError("Patching needs a second prompt to take the outputs from.")


def _patches(opened: Opened, switches: Switches, ids: Sequence[int]) -> tuple[Edit, ...]:
    model = opened.model
    mlps = sites("mlp_out", switches.mlps)
    heads = sites("head_out", sorted({layer for layer, _ in switches.heads}))
    passes = stream(model, [list(switches.donor)], [*heads, *mlps], positions="all", dtype=torch.float32)
    _, found, _ = next(iter(passes))
    both = min(len(ids), len(switches.donor))
    where = tuple(range(len(ids) - both, len(ids)))
    return (
        *(
            Patch(Site("head_out", layer, head), found[Site("head_out", layer)][-both:, head], where)
            for layer, head in switches.heads
        ),
        *(Patch(site, found[site][-both:], where) for site in mlps),
    )


def _mean(opened: Opened) -> torch.Tensor:
    """Head outputs [layers, H, d_head], computed once per model."""
    with opened.lock:
        if opened.mean is None:
            opened.mean = mean_head_outputs(opened.model, reference(opened))
        return opened.mean


def _mlp_mean(opened: Opened) -> torch.Tensor:
    """What MLPs add [layers, width], mean over every token of the reference texts, computed once per model."""
    with opened.lock:
        if opened.mlp_mean is None:
            wanted = sites("mlp_out", range(opened.model.n_layers))
            total, count = torch.zeros(opened.model.n_layers, opened.model.width, dtype=torch.float64), 0
            for _, found, batch in stream(opened.model, reference(opened), wanted, positions="all"):
                total += torch.stack([found[site].double().sum(0).cpu() for site in wanted])
                count += batch.tokens
            if not bool(total.isfinite().all()):
                raise InputError(
                    f"What the MLPs of {opened.model.name} add is NaN or infinite on these texts, so it has no mean; "
                    f"load the model in bfloat16 or float32."
                )
            opened.mlp_mean = (total / count).float()
        return opened.mlp_mean
