"""One vector per sample: sparse features, sparse neurons and the hidden state of its tokens, as their mean, their sum
or the last one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from probes.data_selection.config import Config
from workbench import organisms
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.engine.hf import stream
from workbench.engine.passes import Pass
from workbench.engine.shared_prefix import beginning, stream_after
from workbench.models.gated_mlp import gate_neurons
from workbench.models.model import Model
from workbench.models.sites import Site
from workbench.sae import conventions
from workbench.sae import load as sae
from workbench.sae.load import Sae, neuron_rows
from workbench.sae.sparse_rows import Rows, sum_tokens

NAMES = {
    "neurons": "its neurons",
    "hidden": "its hidden states",
    "bm25": "the words of the samples (BM25)",
    "random": "random numbers",
}


@dataclass(frozen=True, eq=False)
class SampleBatch:
    """Some samples: one vector of each by method, and their tokens that count."""

    indices: list[int]  # rows of what was read; none for what all samples begin with
    vectors: dict[str, Any]  # sparse rows of the features and the neurons, float64 [n, width] of the hidden state
    activations: torch.Tensor  # of the tokens
    tokens: Rows | None  # their features
    owner: torch.Tensor  # place in `indices` of the sample of each token
    rebuilt: torch.Tensor  # what a reconstruction is compared with: the activations, or those of a transcoder's output


@dataclass(eq=False)
class Reader:
    """What is computed on every sample, as far as the config wants it."""

    model: Model
    config: Config
    context: Context
    sae: Sae | None
    site: Site  # of the features and the hidden state
    neurons: tuple[Site, Callable[[torch.Tensor], torch.Tensor], str] | None  # as `gate_neurons` gives them
    neurons_k: int

    def __post_init__(self) -> None:
        also = [self.neurons[0]] if self.neurons else []
        self.writes = self.sae.writes if self.sae is not None and self.sae.reconstructs else self.site
        self.sites = list(dict.fromkeys([self.site, *also, self.writes]))
        self.run = Pass(
            edits=self.context.edits,
            max_tokens=self.model.tokens_at_once(self.config.max_tokens),
            check=self.context.check,
        )

    @property
    def main(self) -> str:
        """The method whose selection is the result: the features; with sae=none the first baseline; where no
        autoencoder ships with the model, the first of those that read it."""
        if self.sae is not None:
            return "sae"
        inside = [m for m in ("neurons", "hidden") if self.config.sae == "default" and m in self.config.baselines]
        return (inside or self.config.baselines)[0]

    def read(self, ids: Sequence[Sequence[int]], masks: Sequence[np.ndarray]) -> Iterator[SampleBatch]:
        """The vectors of samples, batch by batch; `masks` say which of their tokens count.

        What all samples begin with is read and encoded once: it comes first, without row indices, and is in every
        sample's vector, but not among the tokens that come with it."""
        whole = self.run.edits or self.config.aggregate == "last"
        begun = None if whole else beginning(self.model, ids, self.sites, size=_alike(masks))
        size, before, counted_before = 0, {}, 0
        if begun:
            size = len(begun.tokens)
            first, before = self._beginning(begun.found, masks[0][:size])
            counted_before = len(first.owner)
            self.context.count(tokens=size, forwards=1)
            yield first
            batches = stream_after(self.model, begun, ids, self.sites, run=self.run)
        else:
            batches = stream(self.model, ids, self.sites, positions="all", run=self.run)
        for indices, found, batch in batches:
            counted = torch.from_numpy(np.concatenate([masks[i][size:] for i in indices]))
            owner = torch.repeat_interleave(torch.arange(len(indices)), batch.lengths.cpu())[counted]
            out = self._batch(indices, _counted(found, counted), owner, before, counted_before)
            self.context.count(tokens=batch.tokens, forwards=1)
            yield out

    def _beginning(
        self, found: dict[Site, torch.Tensor], mask: np.ndarray
    ) -> tuple[SampleBatch, dict[str, torch.Tensor]]:
        """What all samples begin with, and the sums over its tokens by method."""
        found = _counted(found, torch.from_numpy(mask))
        x, rows = found[self.site], self._sparse(found)
        owner = torch.zeros(int(mask.sum()), dtype=torch.int64, device=x.device)
        sums = {name: sum_tokens(own, owner, 1).dense()[0] for name, own in rows.items()}
        sums["hidden"] = x.flatten(1).double().sum(0)
        return SampleBatch([], {}, x, rows.get("sae"), owner, found[self.writes]), sums

    def _batch(
        self,
        indices: list[int],
        found: dict[Site, torch.Tensor],
        owner: torch.Tensor,
        before: dict[str, torch.Tensor],
        counted_before: int,
    ) -> SampleBatch:
        """One batch, from the activations of its tokens that count; `before`: the sums over what came before them."""
        last, n = self.config.aggregate == "last", len(indices)
        x, rows = found[self.site], self._sparse(found)
        owner = owner.to(x.device)
        which = torch.arange(len(x), device=x.device)  # the tokens that make the vector of a sample
        if last:
            which = torch.zeros(n, dtype=torch.int64, device=x.device).scatter_reduce(0, owner, which, "amax")
        whose = owner[which]
        if self.config.aggregate == "sum":
            per = torch.ones(n, device=x.device)
        else:
            per = torch.bincount(whose, minlength=n) + counted_before
        vectors = {
            name: sum_tokens(own.only(which) if last else own, owner, n, before.get(name)).divided(per)
            for name, own in rows.items()
        }
        if "hidden" in self.config.baselines:
            flat = x[which].flatten(1).double()
            total = torch.zeros(n, flat.shape[1], dtype=torch.float64, device=x.device) + before.get("hidden", 0)
            vectors["hidden"] = total.index_add_(0, whose, flat) / per[:, None]
            if not bool(vectors["hidden"].isfinite().all()):
                raise InputError(
                    f"The activations of {self.model.name} at {self.site} are NaN or infinite on a "
                    f"sample; load the model in bfloat16 or float32."
                )
        return SampleBatch(indices, vectors, x, rows.get("sae"), owner, found[self.writes])

    def _sparse(self, found: dict[Site, torch.Tensor]) -> dict[str, Rows]:
        rows = {}
        if self.sae is not None:
            rows["sae"] = self.sae.encode(found[self.site])
        if self.neurons:
            site, read, _ = self.neurons
            rows["neurons"] = neuron_rows(read(found[site]), self.neurons_k)
        return rows


