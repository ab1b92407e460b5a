"""Where edits hang, and at which positions: hooks on a site of a model, masks of the positions in the pass at hand."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch

from workbench.core.errors import InputError
from workbench.models.call_tape import hidden_argument
from workbench.models.host_copies import Resident
from workbench.models.model import Model
from workbench.models.running_pass import PassPositions, after, before, positions
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


class Columns:
    """Where the positions that are edited are in the pass at hand: found once for every pass and device.

    `wanted`: one tuple for all rows of the batch, or one each; None: everywhere."""

    def __init__(self, wanted: Sequence | None):
        self.everywhere = wanted is None
        own = positions_by_prompt(wanted)
        if own is not None:
            longest = max(map(len, own))
            wanted = tuple(row + row[-1:] * (longest - len(row)) for row in own)  # a position twice is there once
        self._each = own is not None
        self._named: tuple[Any, ...] = () if wanted is None else tuple(wanted)
        self._wanted = Resident(torch.tensor(self._named, dtype=torch.long))
        self._pass: PassPositions | None = None
        self._masks: dict[torch.device, torch.Tensor] = {}
        self._places: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}

    def _here(self) -> tuple[PassPositions, torch.Tensor]:
        """The pass at hand, and the positions on its device."""
        here = positions()
        if here is not self._pass:
            self._pass, self._masks, self._places = here, {}, {}
        return here, self._wanted.on(here.position_ids.device)

    def _check(self, here: PassPositions) -> None:
        """Raise InputError for a negative position before the first token, as far as the host knows the lengths."""
        for row, size in enumerate(here.whole.sizes if here.whole is not None else ()):
            for position in self._named[row] if self._each else self._named:
                if position + size < 0:
                    raise InputError(f"Position {position} is not among the tokens of sequence {row} in this pass.")

    def changed(self, x: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """`x` [B, T, …] with `new` of the same shape at these positions. Those before or after this pass are not in
        it."""
        if self.everywhere:
            return new
        here, wanted = self._here()
        if x.device not in self._masks:
            self._masks[x.device] = here.at(here.absolute(wanted)).to(x.device)
        mask = self._masks[x.device]
        return torch.where(mask.reshape(*mask.shape, *[1] * (x.ndim - 2)), new, x)

    def put(self, x: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """`x` [B, T, …] with `values` [R, …], or [B, R, …] with a block for each row, at the R positions; where one is
        named twice, its last value."""
        if self.everywhere:
            return values.expand_as(x).clone()  # some blocks go on to add in place
        here, wanted = self._here()
        if x.device not in self._places:
            self._check(here)
            match = here.position_ids[:, None] == here.absolute(wanted)[:, :, None]  # [B, R, T]
            last = wanted.shape[-1] - 1 - match.flip(1).to(torch.uint8).argmax(1)
            self._places[x.device] = last.to(x.device), (match.any(1) & here.mask).to(x.device)
        which, there = self._places[x.device]
        values = values.expand(len(x), wanted.shape[-1], *x.shape[2:])
        if values.shape[1] > 1:
            values = values[torch.arange(len(x), device=x.device)[:, None], which]
        return torch.where(there.reshape(*there.shape, *[1] * (x.ndim - 2)), values, x)


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
