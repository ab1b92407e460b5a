"""The tables of what `also` asks for, one row per layer of a checkpoint; empty where it is not asked for."""

from __future__ import annotations

from dataclasses import asdict

import polars as pl

from probes.representation_geometry.features import Checkpoint
from probes.representation_geometry.held_states import HeldStates, held_states
from probes.representation_geometry.intrinsic_dimension import intrinsic_dimension

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


def shape_tables(checkpoint: Checkpoint) -> dict[str, pl.DataFrame]:
    """`dimension` of a checkpoint."""
    also = checkpoint.config.also
    held = held_states(checkpoint) if also else None
    rows = [] if held is None or "dimension" not in also else _dimension(checkpoint, held)
    return {"dimension": pl.DataFrame(rows, schema=DIMENSION)}


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
