"""What is kept of a forward pass: which sites, at which positions, and where the pass may end.

Hooks copy only the positions asked for, and the pass ends after the deepest site.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeGuard

import torch
from torch import nn

from workbench.core.errors import InputError, RunFailed
from workbench.models.batching import Batch
from workbench.models.call_tape import first_tensor, hidden_argument
from workbench.models.host_copies import Resident, arriving
from workbench.models.model import Model
from workbench.models.running_pass import Call, PassPositions, after, before, hooked
from workbench.models.sinks import BESIDE_SINKS, SpanMeans, sinks_of
from workbench.models.sites import Site

Positions = str | Sequence[int] | Sequence[Sequence[int]] | SpanMeans
Keep = Callable[[torch.Tensor], torch.Tensor]


class _Enough(Exception):
    """Raised from a hook once everything has been seen: the rest of the pass is not needed."""


def parse_sites(model: Model, sites: Sequence[Site | str]) -> list[Site]:
    """The sites asked for. Raises InputError for none, and for one that the model does not have."""
    wanted = [Site.parse(site) for site in sites]
    if not wanted:
        raise InputError("No sites were asked for.")
    for site in wanted:
        site_module(model, site, edited=False)
    return wanted


def positions_of(positions: Positions, indices: Sequence[int]) -> Positions:
    """The positions of the prompts `indices`: those that differ by prompt are picked."""
    if isinstance(positions, SpanMeans):
        return replace(positions, spans=tuple(positions.spans[i] for i in indices))
    return [positions[i] for i in indices] if differ_by_prompt(positions) else positions


def differ_by_prompt(positions: Positions) -> TypeGuard[Sequence[Sequence[int]]]:
    """Whether every prompt has a list of positions of its own."""
    return not isinstance(positions, str | SpanMeans) and len(positions) > 0 and isinstance(positions[0], Sequence)


def select_positions(batch: Batch, positions: Positions) -> Keep:
    """How to take the wanted positions out of [B, T, …], as a copy: → [B, …] for "last" and means, [tokens, …] for
    "all", [B, k, …] for k positions (one list for all rows of the batch, or one each).

    "beside_sinks:mean" is the mean over the tokens that are no sinks, "beside_sinks:3" the token at position 3, of
    [B, T, …] as [B, size + 1]: last comes how many tokens were left out, or whether the one read is a sink (1). Means
    of spans are as these of whole texts: in a span, the first token of the text and its median stay the text's.

    Raises InputError for another word, and for positions that a row does not have."""
    if isinstance(positions, str):
        if positions == "all":
            if not batch.padded:
                return lambda x: x.flatten(0, 1).clone()
            real = Resident(batch.real.flatten().nonzero()[:, 0])
            return lambda x: x.flatten(0, 1).index_select(0, real.on(x.device))
        if positions == "last":
            return _at([[-1]] * len(batch.sizes), batch, one=True)
        if positions == "mean":
            return lambda x: _masked_mean(x, batch.mask.to(x.device))
        if positions.startswith(BESIDE_SINKS):
            return _beside_sinks(batch, positions.removeprefix(BESIDE_SINKS))
        raise InputError(f"'{positions}' is no choice of positions; use last, mean, all or a list of token positions.")
    if isinstance(positions, SpanMeans):
        inside = _inside(batch, positions.spans)
        return (
            _mean_beside_sinks(batch, inside)
            if positions.beside_sinks
            else lambda x: _masked_mean(x, inside.to(x.device))
        )
    rows: list = [list(row) for row in positions] if differ_by_prompt(positions) else [list(positions)] * len(batch.ids)
    if len({len(row) for row in rows}) != 1:
        raise InputError("Every prompt needs the same number of positions.")
    return _at(rows, batch)


def _at(rows: Sequence[Sequence[int]], batch: Batch, *, one: bool = False) -> Keep:
    """How to take the tokens of each row at these positions, from its first token on or, negative, from its end: [B, k,
    …], or of `one` position [B, …]. Raises InputError for a position that a row does not have."""
    width, columns = batch.real.shape[1], []
    for row, (wanted, size) in enumerate(zip(rows, batch.sizes)):
        first = width - size if batch.side == "left" else 0
        for position in wanted:
            if not -size <= position < size:
                raise InputError(f"Position {position} is not among the tokens of sequence {row} in this pass.")
        columns.append([first + position % size for position in wanted])
    k = len(rows[0]) if rows else 0
    place = torch.tensor(columns, dtype=torch.long).view(len(rows), k)
    both = Resident(torch.stack([torch.arange(len(rows))[:, None].expand_as(place), place]))

    def select(x: torch.Tensor) -> torch.Tensor:
        row, column = both.on(x.device)
        return x[row[:, 0], column[:, 0]] if one else x[row, column]

    return select


def _masked_mean(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    x = x.float() if x.dtype != torch.float64 else x
    weight = mask.to(x.dtype).reshape(*mask.shape, *[1] * (x.ndim - 2))
    return (x * weight).sum(1) / weight.sum(1)


def _beside_sinks(batch: Batch, token: str) -> Keep:
    """As `select_positions` says of "beside_sinks:…"."""
    if token == "mean":
        return _mean_beside_sinks(batch, batch.mask)
    at = select_positions(batch, [int(token)])

    def select(x: torch.Tensor) -> torch.Tensor:
        return _with_last(at(x)[:, 0], at(sinks_of(x, batch.mask.to(x.device)))[:, 0])

    return select


def _mean_beside_sinks(batch: Batch, counted: torch.Tensor) -> Keep:
    """The mean over the counted tokens [B, T] that are no sinks, and how many of them are."""

    def select(x: torch.Tensor) -> torch.Tensor:
        own = counted.to(x.device)
        sinks = sinks_of(x, batch.mask.to(x.device), own)
        # a span of sinks only is read as it is
        sinks = sinks & (own & ~sinks).any(1, keepdim=True)
        return _with_last(_masked_mean(x, own & ~sinks), sinks.sum(1))

    return select


def _with_last(found: torch.Tensor, said: torch.Tensor) -> torch.Tensor:
    return torch.cat([found.flatten(1), said[:, None].to(found.dtype)], 1)


def _inside(batch: Batch, spans: Sequence[tuple[int, int]]) -> torch.Tensor:
    """Mask [B, T] of the tokens in the span of each row. Raises InputError for a span that is empty or beyond its
    text."""
    for (start, end), length in zip(spans, batch.sizes, strict=True):
        if not 0 <= start < end <= length:
            raise InputError(f"The tokens {start} to {end} are not among the {length} of their text.")
    starts, ends = arriving(torch.tensor(spans), batch.ids.device).T
    at = batch.position_ids
    return batch.mask & (at >= starts[:, None]) & (at < ends[:, None])


def converted(dtype: torch.dtype | None, *, copy: bool = False) -> Keep:
    """What is done to activations before they are kept: their dtype changed (None: the model's stays), `copy`: always
    into memory of their own."""
    if dtype is None:
        return (lambda x: x.clone()) if copy else (lambda x: x)
    return lambda x: x.to(dtype, copy=copy)


def read_out_site(model: Model, *, edited: bool = False) -> Site:
    """The site that next-token scores are computed from (`scores_of`): the final norm's, and of a model in few bits the
    stream before it, whose norm is then computed in float32. `edited`: whether something acts on the final norm's
    result, which the stream before it does not show. "logits" where scores are more than the unembedding of the final
    norm."""
    if model.facts.why_not("logits_unembedded") is not None:
        return Site("logits")
    last = model.n_layers - 1
    plain = model.facts.why_not("final_norm_ends_stream") is None
    return Site("resid_post", last) if model.low_precision and plain and not edited else Site("final_norm")


def scores_of(model: Model, site: Site, states: torch.Tensor) -> torch.Tensor:
    """Next-token scores [..., V] float32 from activations of the `read_out_site`."""
    return states.float() if site.kind == "logits" else model.logits_from(states, normed=site.kind == "final_norm")


def site_values(model: Model, site: Site, x: torch.Tensor, select: Keep, *, edited: bool) -> torch.Tensor:
    """The selected activations of a site, from what its module read or gave [B, T, …]. "logits" are the unembedding of
    the selected final states only: all positions × vocabulary are never held, where the model's scores are that."""
    if site.kind == "head_out":
        x = x.unflatten(-1, (model.n_heads, model.d_head))
        x = x if site.head is None else x[..., site.head, :]
    picked = select(x)
    return scores_of(model, read_out_site(model, edited=edited), picked) if site.kind == "logits" else picked


def site_module(model: Model, site: Site, *, edited: bool) -> tuple[nn.Module, str, Call | None]:
    """The module to watch for a site, "input" or "output", and which of its calls where it runs more than once; for
    logits what they are read off."""
    if site.kind == "logits":
        site = read_out_site(model, edited=edited)
        if site.kind == "logits":
            return model.hf, "output", None
    return *model.module(site), model.anatomy.call(site)


@contextlib.contextmanager
def recording(
    model: Model, wanted: Sequence[Site], batch: Batch, select: Keep, keep: Keep
) -> Iterator[dict[Site, torch.Tensor]]:
    """While open, one forward pass of this thread leaves the selected activations in the yielded dict and is ended
    after the last of them (where a module runs more than once, it runs whole, so that its calls are counted).

    Raises RunFailed for a site that the pass did not come to."""
    seen: dict[Site, torch.Tensor] = {}
    edited = hooked(model.final_norm)

    def note(site: Site, x: torch.Tensor) -> None:
        seen[site] = keep(site_values(model, site, x, select, edited=edited))

    with reading(model, wanted, batch, note):
        yield seen


@contextlib.contextmanager
def reading(
    model: Model, wanted: Sequence[Site], batch: Batch, note: Callable[[Site, torch.Tensor], None]
) -> Iterator[None]:
    """While open, one forward pass of this thread gives `note(site, x)` what the module of each site read or gave,
    [B, T, …] in the order of the pass, and is ended after the last of them (where a module runs more than once, it runs
    whole, so that its calls are counted). What is kept of `x` has to be a copy: some blocks go on to add in place.

    Raises RunFailed for a site that the pass did not come to."""
    seen: set[Site] = set()
    edited = hooked(model.final_norm)
    by_module: dict[tuple[nn.Module, str, Call | None], list[Site]] = {}
    for site in wanted:
        by_module.setdefault(site_module(model, site, edited=edited), []).append(site)

    several = any(call is not None for _, _, call in by_module)

    def told(sites: list[Site], x: torch.Tensor) -> None:
        x = x.unflatten(0, tuple(batch.ids.shape)) if x.ndim == 2 else x  # some blocks flatten tokens
        for site in sites:
            note(site, x)
            seen.add(site)
        if len(seen) == len(wanted) and not several:
            raise _Enough

    with contextlib.ExitStack() as stack:
        for (module, side, call), sites in by_module.items():
            if side == "input":
                handle = before(
                    module, lambda _m, args, kwargs, s=sites: told(s, hidden_argument(args, kwargs)), call=call
                )
            else:
                handle = after(module, lambda _m, _args, output, s=sites: told(s, first_tensor(output)), call=call)
            stack.callback(handle.remove)
        with contextlib.suppress(_Enough):
            yield
    if missed := [site for site in wanted if site not in seen]:
        raise RunFailed(f"A pass of {model.name} did not come to {missed[0]}, which it did when the model was loaded.")


@contextlib.contextmanager
def ended_by(model: Model, site: Site) -> Iterator[list[torch.Tensor]]:
    """While open, a forward pass of this thread leaves what the module of an output site gives in the yielded list and
    ends there: the unembedding of every position is not needed."""
    states: list[torch.Tensor] = []

    def stop(_module, _args, output):
        states.append(first_tensor(output))
        raise _Enough

    module, _, call = site_module(model, site, edited=False)
    handle = after(module, stop, call=call)
    try:
        with contextlib.suppress(_Enough):
            yield states
    finally:
        handle.remove()


@contextlib.contextmanager
def last_mlp_narrowed(model: Model, wanted: Sequence[Site], batch: Batch) -> Iterator[None]:
    """While open, the last MLP runs on each prompt's last token alone, the only one whose result is read: MLPs work
    token by token.

    Not where something of that MLP is wanted or hooked, where it runs more than once in a pass or does more than add
    to the stream, and not in blocks that read and write it through different modules."""
    block = model.anatomy.blocks[-1]
    mlp = block.mlp_in
    inside = any(site_module(model, site, edited=False)[0] in set(mlp.modules()) for site in wanted)
    # other calls of it read every token; and one that does more than add to the stream may read more than its input
    apart = model.anatomy.not_once(mlp) is not None or model.facts.why_not("stream_adds_up", [model.n_layers - 1])
    if inside or apart or mlp is not block.mlp_out or any(hooked(module) for module in mlp.modules()):
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
