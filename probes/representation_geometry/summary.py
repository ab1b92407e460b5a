"""What a run of representation geometry says in a few numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from probes.representation_geometry.n_grams import Counted
from probes.representation_geometry.shape_summary import shape_summary


def summary_of(tables: Mapping[str, pl.DataFrame], counted: Counted | None) -> dict[str, Any]:
    """The last layer of the last checkpoint: at infinitely many texts where that is told, at the texts that there are,
    and of white features beside them; losses, and phases over training. n counts texts."""
    layers = tables["layers"]
    last = layers.filter(pl.col("layer") == layers["layer"].max()).row(-1, named=True)
    out: dict[str, Any] = {}
    for name, column in (("RankMe", "rankme"), ("alpha", "alpha")):
        if last[f"{column}_inf"] is not None:
            out[f"{name} (infinitely many texts)"] = _estimate(last, f"{column}_inf")
    if last["inf_missing"]:
        out["at infinitely many texts"] = last["inf_missing"]
    out["RankMe"] = {"value": last["rankme"], "low": last["ci_low"], "high": last["ci_high"], "n": last["n"]}
    out["RankMe of white features"] = last["rankme_null"]
    out["RankMe (singular values)"] = last["rankme_singular"]
    out["alpha"] = _estimate(last, "alpha")
    out["alpha of white features"], out["alpha fit R²"] = last["alpha_null"], last["alpha_r2"]
    out["read at"] = "after the final norm" if last["site"] == "final_norm" else "before the final norm"
    out |= shape_summary(tables)
    loss = tables["checkpoints"].row(-1, named=True)
    if loss["loss"] is not None:
        out["next-token loss"] = _estimate(loss, "loss") | {"n": tables["ablation"]["n"][0]}
    if counted is not None:
        out["agreement with n-grams"] = _estimate(loss, "memorisation") | {"n": tables["ablation"]["n"][0]}
        out["agreement with token frequency"] = loss["memorisation_of_frequency"]
        out["texts left out of their own n-gram counts"] = counted.left_out
    if layers["checkpoint"].n_unique() > 1:
        out["checkpoints"] = layers["checkpoint"].n_unique()
        out["phases"] = _phases(tables["phases"])
    return out


def _estimate(row: Mapping[str, Any], column: str) -> dict[str, Any]:
    return {"value": row[column], "low": row[f"{column}_low"], "high": row[f"{column}_high"], "n": row.get("n")}


def _phases(phases: pl.DataFrame) -> str:
    said = [f"{p['phase']} ({p['start_step']:.0f}–{p['end_step']:.0f})" for p in phases.iter_rows(named=True)]
    return " → ".join(said) or "none found"
