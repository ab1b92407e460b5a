"""One vector per sample: sparse features, sparse neurons and the hidden state of its tokens, as their mean, their sum
or the last one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from probes.data_selection.before_loading import autoencoder_of
from probes.data_selection.config import Config
from probes.data_selection.samples import TokenizedSamples
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.engine.hf import stream
from workbench.engine.passes import Pass
from workbench.engine.shared_prefix import Beginning, beginning, stream_after
from workbench.models.batching import sent
from workbench.models.gated_mlp import gate_neurons
from workbench.models.host_copies import arriving
from workbench.models.model import Model
from workbench.models.sinks import norms_of, ordinary_tokens
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

    indices: list[int]  # rows of what was read; none for what samples begin with
    vectors: dict[str, Any]  # sparse rows of the features and the neurons, float64 [n, width] of the hidden state
    activations: torch.Tensor  # of the tokens
    tokens: Rows | None  # their features
    owner: torch.Tensor  # place in `indices` of the sample of each token
    rebuilt: torch.Tensor  # what a reconstruction is compared with: the activations, or those of a transcoder's output
    rows: list[int]  # rows that these tokens are in: `indices`, or all that begin with them
    counted: list[np.ndarray]  # which tokens of each of `indices` count, sinks left out


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

    def read(
        self, ids: Sequence[Sequence[int]], masks: Sequence[np.ndarray], *, leave_out_sinks: bool = False
    ) -> Iterator[SampleBatch]:
        """The vectors of samples, batch by batch; `masks` say which of their tokens count. `leave_out_sinks`: those
        of them that are sinks are found and do not count, unless the config keeps them; a sample in which nothing is
        left comes in no batch.

        What all samples begin with is read once, and encoded once for all samples in which the same of it counts: it is
        in every sample's vector, but not among the tokens that come with it. It comes last, without row indices."""
        whole = self.run.edits or self.config.aggregate == "last"
        begun = None if whole else beginning(self.model, ids, self.sites, size=_alike(masks))
        batches = (
            stream_after(self.model, begun, ids, self.sites, run=self.run)
            if begun
            else stream(self.model, ids, self.sites, positions="all", run=self.run)
        )
        shared = SharedBeginning(self, begun) if begun else None
        judged = leave_out_sinks and self.config.sinks == "leave_out"
        if shared:
            self.context.count(tokens=shared.size, forwards=1)
        for indices, found, batch in batches:
            counted = [masks[i] for i in indices]
            if judged:
                before = shared.norms if shared else None
                counted = ordinary_tokens(norms_of(found[self.site], 1), counted, before)
            for part in _alike_in_front(counted, shared.size if shared else 0):
                yield self._batch(indices, found, counted, part, shared)
            self.context.count(tokens=batch.tokens, forwards=1)
        if shared:
            yield from shared.batches()

    def _batch(
        self,
        indices: list[int],
        found: dict[Site, torch.Tensor],
        counted: list[np.ndarray],
        part: list[int],
        shared: SharedBeginning | None,
    ) -> SampleBatch:
        """The samples at the places `part` of one pass over `indices`, in which the same of the beginning counts."""
        last, n = self.config.aggregate == "last", len(part)
        size = shared.size if shared else 0
        place = {k: at for at, k in enumerate(part)}
        own = [mask[size:] if k in place else np.zeros(len(mask) - size, bool) for k, mask in enumerate(counted)]
        flat = np.concatenate(own)
        owner = np.repeat([place.get(k, 0) for k in range(len(own))], [len(mask) for mask in own])[flat]
        before = shared.sums_of(counted[part[0]][:size], [indices[k] for k in part]) if shared else {}
        many = np.ones(n, np.int64)  # the tokens that each vector is of
        if self.config.aggregate == "mean":
            many = np.bincount(owner, minlength=n) + int(counted[part[0]][:size].sum())
        numbers = (np.flatnonzero(flat), owner, many)
        chosen, owner, per = sent([torch.from_numpy(x) for x in numbers], found[self.site].device)
        found = _picked(found, chosen)
        x, rows = found[self.site], self.sparse(found)
        which = torch.arange(len(x), device=x.device)  # the tokens that make the vector of a sample
        if last:
            which = torch.zeros(n, dtype=torch.int64, device=x.device).scatter_reduce(0, owner, which, "amax")
        whose = owner[which]
        vectors = {
            name: sum_tokens(own.only(which) if last else own, owner, n, before.get(name)).divided(per)
            for name, own in rows.items()
        }
        if "hidden" in self.config.baselines:
            states = x[which].flatten(1).double()
            total = torch.zeros(n, states.shape[1], dtype=torch.float64, device=x.device) + before.get("hidden", 0)
            vectors["hidden"] = total.index_add_(0, whose, states) / per[:, None]
            if not bool(vectors["hidden"].isfinite().all()):
                raise InputError(
                    f"The activations of {self.model.name} at {self.site} are NaN or infinite on a "
                    f"sample; load the model in bfloat16 or float32."
                )
        here = [indices[k] for k in part]
        return SampleBatch(
            here, vectors, x, rows.get("sae"), owner, found[self.writes], here, [counted[k] for k in part]
        )

    def sparse(self, found: dict[Site, torch.Tensor]) -> dict[str, Rows]:
        """The features and the neurons of tokens, from their activations."""
        rows = {}
        if self.sae is not None:
            rows["sae"] = self.sae.encode(found[self.site])
        if self.neurons:
            site, read, _ = self.neurons
            rows["neurons"] = neuron_rows(read(found[site]), self.neurons_k)
        return rows


