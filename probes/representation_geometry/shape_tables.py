"""The tables of what `also` asks for, by layer of a checkpoint or by pair; empty where it is not asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import combinations

import numpy as np
import polars as pl
import torch

from probes.representation_geometry.config import Config
from probes.representation_geometry.cosines import mean_cosine
from probes.representation_geometry.curvature_table import curvature_table
from probes.representation_geometry.features import Checkpoint
from probes.representation_geometry.held_states import HeldStates, held_states
from probes.representation_geometry.intrinsic_dimension import intrinsic_dimension
from probes.representation_geometry.similarity import similarities
from workbench.core.context import Context

WHERE = {"checkpoint": pl.String, "step": pl.Int64, "layer": pl.Int64, "site": pl.String}
ESTIMATES = tuple(
    f"{name}{end}"
    for name in ("two_nn", "mle")
    for end in ("", "_low", "_high", "_half", "_null", "_null_low", "_null_high")
)
DIMENSION = (
    WHERE
    | dict.fromkeys(ESTIMATES, pl.Float64)
    | {"k": pl.Int64, "n": pl.Int64, "duplicates": pl.Int64, "d": pl.Int64, "missing": pl.String}
)
SIMILARITY = (
    {"checkpoint_a": pl.String, "checkpoint_b": pl.String, "step_a": pl.Int64, "step_b": pl.Int64}
    | {"layer_a": pl.Int64, "layer_b": pl.Int64}
    | dict.fromkeys(("value", "low", "high", "null", "null_low", "null_high"), pl.Float64)
    | {"n": pl.Int64}
)
COSINE = (
    WHERE
    | {
        f"{name}{end}": pl.Float64
        for name in ("cosine", "centred")
        for end in ("", "_low", "_high", "_null", "_null_low", "_null_high")
    }
    | {"n": pl.Int64}
)
STATES = "states"  # of a checkpoint's part: those of its last layer [n, d] float32; in no table of the run
Place = tuple[str, int | None, int]  # checkpoint, step, layer


def shape_tables(checkpoint: Checkpoint) -> dict[str, pl.DataFrame | np.ndarray]:
    """`dimension`, `similarity`, `cosine` and `curvature` of a checkpoint; where checkpoints are compared, its `states`
    too."""
    also, config = checkpoint.config.also, checkpoint.config
    held = held_states(checkpoint) if {*also} - {"curvature"} else None
    rows = [] if held is None or "dimension" not in also else _dimension(checkpoint, held)
    out: dict[str, pl.DataFrame | np.ndarray] = {"dimension": pl.DataFrame(rows, schema=DIMENSION)}
    cosines = [] if held is None or "cosine" not in also else _cosines(checkpoint, held)
    out |= {"cosine": pl.DataFrame(cosines, schema=COSINE), "curvature": curvature_table(checkpoint)}
    places: list[tuple[Place, torch.Tensor]] = []
    if held is not None and "similarity" in also:
        places = [((checkpoint.name, checkpoint.step, layer), x) for layer, x in held.layers.items()]
        if config.checkpoints:
            out[STATES] = places[-1][1].float().cpu().numpy()
    return out | {"similarity": similarity_table(places, config, checkpoint.context)}


def similarity_table(places: Sequence[tuple[Place, torch.Tensor]], config: Config, context: Context) -> pl.DataFrame:
    """A row for every pair of places, the later one second."""
    pairs = list(combinations(range(len(places)), 2))
    found = similarities(
        [x for _, x in places], pairs, draws=config.random_draws, rng=context.rng("similarity"), check=context.check
    )
    rows = []
    for (a, b), alike in zip(pairs, found):
        row: dict[str, object] = asdict(alike) | {"n": len(places[a][1])}
        for end, number in (("a", a), ("b", b)):
            row |= dict(zip((f"checkpoint_{end}", f"step_{end}", f"layer_{end}"), places[number][0]))
        rows.append(row)
    return pl.DataFrame(rows, schema=SIMILARITY).fill_nan(None)


def _cosines(checkpoint: Checkpoint, held: HeldStates) -> list[dict]:
    rows = []
    for layer, x in held.layers.items():
        checkpoint.context.check()
        row = checkpoint.where | {"layer": layer, "site": str(checkpoint.layers()[layer]), "n": held.n}
        for name in ("cosine", "centred"):
            rng = checkpoint.context.rng(f"{name} of layer {layer}")
            found = asdict(mean_cosine(x, centred=name == "centred", rng=rng))
            row |= {name if field == "value" else f"{name}_{field}": value for field, value in found.items()}
        rows.append(row)
    return rows


def _dimension(checkpoint: Checkpoint, held: HeldStates) -> list[dict]:
    config, context, sites = checkpoint.config, checkpoint.context, checkpoint.layers()
    names = [tuple(checkpoint.texts.ids[text]) for text in held.chosen]
    rows = []
    for layer, x in held.layers.items():
        context.check()
        found = intrinsic_dimension(
            x, names, k=config.neighbours, draws=config.random_draws, rng=context.rng(f"dimension of layer {layer}")
        )
        row = checkpoint.where | {"layer": layer, "site": str(sites[layer]), "k": config.neighbours, "n": found.n}
        for name, told in (("two_nn", found.two_nn), ("mle", found.mle)):
            row |= {name if field == "value" else f"{name}_{field}": value for field, value in asdict(told).items()}
        rows.append(row | {"duplicates": found.duplicates, "d": x.shape[1], "missing": found.reason})
        if found.reason and layer == checkpoint.model.n_layers - 1:
            context.warn(f"There is no intrinsic dimension of {checkpoint.name}: {found.reason}.")
    return rows
