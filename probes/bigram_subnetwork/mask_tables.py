"""Where the subnetwork is: how many weights of every matrix of every layer it keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl

from probes.bigram_subnetwork.mask_sets import Masks
from workbench.models.block_weights import BlockWeight


def parameter_table(masks: Masks, weights: Sequence[BlockWeight]) -> pl.DataFrame:
    """`parameters`: one row for each role of each layer (queries, keys and values of a fused map apart)."""
    active = sum(int(mask.sum()) for mask in masks.values())
    counts: dict[tuple[int, str], list[int]] = {}
    for own in weights:
        for role in own.roles:
            mine = own.of_role(masks[own.name], role)
            entry = counts.setdefault((own.layer, role), [0, 0])
            entry[0] += int(mine.sum())
            entry[1] += mine.numel()
    rows = [
        {
            "module": role,
            "layer": layer,
            "kept": kept,
            "total": total,
            "share": kept / total,
            "of_subnetwork": kept / active if active else None,
        }
        for (layer, role), (kept, total) in counts.items()
    ]
    return pl.DataFrame(rows, schema_overrides={"of_subnetwork": pl.Float64, "layer": pl.Int64})


def shares_of_parts(parameters: pl.DataFrame) -> Mapping[str, float]:
    """The paper's shares of what is kept: MLP, the first layer's MLP, values and output, queries and keys."""
    kept = max(int(parameters["kept"].sum()), 1)
    role = pl.col("module")
    of = lambda which: int(parameters.filter(which)["kept"].sum()) / kept  # noqa: E731
    mlp = role.str.starts_with("mlp ")
    return {
        "MLP": of(mlp),
        "first MLP": of(mlp & (pl.col("layer") == 0)),
        "values and output": of(role.is_in(["attention v", "attention o"])),
        "queries and keys": of(role.is_in(["attention q", "attention k"])),
    }
