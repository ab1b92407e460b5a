"""What pool samples are compared with: the vectors of a target's examples, and how they vary as the examples are
resampled, or left out in turn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch

from probes.data_selection.rankings import grouped_counts
from probes.data_selection.sample_vectors import Reader
from probes.data_selection.samples import TokenizedSamples
from workbench.core.cells import label_column
from workbench.core.errors import InputError
from workbench.stats.jackknife import Deletions, deletions


@dataclass(frozen=True, eq=False)
class Prototypes:
    """P prototypes, one or several a target: the mean of its examples, or one per example or subtask.

    `resampled` and `without` have one entry a target, and only what the main method needs. With prototype=max,
    `resampled` is how often each example is drawn: [B, P of the target]; otherwise the prototypes of resampled
    examples: a float32 tensor [B, P of the target, width]. `without` [groups, P of the target, width] are the
    prototypes without each group of `left_out`; with prototype=max there are none: which example is the nearest jumps,
    and no interval of the largest of a few is known to hold. None where there is one example."""

    names: list[str]  # of the targets
    by_method: dict[str, torch.Tensor]  # float64 [P, width]
    target: np.ndarray  # [P]: number of the target that each is of
    examples: np.ndarray  # [P]: how many examples each is the mean of
    resampled: list[Any]
    without: list[torch.Tensor | None]
    left_out: list[Deletions]

    @property
    def can_resample(self) -> bool:
        return any(found is not None for found in self.resampled)

    def center(self, target: int) -> torch.Tensor:
        """The mean [width] of a target's examples in features of the autoencoder."""
        own = np.flatnonzero(self.target == target)
        weight = torch.as_tensor(self.examples[own] / self.examples[own].sum(), device=self.by_method["sae"].device)
        return weight @ self.by_method["sae"][own]


def of_targets(
    reader: Reader, examples: Mapping[str, TokenizedSamples], tables: Mapping[str, pl.DataFrame]
) -> Prototypes:
    """The prototypes of targets, from their examples and, for prototype=subtask, the tables they are from. Raises
    InputError for a target without any active feature."""
    config, device = reader.config, reader.model.device
    found: dict[str, list[torch.Tensor]] = {}
    target: list[int] = []
    members: list[int] = []
    resampled: list[Any] = []
    without: list[torch.Tensor | None] = []
    left_out: list[Deletions] = []
    for t, (name, samples) in enumerate(examples.items()):
        member = _members(config.prototype, samples, tables.get(name))
        drawn = grouped_counts(
            len(samples),
            np.zeros_like(member) if config.prototype == "max" else member,
            config.resamples,
            reader.context.rng(f"resamples {name}"),
        )
        several = config.prototype != "max"
        left_out.append(deletions(member, reader.context.rng(f"left out {name}")))
        drawn_rows = len(drawn) if drawn is not None and several else 0
        weights = [drawn] if drawn_rows else []
        weights += [left_out[t].kept] if left_out[t].n and several else []
        sums, again = _sums(reader, samples, member, np.concatenate(weights) if weights else None)
        count = torch.as_tensor(np.bincount(member), device=device)[:, None]
        for method, total in sums.items():
            if method == "sae" and not bool((total > 0).any()):
                raise InputError(
                    f"No feature of the sparse autoencoder is active on any example of the target '{name}'."
                )
            found.setdefault(method, []).append(total / count)
        resampled.append(drawn if not several else again[:drawn_rows] if again is not None and drawn_rows else None)
        without.append(again[drawn_rows:] if again is not None and left_out[t].n else None)
        target += [t] * len(count)
        members += np.bincount(member).tolist()
    by_method = {method: torch.cat(of_each) for method, of_each in found.items()}
    return Prototypes(list(examples), by_method, np.array(target), np.array(members), resampled, without, left_out)


def _members(prototype: str, samples: TokenizedSamples, table: pl.DataFrame | None) -> np.ndarray:
    """The number of the prototype that each example of a target is of."""
    if prototype == "subtask":
        names = label_column(table["subtask"], "The target").fill_null("").to_list()
        kinds = sorted(set(names))
        return np.array([kinds.index(name) for name in names])
    return np.arange(len(samples)) if prototype == "max" else np.zeros(len(samples), np.int64)


def _sums(
    reader: Reader, samples: TokenizedSamples, member: np.ndarray, drawn: np.ndarray | None
) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
    """By method, the sums [P, width] of the vectors of each prototype's examples; for the main method also the means of
    those where each example counts as `drawn` [B, examples] says, float32 [B, P, width]."""
    p, device = int(member.max()) + 1, reader.model.device
    sums: dict[str, torch.Tensor] = {}
    again = None
    for batch in reader.read(samples.lists(range(len(samples))), samples.masks):
        where = torch.as_tensor(member[batch.indices], device=device)
        for method, rows in batch.vectors.items():
            if method not in sums:
                dense = isinstance(rows, torch.Tensor)
                width, at = (rows.shape[1], rows.device) if dense else (rows.width, rows.value.device)
                sums[method] = torch.zeros(p, width, dtype=torch.float64, device=at)
            total = sums[method]
            _add(total, rows, where)
            if method != reader.main or drawn is None:
                continue
            if again is None:
                again = total.new_zeros(len(drawn), *total.shape, dtype=torch.float32)
            weight = torch.as_tensor(drawn[:, batch.indices], device=total.device, dtype=torch.float32)
            for b in range(len(drawn)):
                _add(again[b], rows, where, weight[b])
    if again is not None:
        per = np.stack([np.bincount(member, weights=some, minlength=p) for some in drawn])
        again /= torch.as_tensor(per, device=again.device, dtype=again.dtype)[:, :, None]
    return sums, again


def _add(total: torch.Tensor, rows: Any, where: torch.Tensor, weight: torch.Tensor | None = None) -> None:
    """Add the vectors of samples, dense or sparse, to the sums of the prototypes that they are of."""
    if isinstance(rows, torch.Tensor):
        total.index_add_(0, where, rows if weight is None else rows.float() * weight[:, None])
        return
    value = rows.value if weight is None else rows.value.float() * weight[rows.row]
    total.view(-1).index_add_(0, where[rows.row] * rows.width + rows.feature, value)
