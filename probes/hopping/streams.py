"""The residual stream of questions at the two positions, after every block."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from probes.hopping.asking import FedQuestion
from probes.hopping.config import POSITIONS
from workbench.engine.capture import capture
from workbench.engine.passes import Pass
from workbench.models.model import Model
from workbench.models.sites import sites


def streams(model: Model, asked: Sequence[FedQuestion], run: Pass) -> torch.Tensor:
    """[n, positions, layers, width] float32: the outputs of all blocks at t1 and t2 (t1 as t2 where it is not
    known)."""
    places = [[one.t2 if one.t1 is None else one.t1, one.t2] for one in asked]
    wanted = sites("resid_post", range(model.n_layers))
    acts = capture(model, [one.prompt for one in asked], wanted, positions=places, run=run)
    return torch.stack([acts[site] for site in wanted], 2)


def positions_of(one: FedQuestion, wanted: Sequence[str]) -> list[str]:
    """Those of the wanted positions that a question has."""
    return [name for name in POSITIONS if name in wanted and one.position(name) is not None]