@dataclass(eq=False)
class SharedBeginning:
    """What all samples begin with, read once: its sums by method, for every choice of tokens of it that count (a token
    may be a sink in one sample and none in another), and the samples that each choice is of."""

    reader: Reader
    begun: Beginning

    def __post_init__(self) -> None:
        self.size = len(self.begun.tokens)
        self.norms = norms_of(self.begun.found[self.reader.site], 1)  # [size]
        self.found: dict[bytes, tuple[SampleBatch, dict[str, torch.Tensor]]] = {}

    def sums_of(self, counted: np.ndarray, rows: list[int]) -> dict[str, torch.Tensor]:
        """The sums over the tokens that count ([size]), which are in these further samples."""
        key = counted.tobytes()
        if key not in self.found:
            self.found[key] = self._sums(counted)
        batch, sums = self.found[key]
        batch.rows.extend(rows)
        return sums

    def _sums(self, counted: np.ndarray) -> tuple[SampleBatch, dict[str, torch.Tensor]]:
        chosen = arriving(torch.from_numpy(np.flatnonzero(counted)), self.norms.device)
        found = _picked(self.begun.found, chosen)
        x, rows = found[self.reader.site], self.reader.sparse(found)
        owner = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        sums = {name: sum_tokens(own, owner, 1).dense()[0] for name, own in rows.items()}
        sums["hidden"] = x.flatten(1).double().sum(0)
        return SampleBatch([], {}, x, rows.get("sae"), owner, found[self.reader.writes], [], []), sums

    def batches(self) -> Iterator[SampleBatch]:
        """The tokens of the beginning, once for every choice."""
        return (batch for batch, _ in self.found.values())


def without_sinks(reader: Reader, samples: TokenizedSamples) -> TokenizedSamples:
    """The samples with their sinks not counted, found in a pass of their own: before what depends on how many samples
    have any token that counts."""
    if reader.config.sinks == "keep":
        return samples
    masks = list(samples.masks)
    ids = samples.lists(range(len(samples)))
    for indices, found, batch in stream(reader.model, ids, [reader.site], positions="all", run=reader.run):
        kept = ordinary_tokens(norms_of(found[reader.site], 1), [masks[i] for i in indices])
        for i, mask in zip(indices, kept):
            masks[i] = mask
        reader.context.count(tokens=batch.tokens, forwards=1)
    return TokenizedSamples(samples.ids, masks, samples.cut)


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
    source = autoencoder_of(model.name, config)
    if source is None:
        return None
    loaded = sae.load(source, device=model.device, site=None if config.site == "auto" else config.site)
    for message in sae.check_fits(loaded, model):
        context.warn(message)
    loaded, said = conventions.obey(loaded, model)
    for message in said:
        context.warn(message)
    context.sae = loaded.describe() | {"path": config.sae if config.sae != "default" else f"{model.name} (shipped)"}
    return loaded


def _picked(found: dict[Site, torch.Tensor], tokens: torch.Tensor) -> dict[Site, torch.Tensor]:
    """Activations of some of the tokens, by their numbers."""
    return {site: x[tokens.to(x.device)] for site, x in found.items()}


def _alike_in_front(counted: Sequence[np.ndarray], size: int) -> list[list[int]]:
    """The places of samples in which any token counts, together where the same of their first `size` does."""
    groups: dict[bytes, list[int]] = {}
    for k, mask in enumerate(counted):
        if mask.any():
            groups.setdefault(mask[:size].tobytes(), []).append(k)
    return list(groups.values())


def _alike(masks: Sequence[np.ndarray]) -> int:
    """Of how many tokens at the beginning all samples count the same."""
    shortest = min(map(len, masks))
    some = np.stack([mask[:shortest] for mask in masks])
    differs = np.flatnonzero((some != some[0]).any(0))
    return int(differs[0]) if len(differs) else some.shape[1]
