"""The dual run: what heads say in a first run is added, scaled, to what they say in a second.

JuICE (Li, Chen, Tong 2025, arXiv 2503.10996, "just run twice"; settings from the authors' code): the first run is the
plain model. In the second, β times the first run's output of each head is added to that head's own output, at every
position; what earlier additions change in a later head's output is not scaled with it, which is how this differs from
`HeadScale`. Two lists of heads are used: those with a positive effect (β > 0) and those with a negative one (β < 0).
While a text is generated both runs read it anew, token by token.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from workbench.core.errors import InputError
from workbench.engine.edit_sites import Prompts, at_site
from workbench.models.batching import Batch
from workbench.models.host_copies import arriving
from workbench.models.model import Model
from workbench.models.running_pass import PassPositions, positions
from workbench.models.sites import Site


@dataclass(frozen=True, eq=False)
class DualRun:
    """Add `scale` times what each head says in a run of its own to its output, at every position: one number for all
    heads, or one each (positive for one list, negative for the other).

    The first run is of the model without any edit. It reads the whole text at every step of a generation, whatever is
    cached. Path patching, which runs blocks alone, refuses it."""

    heads: tuple[tuple[int, int], ...]
    scale: float | tuple[float, ...] = 1.0

    def check(self, model: Model, prompts: Prompts | None = None) -> None:
        """Raise InputError for heads or scales that do not fit the model."""
        model.check_heads(self.heads)
        if not self.heads or len(set(self.heads)) < len(self.heads):
            raise InputError("A dual run needs heads, each named once, with one scale.")
        if not isinstance(self.scale, int | float) and len(self.scale) != len(self.heads):
            raise InputError(f"There are {len(self.scale)} scales for {len(self.heads)} heads; give one each, or one.")
        wrong = next((scale for scale in self._scales() if not math.isfinite(scale)), None)
        if wrong is not None:
            raise InputError(f"What a head says cannot be added {wrong} times; give a finite number.")
        layers = sorted({layer for layer, _ in self.heads})
        model.require("heads_apart", "blocks_run_once", for_what="a dual run", layers=layers)

    def for_prompts(self, indices: Sequence[int]) -> DualRun:
        """Itself: it is the same for every prompt."""
        return self

    def hang(self, model: Model, stack: contextlib.ExitStack) -> None:
        """Hang it on the passes of this thread until `stack` is closed."""
        layers = sorted({layer for layer, _ in self.heads})
        own: dict[int, dict[int, float]] = {layer: {} for layer in layers}  # of each layer the heads and their scales
        for (layer, head), scale in zip(self.heads, self._scales()):
            if scale:
                own[layer][head] = scale
        known: list[tuple[PassPositions, dict[int, torch.Tensor]]] = []  # the pass at hand, and its first run

        def first(layer: int) -> torch.Tensor:
            here = positions()
            if not known or known[0][0] is not here:
                if here.whole is None:
                    raise InputError(
                        "A dual run needs whole passes; path patching and what else runs blocks alone has none."
                    )
                known[:] = [(here, _first_run(model, here.whole, layers))]
            return known[0][1][layer]

        for layer in layers:
            at_site(model, Site("head_out", layer), lambda x, a=layer: _added(x, first(a), own[a]), stack)

    def _scales(self) -> list[float]:
        scales = (self.scale,) * len(self.heads) if isinstance(self.scale, int | float) else self.scale
        return [float(scale) for scale in scales]


def _added(x: torch.Tensor, first: torch.Tensor, scales: dict[int, float]) -> torch.Tensor:
    """x [B, T, H, d_head] with the last T columns of the first run's [B, S, H, d_head] added, scaled by head."""
    if not scales:
        return x
    chosen = arriving(torch.tensor(list(scales)), x.device)
    scale = arriving(torch.tensor(list(scales.values()), dtype=x.dtype), x.device)
    new = x.clone()
    more = first[:, first.shape[1] - x.shape[1] :].to(x.device)[:, :, chosen]
    new[:, :, chosen] = x[:, :, chosen] + scale[:, None] * more
    return new


class _AllSeen(Exception):
    """Raised once the last of the layers is seen: what follows is not needed."""


def _first_run(model: Model, batch: Batch, layers: Sequence[int]) -> dict[int, torch.Tensor]:
    """Head outputs [B, T, H, d_head] of the plain model in these layers. It runs in a thread of its own, where nothing
    that hangs on the pass in progress acts."""
    seen: dict[int, torch.Tensor] = {}
    failed: list[BaseException] = []

    def keep(layer: int, x: torch.Tensor) -> torch.Tensor:
        seen[layer] = x.detach().clone()
        if layer == layers[-1]:
            raise _AllSeen
        return x

    def work() -> None:
        try:
            with torch.no_grad(), contextlib.ExitStack() as stack, contextlib.suppress(_AllSeen):
                for layer in layers:
                    at_site(model, Site("head_out", layer), lambda x, a=layer: keep(a, x), stack)
                model.forward(batch)
        except BaseException as error:  # raised again in the thread that waits
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return seen
