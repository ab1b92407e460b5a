"""Scaling one component of a head: the coordinate of its output along a direction that it writes.

With z what a head mixed before its output projection, the coordinate along a component's write direction is z · read,
and adding c · put to z moves that coordinate by c and no other component's (`workbench.engine.composition.Components`).
A scale of 0 with what the coordinate is where the stream is zero as `about` is the weight edit W_OV − s u vᵀ; with its
mean over texts as `about` it is a mean ablation of the coordinate.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
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
    """Bring the coordinate c of a head's output along a component to about + scale · (c − about): 0 removes it, 1
    changes nothing, −1 turns it around. `read` and `put` [d_head]: c = z · read, and c grows by 1 where
    `put` is added to z. `positions`: the same of every prompt, or as many tuples as there are prompts; None: every
    token."""

    head: tuple[int, int]
    read: torch.Tensor
    put: torch.Tensor
    scale: float = 0.0
    about: float = 0.0
    positions: tuple[int, ...] | tuple[tuple[int, ...], ...] | None = None

    def check(self, model: Model, prompts: Prompts | None = None) -> None:
        """Raise InputError for a head, directions, numbers or positions that do not fit the model or prompts."""
        model.check_heads([self.head])
        model.require("heads_apart", for_what="scaling a component of a head", layers=[self.head[0]])
        for name in ("read", "put"):
            shape = tuple(getattr(self, name).shape)
            if shape != (model.d_head,):
                raise InputError(
                    f"'{name}' of the component of head {self.head[0]}.{self.head[1]} has the shape "
                    f"{' × '.join(map(str, shape))}, and a head of {model.name} holds {model.d_head} numbers."
                )
        if not self._finite:
            raise InputError(f"The component of head {self.head[0]}.{self.head[1]}, or its scale, is not finite.")
        check_positions(self.positions, prompts)

    def for_prompts(self, indices: Sequence[int]) -> ComponentScale:
        """The same for the prompts `indices` alone."""
        own = positions_by_prompt(self.positions)
        return self if own is None else replace(self, positions=tuple(own[i] for i in indices))

    def hang(self, model: Model, stack: contextlib.ExitStack) -> None:
        """Hang it on the passes of this thread until `stack` is closed."""
        columns = Columns(self.positions)
        at_site(model, Site("head_out", *self.head), lambda z: columns.changed(z, self._scaled(z)), stack)

    @cached_property
    def _finite(self) -> bool:
        numbers = math.isfinite(self.scale) and math.isfinite(self.about)
        return numbers and bool(torch.isfinite(self.read).all()) and bool(torch.isfinite(self.put).all())

    @cached_property
    def _sides(self) -> tuple[Resident, Resident]:
        return Resident(self.read), Resident(self.put)

    def _scaled(self, z: torch.Tensor) -> torch.Tensor:
        """z [B, T, d_head], computed in float32."""
        read, put = (side.on(z.device, torch.float32) for side in self._sides)
        moved = (self.scale - 1) * (z.float() @ read - self.about)
        return (z.float() + moved[..., None] * put).to(z.dtype)