def open_reader(model: Model, config: Config, context: Context) -> Reader:
    """The autoencoder and the sites that the config asks for, as they fit the model. Raises InputError where they do
    not."""
    loaded = _autoencoder(model, config, context)
    if loaded:
        site = loaded.site
    elif config.site == "auto":
        site = Site("resid_post", max(0, model.n_layers - 2))
    else:
        site = Site.parse(config.site)
    model.module(site)
    layer = site.layer if site.layer is not None else model.n_layers - 1
    neurons = gate_neurons(model, layer) if "neurons" in config.baselines else None
    kept = config.neurons_k or (loaded.k if loaded and loaded.k else 32)
    reader = Reader(model, config, context, loaded, site, neurons, kept)
    if config.sae == "default" and loaded is None:
        context.warn(
            f"No sparse autoencoder ships with {model.name}, so {NAMES[reader.main]} select in place of features; "
            f"train one with `workbench train-sae` or give sae=FOLDER."
        )
    return reader


def _autoencoder(model: Model, config: Config, context: Context) -> Sae | None:
    source = config.sae
    if source == "none":
        return None
    if source == "default":
        shipped = organisms.autoencoder(model.name)
        if shipped is None:
            if not config.baselines:
                raise InputError(
                    f"No sparse autoencoder ships with {model.name}, and baselines is empty; train one with `workbench "
                    f"train-sae`, give sae=FOLDER, or name a baseline."
                )
            return None
        source = str(shipped)
    loaded = sae.load(source, device=model.device, site=None if config.site == "auto" else config.site)
    for message in sae.check_fits(loaded, model):
        context.warn(message)
    loaded, said = conventions.obey(loaded, model)
    for message in said:
        context.warn(message)
    context.sae = loaded.describe() | {"path": config.sae if config.sae != "default" else f"{model.name} (shipped)"}
    return loaded


def _counted(found: dict[Site, torch.Tensor], counted: torch.Tensor) -> dict[Site, torch.Tensor]:
    return {site: x[counted.to(x.device)] for site, x in found.items()}


def _alike(masks: Sequence[np.ndarray]) -> int:
    """Of how many tokens at the beginning all samples count the same."""
    shortest = min(map(len, masks))
    some = np.stack([mask[:shortest] for mask in masks])
    differs = np.flatnonzero((some != some[0]).any(0))
    return int(differs[0]) if len(differs) else some.shape[1]
