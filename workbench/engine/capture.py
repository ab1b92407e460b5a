"""Activations of any set of sites at any positions of many prompts: returned, or shard by shard, or through the store.

The plain Hugging Face model runs, batched by length; where many prompts begin alike, what they share is run once. Given
a store, each shard is computed once and for all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING

import torch

from workbench.core.errors import InputError, RunFailed
from workbench.engine import hf, nnsight, shared_prefix
from workbench.engine.passes import READ, ROWS, Pass, check_prompts, with_pass
from workbench.engine.stored_capture import Captured, Request, through_store
from workbench.models.batching import Batch, batches
from workbench.models.host_copies import arrivals
from workbench.models.model import DTYPES, Model
from workbench.models.recording import Positions, parse_sites, positions_of
from workbench.models.sites import Site

if TYPE_CHECKING:
    from workbench.core.context import Context
    from workbench.store.activation_store import Store

ENGINES = {"hf": hf.stream, "nnsight": nnsight.stream}
ALIKE = 4096  # prompts that are packed together by what they begin with


@dataclass(eq=False)
class Activations(Mapping):
    """Captured activations by site, rows in the order of the prompts.

    acts[site] is [n, …] for positions "last" and "mean", [n, k, …] for k positions, [sum of lengths, …] for "all" (then
    `rows(site, i)` is prompt i's block). … is the width, H × d_head for head_out.L, d_head for head_out.L.H."""

    tensors: dict[Site, torch.Tensor]
    lengths: list[int]
    positions: Positions

    def __getitem__(self, site: Site | str) -> torch.Tensor:
        return self.tensors[Site.parse(site)]

    def __iter__(self) -> Iterator[Site]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def rows(self, site: Site | str, prompt: int) -> torch.Tensor:
        """Every token of one prompt, [length, …]; only for positions "all"."""
        start = sum(self.lengths[:prompt])
        return self[site][start : start + self.lengths[prompt]]


@with_pass
def capture(
    model: Model,
    ids: Sequence[Sequence[int]],
    sites: Sequence[Site | str],
    *,
    positions: Positions = "last",
    dtype: torch.dtype | str = torch.float32,
    store: Store | None = None,
    context: Context | None = None,
    side: str = "right",
    engine: str = "hf",
    run: Pass,
) -> Activations:
    """Activations of `sites` at `positions` of every prompt (token ids, BOS included where wanted), on the CPU, in
    prompt order.

    `positions`: "last", "mean" (over all tokens of the prompt), "all", a list of token positions (negative = from the
    end), or one list per prompt. With a `store`, what was computed before is read, and a capture that was interrupted
    goes on where it stopped. `context` (a probe's) reports progress, counts and can cancel. `engine="nnsight"` runs the
    same capture through nnsight. Raises InputError for prompts, sites, positions or edits that do not fit."""
    options = {"positions": positions, "dtype": dtype, "store": store, "context": context, "side": side}
    parts = list(shards(model, ids, sites, engine=engine, run=run, **options))
    return _in_order(parts, parse_sites(model, sites), [len(row) for row in ids], positions)


@with_pass
def shards(
    model: Model,
    ids: Sequence[Sequence[int]],
    sites: Sequence[Site | str],
    *,
    positions: Positions = "last",
    dtype: torch.dtype | str = torch.float32,
    store: Store | None = None,
    context: Context | None = None,
    side: str = "right",
    engine: str = "hf",
    run: Pass,
) -> Iterator[tuple[list[int], Captured]]:
    """What `capture` returns, one shard after another: (rows of the shard, {site: tensor on the CPU, in the order of
    these rows}).

    Memory stays that of one shard, however many prompts there are; with a `store` a second pass only reads the disk."""
    wanted = parse_sites(model, sites)
    if isinstance(dtype, str) and dtype not in DTYPES:
        raise InputError(f"'{dtype}' is not a dtype; choose one of {', '.join(DTYPES)}.")
    if engine not in ENGINES:
        raise InputError(f"'{engine}' is not an engine; choose {' or '.join(ENGINES)} (both run on this machine).")
    check_prompts(model, ids, run)
    if context is not None and run.check is None:
        run = replace(run, check=context.check)
    request = Request(
        model, ids, wanted, positions, DTYPES[dtype] if isinstance(dtype, str) else dtype, side, engine, run
    )
    alike = engine == "hf" and positions == "last" and not run.edits and shared_prefix.applies(model, ids)

    def compute(plan: list[list[int]]) -> Iterator[Captured]:
        return _compute(request, plan, shared_prefix.stream if alike else ENGINES[engine], context)

    if store is not None:
        yield from through_store(request, store, compute, context)
        return
    if alike:
        plan = [list(range(start, min(start + ALIKE, len(ids)))) for start in range(0, len(ids), ALIKE)]
    else:
        kept = (max(request.lengths) if positions == "all" else 1) * sum(map(model.site_size, wanted))
        tokens = model.planned_tokens(READ, longest=max(request.lengths), captured=kept)
        plan = batches(request.lengths, max_tokens=run.max_tokens or tokens, max_rows=run.max_rows or ROWS)
    done = 0
    for rows, found in zip(plan, compute(plan)):
        done += len(rows)
        if context is not None:
            context.progress(done, len(ids), "capture")
        yield rows, found
        del found  # before the next shard is computed


def _compute(request: Request, plan: list[list[int]], stream, context: Context | None) -> Iterator[Captured]:
    """The activations of the prompts of every shard of the plan, in the order of its rows, on the CPU. On a device the
    next batch, be it of the next shard, is launched before the last one is waited for."""

    def streamed() -> Iterator[tuple[tuple[list[int], list[int], Batch], dict[Site, torch.Tensor]]]:
        for rows in plan:
            for indices, found, batch in stream(
                request.model,
                [request.ids[i] for i in rows],
                request.sites,
                positions=positions_of(request.positions, rows),
                side=request.side,
                dtype=request.dtype,
                run=request.run.for_prompts(rows),
            ):
                yield (rows, indices, batch), found

    part: Captured = {}  # filled as batches come: views of their rows, joined at the end, would hold everything twice
    sizes, done = request.lengths if request.positions == "all" else [1] * len(request.ids), 0
    for (rows, indices, batch), found in arrivals(streamed()):
        lengths = [sizes[i] for i in rows]
        starts = list(accumulate(lengths, initial=0))
        places = [torch.arange(starts[i], starts[i + 1]) for i in indices]
        places = torch.cat(places) if places else None  # None: a pass over what all begin with
        for site, tensor in found.items():
            if site not in part:
                part[site] = torch.empty((starts[-1], *tensor.shape[1:]), dtype=tensor.dtype)
            part[site][places] = tensor
        if context is not None:
            context.count(prompts=len(indices), tokens=batch.tokens, forwards=1)
        done += len(indices)
        if done == len(rows):
            whole, part, done = {site: part[site] for site in request.sites}, {}, 0
            del found, tensor
            yield whole
            del whole


def _in_order(
    parts: list[tuple[list[int], Captured]], wanted: list[Site], lengths: list[int], positions: Positions
) -> Activations:
    """Shards put together, rows in the order of the prompts."""
    tensors = {}
    for site in wanted:
        rows: dict[int, torch.Tensor] = {}
        for indices, found in parts:
            blocks = found[site].split([lengths[i] for i in indices]) if positions == "all" else found[site]
            for i, row in zip(indices, blocks):
                rows[i] = row
        ordered = [rows[i] for i in range(len(lengths))]
        tensors[site] = torch.cat(ordered) if positions == "all" else torch.stack(ordered)
    return Activations(tensors, lengths, positions)


@with_pass
def logits(model: Model, ids: Sequence[Sequence[int]], *, positions: Positions = "last", run: Pass) -> torch.Tensor:
    """Next-token scores at the chosen positions of every prompt, float32 on the CPU: [n, V] for "last", [n, k, V] for k
    positions.

    Raises RunFailed where they are NaN, InputError for prompts, positions or edits that do not fit."""
    rows: dict[int, torch.Tensor] = {}
    streamed = hf.stream(model, ids, ["logits"], positions=positions, dtype=torch.float32, run=run)
    for indices, found in arrivals((indices, found) for indices, found, _ in streamed):
        for i, row in zip(indices, found[Site("logits")]):
            if bool(row.isnan().any()):
                raise RunFailed(
                    f"The model {model.name} gave NaN scores for prompt {i + 1}; use another dtype (bfloat16 or "
                    f"float32) or check its weights."
                )
            rows[i] = row
    return torch.stack([rows[i] for i in range(len(ids))])
