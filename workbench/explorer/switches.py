"""Heads and MLPs that are switched: which, how, and the edits of the model that do it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from workbench.core.errors import InputError
from workbench.engine.edits import Edit, HeadAblation, Patch
from workbench.engine.hf import stream
from workbench.engine.mean_head_outputs import mean_head_outputs
from workbench.explorer.opened_model import FEW_TOKENS, Head, Opened
from workbench.models.sites import Site, sites

HOW = ("zero", "mean", "uniform", "patch")


@dataclass(frozen=True)
class Switches:
    """Heads and MLPs (layers) that are switched, hashable so that results can be kept by it. `donor`: token ids of the
    prompt to patch from."""

    heads: tuple[Head, ...] = ()
    how: str = "zero"
    donor: tuple[int, ...] = ()
    mlps: tuple[int, ...] = ()

    @property
    def any(self) -> bool:
        """Whether something is switched."""
        return bool(self.heads or self.mlps)


def edits_of(opened: Opened, switches: Switches, ids: Sequence[int]) -> tuple[Edit, ...]:
    """The edits that switch these heads and MLPs on this prompt. Raises InputError for heads or layers that do not
    exist, for a donor that is missing, and for MLPs that are to attend uniformly.

    "mean" puts the mean output over the reference texts (`reference`) in place; "patch" the output on the donor prompt,
    position by position where both are equally long, otherwise aligned at their ends (the last min(T, T') tokens)."""
    if not switches.any:
        return ()
    _check(opened, switches)
    if switches.how == "patch":
        return _patches(opened, switches, ids)
    heads: tuple[Edit, ...] = ()
    if switches.heads:
        mean = _mean(opened) if switches.how == "mean" else None
        heads = (HeadAblation(switches.heads, switches.how, mean=mean),)
    width = opened.model.width
    values = (
        _mlp_mean(opened) if switches.mlps and switches.how == "mean" else torch.zeros(opened.model.n_layers, width)
    )
    return (*heads, *(Patch(Site("mlp_out", layer), values[layer]) for layer in switches.mlps))


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


def reference(opened: Opened) -> list[list[int]]:
    """Prompts over which the mean head outputs are taken: texts that ship with an organism, otherwise a few English
    sentences."""
    from workbench import organisms
    from workbench.core.tables import read_table

    model, texts = opened.model, list(REFERENCE)
    if model.name.startswith("organism"):
        texts = read_table(organisms.data("texts"), required=("text",), what="texts")["text"].to_list()[:64]
    rows = [model.encode(text)[: model.context_length or FEW_TOKENS] for text in texts]
    return [row for row in rows if row]


REFERENCE = (
    "The river runs past the old mill and into the sea.",
    "In 1969 two people walked on the moon for the first time.",
    "She opened the letter, read it twice, and put it back into the drawer.",
    "When the bell rang the children ran into the garden to play.",
    "Water boils at one hundred degrees, and freezes at zero.",
    "The committee will meet on Tuesday to discuss the budget for next year.",
    "He asked for bread, butter and a cup of black coffee.",
    "Most of the birds had left by the end of the month.",
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
