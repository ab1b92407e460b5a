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
        known, nothing = (*WRITERS, CUT), (-1, -1, -1)
        given = [job if isinstance(job, Window) else None for job in jobs]
        for job in given:
            if job is not None and job.what not in known:
                raise InputError(f"'{job.what}' cannot be switched off; choose {', '.join(known)}.")
        self.layers = {
            what: {n for job in given if job and job.what == what for n in range(job.layer, job.layer + job.size)}
            for what in known
        }  # in which something is off: every other layer is left alone
        if not any(self.layers.values()):
            return
        rows, sources = [nothing] * prompts, [()] * prompts
        for job in given:
            rows += [(job.layer, job.layer + job.size, known.index(job.what)) if job else nothing] * prompts
            sources += list(map(tuple, job.sources)) if job and job.sources else [()] * prompts
        width = max(1, max(map(len, sources)))
        padded = [(*row, *cut, *[-1] * (width - len(cut))) for row, cut in zip(rows, sources)]
        (whole,) = sent([torch.tensor(padded)], device)  # one copy for all layers
        self.first, self.end, self.kind, self.sources = whole[:, 0], whole[:, 1], whole[:, 2], whole[:, 3:]

    def hang(self, model: Model, layer: int, rows: int, stack: contextlib.ExitStack) -> None:
        """Switch off, until `stack` is closed, what is off in this layer for the first `rows` rows [R, 1]."""
        for number, what in enumerate(self.layers):
            if layer not in self.layers[what]:
                continue
            off = (self.first[:rows] <= layer) & (layer < self.end[:rows]) & (self.kind[:rows] == number)
            if what == CUT:
                cut = self.sources[:rows].masked_fill(~off[:, None], -1)
                stack.enter_context(knock_out(model, layer, queries="last", sources=cut))
            else:
                at_site(model, Site(what, layer), lambda x, off=off: _zeroed(x, off), stack)


def _zeroed(x: torch.Tensor, off: torch.Tensor) -> torch.Tensor:
    """x [R, 1, width] with zeros in the rows that are off [R]."""
    return x.masked_fill(off.to(x.device)[:, None, None], 0)
