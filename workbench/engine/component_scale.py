"""Scaling components of heads: the coordinate of its output along a direction that it writes.

With z what a head mixed before its output projection, the coordinate along a component's write direction is z · read,
and adding c · put to z moves that coordinate by c and no other component's (`workbench.engine.composition.Components`).
A scale of 0 with what the coordinate is where the stream is zero as `about` is the weight edit W_OV − s u vᵀ; with its
mean over texts as `about` it is a mean ablation of the coordinate.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from workbench.core.errors import InputError
from workbench.engine.edit_sites import Columns, Prompts, at_site, check_positions, positions_by_prompt
from workbench.models.host_copies import Resident
from workbench.models.model import Model
from workbench.models.sites import Site


@dataclass(frozen=True, eq=False)
class ComponentScale:
    """Bring the coordinate c of heads' outputs along components to about + scale · (c − about): 0 removes it, 1 changes
    nothing, −1 turns it around. `heads`: whose component each is (a head may have several); `read` and `put`
    [m, d_head]: c = z · read, and c grows by 1 where `put` is added to z. `scale` and `about`: one number for all, or
    one each. `positions`: the same of every prompt, or as many tuples as there are prompts; None: every token."""

    heads: tuple[tuple[int, int], ...]
    read: torch.Tensor
    put: torch.Tensor
    scale: float | tuple[float, ...] = 0.0
    about: float | tuple[float, ...] = 0.0
    positions: tuple[int, ...] | tuple[tuple[int, ...], ...] | None = None

    def check(self, model: Model, prompts: Prompts | None = None) -> None:
        """Raise InputError for heads, directions, numbers or positions that do not fit the model or prompts."""
        model.check_heads(self.heads)
        layers = sorted({layer for layer, _ in self.heads})
        model.require("heads_apart", for_what="scaling a component of a head", layers=layers)
        wanted = len(self.heads), model.d_head
        for name in ("read", "put"):
            shape = tuple(getattr(self, name).shape)
            if shape != wanted or not self.heads:
                raise InputError(
                    f"'{name}' of {len(self.heads)} components has the shape {' × '.join(map(str, shape))}; of "
                    f"{model.name} it has one row of {model.d_head} numbers for each of at least one component."
                )
        for name in ("scale", "about"):
            found = getattr(self, name)
            if not isinstance(found, int | float) and len(found) != len(self.heads):
                raise InputError(
                    f"There are {len(found)} of '{name}' for {len(self.heads)} components; give one each, or one."
                )
        if not self._finite:
            raise InputError("A component of a head, or its scale, is not finite.")
        check_positions(self.positions, prompts)

    def for_prompts(self, indices: Sequence[int]) -> ComponentScale:
        """The same for the prompts `indices` alone."""
        own = positions_by_prompt(self.positions)
        return self if own is None else replace(self, positions=tuple(own[i] for i in indices))

    def hang(self, model: Model, stack: contextlib.ExitStack) -> None:
        """Hang it on the passes of this thread until `stack` is closed."""
        columns = Columns(self.positions)
        for head in dict.fromkeys(self.heads):
            change = self._of_head(head)
            at_site(model, Site("head_out", *head), lambda z, f=change: columns.changed(z, f(z)), stack)

    @cached_property
    def _finite(self) -> bool:
        numbers = all(map(math.isfinite, (*self._each(self.scale), *self._each(self.about))))
        return numbers and bool(torch.isfinite(self.read).all()) and bool(torch.isfinite(self.put).all())

    def _each(self, value: float | tuple[float, ...]) -> list[float]:
        return [float(value)] * len(self.heads) if isinstance(value, int | float) else [float(v) for v in value]

    def _of_head(self, head: tuple[int, int]) -> Callable[[torch.Tensor], torch.Tensor]:
        """z [B, T, d_head] → the same with the components of one head scaled, computed in float32."""
        own = [i for i, one in enumerate(self.heads) if one == head]
        read, put = Resident(self.read[own].float()), Resident(self.put[own].float())
        gain = Resident(torch.tensor([self._each(self.scale)[i] - 1 for i in own]))
        about = Resident(torch.tensor([self._each(self.about)[i] for i in own]))

        def scaled(z: torch.Tensor) -> torch.Tensor:
            wide = z.float()
            moved = (wide @ read.on(z.device).T - about.on(z.device)) * gain.on(z.device)
            return (wide + moved @ put.on(z.device)).to(z.dtype)

        return scaled
