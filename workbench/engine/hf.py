"""The first engine: batched forward passes of the plain Hugging Face model, observed with hooks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch

from workbench.engine.edits import apply
from workbench.engine.passes import READ, ROWS, Pass, check_prompts, with_pass
from workbench.models.batching import Batch, pad
from workbench.models.model import Model
from workbench.models.recording import (
    Positions,
    converted,
    last_mlp_narrowed,
    parse_sites,
    positions_of,
    recording,
    select_positions,
)
from workbench.models.sites import Site

Streamed = tuple[list[int], dict[Site, torch.Tensor], Batch]  # row indices, activations on the device, what was run


@with_pass
def stream(
    model: Model,
    ids: Sequence[Sequence[int]],
    sites: Sequence[Site | str],
    *,
    positions: Positions = "last",
    side: str = "right",
    dtype: torch.dtype | None = None,
    run: Pass,
) -> Iterator[Streamed]:
    """Yield (row indices, {site: activations on the device}, batch) for one batch after another; nothing is kept.

    Batches hold prompts of similar length, so rows do not come in order. `dtype` None keeps the model's. Edits are
    applied during the pass, before the capture. Raises InputError for prompts, sites or edits that do not fit."""
    wanted = parse_sites(model, sites)
    check_prompts(model, ids, run)
    keep = converted(dtype)  # what was selected is a copy already
    found: list[tuple[dict[Site, torch.Tensor], Batch]] = []  # of the batch at hand

    def step(indices: list[int]) -> None:
        found.clear()
        batch = pad([ids[i] for i in indices], pad_id=model.pad_id, side=side, device=model.device)
        select = select_positions(batch, positions_of(positions, indices))
        narrowed = last_mlp_narrowed(model, wanted, batch) if positions == "last" else contextlib.nullcontext()
        with (
            torch.no_grad(),
            apply(model, run.for_prompts(indices).edits),
            narrowed,
            recording(model, wanted, batch, select, keep) as seen,
        ):
            model.forward(batch)
        found.append(({site: seen[site] for site in wanted}, batch))

    lengths = [len(row) for row in ids]
    each = max(lengths) if positions == "all" else 1
    kept = each * sum(map(model.site_size, wanted))
    tokens = model.planned_tokens(READ, longest=max(lengths), captured=kept)
    for indices in run.batches(lengths, step, tokens=tokens, rows=model.rows_at_once(lengths, run.max_rows or ROWS)):
        yield indices, *found[0]
