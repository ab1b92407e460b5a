"""Steering: a direction added to a site (activation addition), in some tokens or all."""

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
class Steer:
    """Add `strength` times `direction` [d] at a site. The direction is taken as it is, not brought to length 1.
    `positions`: the same of every prompt, or as many tuples as there are prompts; None: every token."""

    site: Site
    direction: torch.Tensor
    strength: float = 1.0
    positions: tuple[int, ...] | tuple[tuple[int, ...], ...] | None = None

    def check(self, model: Model, prompts: Prompts | None = None) -> None:
        """Raise InputError for a site, a direction, a strength or positions that do not fit the model or prompts."""
        if self.site.kind == "logits":
            raise InputError("Logits are a result; steer final_norm or an earlier site instead.")
        model.module(self.site)
        if self.site.kind == "head_out" and self.site.head is None:
            raise InputError(f"A direction is added to one head: {self.site}.0, {self.site}.1, …")
        width, shape = model.site_size(self.site), tuple(self.direction.shape)
        if shape != (width,):
            raise InputError(
                f"The direction to add at {self.site} has the shape {' × '.join(map(str, shape))}, and the site holds "
                f"{width} numbers."
            )
        if not self._finite:
            raise InputError(f"The direction to add at {self.site}, or its strength, is not finite.")
        check_positions(self.positions, prompts)

    def for_prompts(self, indices: Sequence[int]) -> Steer:
        """The same for the prompts `indices` alone."""
        own = positions_by_prompt(self.positions)
        return self if own is None else replace(self, positions=tuple(own[i] for i in indices))

    def hang(self, model: Model, stack: contextlib.ExitStack) -> None:
        """Hang it on the passes of this thread until `stack` is closed."""
        columns = Columns(self.positions)
        at_site(model, self.site, lambda x: columns.changed(x, self._steered(x)), stack)

    @cached_property
    def _resident(self) -> Resident:
        return Resident(self.direction)

    @cached_property
    def _finite(self) -> bool:
        return bool(torch.isfinite(self.direction).all()) and math.isfinite(self.strength)

    def _steered(self, x: torch.Tensor) -> torch.Tensor:
        # in float32: in bfloat16 a product that is rounded first moves the state by something else
        added = self.strength * self._resident.on(x.device, torch.float32)
        return (x.float() + added).to(x.dtype)
