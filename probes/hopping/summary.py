"""What a person would quote of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from probes.hopping.asking import FedQuestion
from probes.hopping.config import SPLITS
from probes.hopping.labels import LEFT_OUT
from probes.hopping.layer_stages import PAPER
from workbench.stats.clusters import cluster_share

LABELS = {
    "hop1": "first_hop_known",
    "hop2": "second_hop_known",
    "two_hop": "composition_answered",
    "shortcut": "shortcut_taken",
    "says_bridge": "composition_names_bridge",
}


def summary_of(
    items: pl.DataFrame, asked: Sequence[FedQuestion], stages: pl.DataFrame, oracle: pl.DataFrame, best: pl.DataFrame
) -> dict[str, Any]:
    """What the model answers, the layers of the paper's four stages, and what back-patching solves."""
    names = pl.Series([one.question.cluster for one in asked])
    found: dict[str, Any] = {"questions": items.height, "bridges": names.n_unique()}
    for column, name in LABELS.items():
        there = items[column].is_not_null()
        if there.any():
            values = items[column].filter(there).cast(pl.Float64).to_numpy()
            found[name] = _ends(cluster_share(values, names.filter(there).to_numpy()).as_dict())
    for split in (*SPLITS, LEFT_OUT):
        found[f"questions_{split.replace(' ', '_')}"] = items.filter(split=split).height
    for row in stages.filter(pl.col("stage").is_in(list(PAPER))).iter_rows(named=True):
        if row["layer"] is not None:
            found[f"{row['stage']}_layer_{row['split']}"] = {
                "value": row["layer"], "low": row["ci_low"], "high": row["ci_high"], "n": row["n"],
            } | {"share_reached": row["reached"]}  # fmt: skip
    for row in oracle.iter_rows(named=True):
        what = "solved" if row["split"] == "incorrect" else "preserved"
        found |= _beside(row, f"{what}_by_any_pair_{row['position']}")
    for row in best.iter_rows(named=True):
        name = f"solved_by_chosen_pair_{row['position']}"
        found |= _beside(row, name) | {f"chosen_pair_{row['position']}": f"{row['source_layer']}→{row['target_layer']}"}
    return found


def _beside(row: dict[str, Any], name: str) -> dict[str, Any]:
    """A share and that of the control, by name."""
    parts = {name: "solved", f"{name}_random_donor": "control", f"{name}_minus_random_donor": "difference"}
    return {
        key: {"value": row[part], "low": row[f"{part}_low"], "high": row[f"{part}_high"], "n": row["n"]}
        | {"rows": row["rows"]}
        for key, part in parts.items()
        if row[part] is not None
    }


def _ends(found: dict[str, Any]) -> dict[str, Any]:
    return {key: None if value != value else value for key, value in found.items()}
