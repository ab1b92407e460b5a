"""Where edits hang, and at which positions: hooks on a site of a model, masks of the positions in the pass at hand."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import torch

from workbench.core.errors import InputError
from workbench.models.call_tape import hidden_argument
from workbench.models.model import Model
from workbench.models.running_pass import after, before, positions
from workbench.models.sites import Site

Prompts = Sequence[range]  # of each prompt the positions it has, from minus its length on; generated ones included


def check_positions(wanted: Sequence | None, prompts: Prompts | None) -> None:
    """Raise InputError for positions, the same of every prompt or a tuple for each, that a prompt does not have."""
    own = positions_by_prompt(wanted)
    if own is None:
        _check_positions(wanted, prompts)
    elif prompts is not None:
        if len(own) != len(prompts):
            raise InputError(f"Positions to edit are given for {len(own)} prompts, but there are {len(prompts)}.")
        for row, (several, valid) in enumerate(zip(own, prompts)):
            _check_positions(several, [valid], first=row)


def positions_by_prompt(wanted: Sequence | None) -> tuple[tuple[int, ...], ...] | None:
    """The positions of each prompt, where these differ by prompt; else None."""
    return tuple(wanted) if wanted and isinstance(wanted[0], Sequence) else None


def _check_positions(wanted: Sequence | None, prompts: Prompts | None, first: int = 0) -> None:
    """Raise InputError for a position that one of the prompts (numbered after `first`) does not have."""
    for position in wanted or ():
        for row, valid in enumerate(prompts or ()):
            if position not in valid:
                raise InputError(
                    f"Position {position} to edit is not among the {-valid.start} tokens of prompt {first + row + 1}."
                )


def columns_at(wanted: Sequence | None, x: torch.Tensor) -> torch.Tensor:
    """Mask [B, T] of the columns at the positions (one tuple for all rows of the batch, or one each); everywhere for
    None. Positions before or after this pass are not in it."""
    if wanted is None:
        return torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    if (own := positions_by_prompt(wanted)) is not None:
        longest = max(map(len, own))
        wanted = tuple(row + row[-1:] * (longest - len(row)) for row in own)  # a position twice is there once
    return positions().at(positions().absolute(torch.tensor(wanted))).to(x.device)


def at_site(
    model: Model, site: Site, change: Callable[[torch.Tensor], torch.Tensor], stack: contextlib.ExitStack
) -> None:
    """Hang `change([B, T, …]) → same shape` on a site until `stack` is closed; heads of head_out come apart as
    [B, T, H, d_head]. Raises InputError for logits, and for a site that the model does not have."""
    if site.kind == "logits":
        raise InputError("Logits are a result; edit final_norm or an earlier site instead.")
    if site.kind == "resid_mid":
        _between(model, site, change, stack)
        return
    module, side = model.module(site)

    def through(x: torch.Tensor) -> torch.Tensor:
        shape = x.shape
        if x.ndim == 2:
            x = x.unflatten(0, tuple(positions().position_ids.shape))
        if site.kind == "head_out":
            x = x.unflatten(-1, (model.n_heads, model.d_head))
            if site.head is not None:
                new = x.clone()
                new[..., site.head, :] = change(x[..., site.head, :])
                return new.reshape(shape)
        return change(x).reshape(shape)

    def entering(_module, args, kwargs):
        old = hidden_argument(args, kwargs)
        x = through(old)
        if args and args[0] is old:
            return (x, *args[1:]), kwargs
        return args, kwargs | {next(k for k, v in kwargs.items() if v is old): x}

    def leaving(_module, _args, output):
        return through(output) if isinstance(output, torch.Tensor) else (through(output[0]), *output[1:])

    call = model.anatomy.call(site)
    handle = before(module, entering, call=call) if side == "input" else after(module, leaving, call=call)
    stack.callback(handle.remove)


def _between(model: Model, site: Site, change: Callable, stack: contextlib.ExitStack) -> None:
    """Edit resid_mid. The module that is handed it reads a copy: the stream itself goes on around it. So what attention
    adds is changed until the sum is the one wanted, and both the MLP and the stream get it."""
    model.module(site)  # refuses blocks that have none
    assert site.layer is not None  # every resid_mid has one
    block, _ = model.module(Site("resid_pre", site.layer))
    writer, _ = model.module(Site("attn_out", site.layer))
    entered: list[torch.Tensor] = []

    def enter(_module, args, kwargs):
        entered[:] = [hidden_argument(args, kwargs)]

    def leave(_module, _args, output):
        added = output if isinstance(output, torch.Tensor) else output[0]
        old = entered[0].to(added.device)
        new = (change(old + added.reshape(old.shape)) - old).reshape(added.shape)
        return new if isinstance(output, torch.Tensor) else (new, *output[1:])

    stack.callback(before(block, enter).remove)
    stack.callback(after(writer, leave).remove)
