"""Windows of layers switched off at the last position: what attention or MLPs add there is set to zero, or attention
from there to some positions is cut.

Such a window is a job of `last_token_replay`: a copy of a prompt that joins the rows at the window's first layer, as
nothing below it changes. All windows of all kinds travel together.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from workbench.core.errors import InputError
from workbench.engine.edit_sites import at_site
from workbench.engine.edits import Edit, KnockOut, Patch
from workbench.models.attention_edits import knock_out
from workbench.models.batching import sent
from workbench.models.model import Model
from workbench.models.sites import Site, sites

WRITERS = ("attn_out", "mlp_out")  # what can be set to zero
CUT = "cut"  # what cannot be seen


@dataclass(eq=False)
class Window:
    """`size` layers from `layer` on, switched off at the last position of each of P prompts: `what` is "attn_out" or
    "mlp_out" (set to zero), or "cut": attention to the positions `sources`, one tuple per prompt, of all heads."""

    layer: int
    size: int
    what: str
    sources: Sequence[Sequence[int]] = ()

    def edits(self, model: Model) -> list[Edit]:
        """The same as edits of whole passes over these prompts."""
        layers = range(self.layer, self.layer + self.size)
        if self.what == CUT:
            return [KnockOut(tuple(layers), tuple(map(tuple, self.sources)))]
        return [Patch(site, torch.zeros(model.width), (-1,)) for site in sites(self.what, layers)]


class Windows:
    """What is switched off in which layer for the rows of a replay: `before` rows of which nothing is, then P rows for
    each job, in order; jobs of other kinds have no windows."""

    def __init__(self, jobs: Sequence[object], prompts: int, device: torch.device):
        kinds = [*WRITERS, CUT]
        rows = [(-1, -1, -1)] * prompts
        sources: list[Sequence[int]] = [()] * prompts
        for job in jobs:
            if isinstance(job, Window):
                if job.what not in kinds:
                    raise InputError(f"'{job.what}' cannot be switched off; choose {', '.join(kinds)}.")
                rows += [(job.layer, job.layer + job.size, kinds.index(job.what))] * prompts
                sources += list(job.sources) or [()] * prompts
            else:
                rows += [(-1, -1, -1)] * prompts
                sources += [()] * prompts
        self.kinds = [kind for k, kind in enumerate(kinds) if any(row[2] == k for row in rows)]
        width = max(1, max(map(len, sources)))
        (whole,) = sent(
            [torch.tensor([(*row, *cut, *[-1] * (width - len(cut))) for row, cut in zip(rows, sources)])], device
        )
        self.first, self.end, self.kind, self.sources = whole[:, 0], whole[:, 1], whole[:, 2], whole[:, 3:]
        self.number = {kind: kinds.index(kind) for kind in self.kinds}
        spans = {(kind, row[0], row[1]) for kind in self.kinds for row in rows if row[2] == self.number[kind]}
        self.layers = {kind: {n for what, a, b in spans if what == kind for n in range(a, b)} for kind in self.kinds}

    def hang(self, model: Model, layer: int, rows: int, stack: contextlib.ExitStack) -> None:
        """Switch off, until `stack` is closed, what is off in this layer for the first `rows` rows [R, 1]."""
        here = (self.first[:rows] <= layer) & (layer < self.end[:rows])
        for kind in self.kinds:
            if layer not in self.layers[kind]:
                continue
            off = here & (self.kind[:rows] == self.number[kind])
            if kind == CUT:
                cut = self.sources[:rows].masked_fill(~off[:, None], -1)
                stack.enter_context(knock_out(model, layer, queries="last", sources=cut))
            else:
                at_site(model, Site(kind, layer), lambda x, off=off: _zeroed(x, off), stack)


def _zeroed(x: torch.Tensor, off: torch.Tensor) -> torch.Tensor:
    """x [R, 1, width] with zeros in the rows that are off [R]."""
    return x.masked_fill(off.to(x.device)[:, None, None], 0)
