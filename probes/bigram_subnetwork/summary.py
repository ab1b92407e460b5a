"""What a run of the bigram subnetwork says in a few numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from probes.bigram_subnetwork.mask_tables import shares_of_parts


def summary_of(tables: Mapping[str, pl.DataFrame]) -> dict[str, Any]:
    """The subnetwork's correlation with the bigrams beside the baselines, its size, where it is, what ablating it does.
    n counts texts."""
    by_kind = {row["model"]: row for row in tables["evaluation"].iter_rows(named=True)}
    own = by_kind["subnetwork"]
    out: dict[str, Any] = {"correlation with bigrams": _estimate(own)}
    names = {"full": "full model", "random": "random masks", "complement": "complement", "unigram": "token frequency"}
    for kind, name in names.items():
        out[f"correlation, {name}"] = _estimate(by_kind[kind])
    contrasts = {row["contrast"]: row for row in tables["contrasts"].iter_rows(named=True)}
    out["above the full model"] = _contrast(contrasts["subnetwork - full"])
    out["above random masks"] = _contrast(contrasts["subnetwork - random"])
    out["surprisal added by ablating it, above random sets"] = _contrast(contrasts["complement - random complement"])
    parameters = tables["parameters"]
    total = int(parameters["total"].sum())
    out["active weights"], out["share of weights"] = own["active"], own["active"] / total
    out |= {f"share of it in {part}": share for part, share in shares_of_parts(parameters).items()}
    out["tokens judged"], out["tokens without a bigram"] = own["tokens"], own["infinite"]
    if tables["search"].height:
        out["steps"], out["settled"] = int(tables["search"]["step"][-1]), bool(tables["search"]["settled"][-1])
    return out


def _estimate(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"value": row["correlation"], "low": row["ci_low"], "high": row["ci_high"], "n": row["n"]}


def _contrast(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"value": row["value"], "low": row["ci_low"], "high": row["ci_high"], "n": row["n"]}
