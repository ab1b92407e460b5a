"""One vector per sample: sparse features, sparse neurons and the hidden state of its tokens, as their mean, their sum
or the last one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.engine.edits import Edit
from workbench.engine.hf import stream
from workbench.engine.passes import Pass
from workbench.engine.shared_prefix import beginning, stream_after
from workbench.models.model import Model
from workbench.models.sites import Site
from workbench.sae.load import Sae, neuron_rows
from workbench.sae.sparse_rows import sum_tokens


@dataclass(eq=False)
class Reader:
    """What is computed on every sample, as far as it is wanted."""

    model: Model
    sae: Sae | None
    site: Site  # of the features and the hidden state
    neurons: tuple[Site, Callable[[torch.Tensor], torch.Tensor], str] | None  # as `gate_neurons` gives them
    neurons_k: int
    baselines: tuple[str, ...]
    aggregate: str  # mean, sum or last
    max_tokens: int
    edits: Sequence[Edit] = ()

    @property
    def main(self) -> str:
        """The method whose selection is the result: the features, else the first baseline."""
        return "sae" if self.sae is not None else self.baselines[0]

    def read(
        self, ids: Sequence[Sequence[int]], masks: Sequence[np.ndarray], context: Context
    ) -> Iterator[tuple[list[int], dict[str, Any], Any, Any, Any]]:
        """Yield (row indices, {method: one vector per sample}, activations of the counted tokens, their sparse rows,
        their owners).

        What all samples begin with is read and encoded once: it comes first, without row indices, and is in every
        sample's vector, but not among the tokens that come with it."""
        last = self.aggregate == "last"
        sites = list(dict.fromkeys([self.site] + ([self.neurons[0]] if self.neurons else [])))
        begun = None if self.edits or last else beginning(self.model, ids, sites, size=_alike(masks))
        size = len(begun.tokens) if begun else 0
        run = Pass(edits=self.edits, max_tokens=self.max_tokens, check=context.check)
        before, first, per_first = (
            {},
            None,
            0,
        )  # of the beginning: its sums by method, its activations, how many tokens of it count

        def sparse(found):
            rows = {"sae": self.sae.encode(found[self.site])} if self.sae is not None else {}
            return rows | (
                {"neurons": neuron_rows(self.neurons[1](found[self.neurons[0]]), self.neurons_k)}
                if self.neurons
                else {}
            )

        if begun:
            counted = torch.from_numpy(masks[0][:size])
            first = {site: x[counted.to(x.device)] for site, x in begun.found.items()}
            x, rows, per_first = first[self.site], sparse(first), int(counted.sum())
            owner = torch.zeros(per_first, dtype=torch.int64, device=x.device)
            before = {name: sum_tokens(own, owner, 1).dense()[0] for name, own in rows.items()} | {
                "hidden": x.flatten(1).double().sum(0)
            }
            context.count(tokens=size, forwards=1)
            yield [], {}, x, rows.get("sae"), owner
            batches = stream_after(self.model, begun, ids, sites, run=run)
        else:
            batches = stream(self.model, ids, sites, positions="all", run=run)
        for indices, found, batch in batches:
            n = len(indices)
            counted = torch.from_numpy(np.concatenate([masks[i][size:] for i in indices]))
            found = {site: x[counted.to(x.device)] for site, x in found.items()}
            x, rows = found[self.site], sparse(found)
            owner = torch.repeat_interleave(torch.arange(n), batch.lengths.cpu())[counted].to(x.device)
            which = torch.arange(len(x), device=x.device)  # the tokens that make the vector of a sample
            if last:
                which = torch.zeros(n, dtype=torch.int64, device=x.device).scatter_reduce(0, owner, which, "amax")
            whose = owner[which]
            per = (
                torch.bincount(whose, minlength=n) + per_first
                if self.aggregate != "sum"
                else torch.ones(n, device=x.device)
            )
            out = {
                name: sum_tokens(own.only(which) if last else own, owner, n, before.get(name)).divided(per)
                for name, own in rows.items()
            }
            if "hidden" in self.baselines:
                flat = x[which].flatten(1).double()
                total = torch.zeros(n, flat.shape[1], dtype=torch.float64, device=x.device) + before.get("hidden", 0)
                out["hidden"] = total.index_add_(0, whose, flat) / per[:, None]
                if not bool(out["hidden"].isfinite().all()):
                    raise InputError(
                        f"The activations of {self.model.name} at {self.site} are NaN or infinite on a "
                        f"sample; load the model in bfloat16 or float32."
                    )
            context.count(tokens=batch.tokens, forwards=1)
            yield indices, out, x, rows.get("sae"), owner


def _alike(masks: Sequence[np.ndarray]) -> int:
    """Of how many tokens at the beginning all samples count the same."""
    shortest = min(map(len, masks))
    some = np.stack([mask[:shortest] for mask in masks])
    differs = np.flatnonzero((some != some[0]).any(0))
    return int(differs[0]) if len(differs) else some.shape[1]
