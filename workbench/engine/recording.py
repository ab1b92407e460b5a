"""What is kept of a forward pass: which sites, at which positions, and where the pass may end.

Hooks copy only the positions asked for, and the pass ends after the deepest site.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TypeGuard

import torch
from torch import nn

from workbench.core.errors import InputError
from workbench.models.architecture import first_tensor, hidden_argument
from workbench.models.batching import Batch
from workbench.models.model import Model
from workbench.models.running_pass import PassPositions, after, before, hooked
from workbench.models.sites import Site

Positions = str | Sequence[int] | Sequence[Sequence[int]]
Keep = Callable[[torch.Tensor], torch.Tensor]


class _Enough(Exception):
    """Raised from a hook once everything has been seen: the rest of the pass is not needed."""


def parse_sites(model: Model, sites: Sequence[Site | str]) -> list[Site]:
    """The sites asked for. Raises InputError for none, and for one that the model does not have."""
    wanted = [Site.parse(site) for site in sites]
    if not wanted:
        raise InputError("No sites were asked for.")
    for site in wanted:
        model.module(site)
    return wanted


def positions_of(positions: Positions, indices: Sequence[int]) -> Positions:
    """The positions of the prompts `indices`: those that differ by prompt are picked."""
    return [positions[i] for i in indices] if differ_by_prompt(positions) else positions


def differ_by_prompt(positions: Positions) -> TypeGuard[Sequence[Sequence[int]]]:
    """Whether every prompt has positions of its own."""
    return not isinstance(positions, str) and len(positions) > 0 and isinstance(positions[0], Sequence)


def select_positions(batch: Batch, positions: Positions) -> Keep:
    """How to take the wanted positions out of [B, T, …], as a copy: → [B, …] for "last" and "mean", [tokens, …] for
    "all", [B, k, …] for k positions (one list for all rows of the batch, or one each).

    Raises InputError for another word, and for positions that a row does not have."""
    here = PassPositions(batch.position_ids, batch.mask, batch.position_ids)
    if isinstance(positions, str):
        if positions == "all":
            if bool(batch.mask.all()):
                return lambda x: x.flatten(0, 1).clone()
            real = batch.mask.flatten().nonzero()[:, 0]
            return lambda x: x.flatten(0, 1).index_select(0, real.to(x.device))
        if positions == "last":
            last = here.last_columns()
            return lambda x: x[torch.arange(len(last), device=x.device), last.to(x.device)]
        if positions == "mean":
            return lambda x: _masked_mean(x, batch.mask.to(x.device))
        raise InputError(f"'{positions}' is no choice of positions; use last, mean, all or a list of token positions.")
    rows = [list(row) for row in positions] if differ_by_prompt(positions) else [list(positions)] * len(batch.ids)
    if len({len(row) for row in rows}) != 1:
        raise InputError("Every prompt needs the same number of positions.")
    columns = here.columns(torch.tensor(rows, device=batch.ids.device))
    return lambda x: x[torch.arange(len(columns), device=x.device)[:, None], columns.to(x.device)]


def _masked_mean(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    x = x.float() if x.dtype != torch.float64 else x
    weight = mask.to(x.dtype).reshape(*mask.shape, *[1] * (x.ndim - 2))
    return (x * weight).sum(1) / weight.sum(1)


def converted(dtype: torch.dtype | None, *, copy: bool = False) -> Keep:
    """What is done to activations before they are kept: their dtype changed (None: the model's stays), `copy`: always
    into memory of their own."""
    if dtype is None:
        return (lambda x: x.clone()) if copy else (lambda x: x)
    return lambda x: x.to(dtype, copy=copy)


def site_values(model: Model, site: Site, x: torch.Tensor, select: Keep) -> torch.Tensor:
    """The selected activations of a site, from what its module read or gave [B, T, …]. "logits" are the unembedding of
    the selected final states only: all positions × vocabulary are never held."""
    if site.kind == "head_out":
        x = x.unflatten(-1, (model.n_heads, model.d_head))
        x = x if site.head is None else x[..., site.head, :]
    picked = select(x)
    return model.logits_from(picked, normed=True) if site.kind == "logits" else picked


def site_module(model: Model, site: Site) -> tuple[nn.Module, str]:
    """The module to watch for a site, and "input" or "output"; for logits the final norm, whose states are unembedded
    afterwards."""
    return model.module(site if site.kind != "logits" else Site("final_norm"))


@contextlib.contextmanager
def recording(
    model: Model, wanted: Sequence[Site], batch: Batch, select: Keep, keep: Keep
) -> Iterator[dict[Site, torch.Tensor]]:
    """While open, one forward pass of this thread leaves the selected activations in the yielded dict and is ended
    after the last of them."""
    seen: dict[Site, torch.Tensor] = {}
    by_module: dict[tuple[nn.Module, str], list[Site]] = {}
    for site in wanted:
        by_module.setdefault(site_module(model, site), []).append(site)

    def note(sites: list[Site], x: torch.Tensor) -> None:
        x = x.unflatten(0, tuple(batch.ids.shape)) if x.ndim == 2 else x  # some blocks flatten tokens
        for site in sites:
            seen[site] = keep(site_values(model, site, x, select))
        if len(seen) == len(wanted):
            raise _Enough

    with contextlib.ExitStack() as stack:
        for (module, side), sites in by_module.items():
            if side == "input":
                handle = before(module, lambda _m, args, kwargs, s=sites: note(s, hidden_argument(args, kwargs)))
            else:
                handle = after(module, lambda _m, _args, output, s=sites: note(s, first_tensor(output)))
            stack.callback(handle.remove)
        with contextlib.suppress(_Enough):
            yield seen


@contextlib.contextmanager
def ended_by_final_norm(model: Model) -> Iterator[list[torch.Tensor]]:
    """While open, a forward pass of this thread leaves the output of the final norm in the yielded list and ends there:
    the unembedding of every position is not needed."""
    states: list[torch.Tensor] = []

    def stop(_module, _args, output):
        states.append(output)
        raise _Enough

    handle = after(model.final_norm, stop)
    try:
        with contextlib.suppress(_Enough):
            yield states
    finally:
        handle.remove()


@contextlib.contextmanager
def last_mlp_narrowed(model: Model, wanted: Sequence[Site], batch: Batch) -> Iterator[None]:
    """While open, the last MLP runs on each prompt's last token alone, the only one whose result is read: MLPs work
    token by token.

    Not where something of that MLP is wanted or hooked, and not in blocks that read and write it through different
    modules."""
    block = model.anatomy.blocks[-1]
    mlp = block.mlp_in
    inside = any(site_module(model, site)[0] in set(mlp.modules()) for site in wanted)
    if inside or mlp is not block.mlp_out or any(hooked(module) for module in mlp.modules()):
        yield
        return
    columns = PassPositions(batch.position_ids, batch.mask, batch.position_ids).last_columns()
    shape = tuple(batch.ids.shape)
    narrow: list[bool] = []

    def at_last(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.arange(shape[0], device=x.device), columns.to(x.device)

    def only_last(_module, args, kwargs):
        narrow[:] = [bool(args) and isinstance(args[0], torch.Tensor) and args[0].shape[:-1] == shape]
        return ((args[0][at_last(args[0])][:, None], *args[1:]), kwargs) if narrow[0] else None

    def in_place(_module, _args, output):
        if not narrow[0]:
            return None
        found = first_tensor(output)
        whole = found.new_zeros(*shape, found.shape[-1])
        whole[at_last(found)] = found.reshape(shape[0], -1)  # some flatten tokens
        return whole if isinstance(output, torch.Tensor) else (whole, *output[1:])

    handles = [before(mlp, only_last), after(mlp, in_place)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
