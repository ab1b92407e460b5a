"""What `also` found, in a few numbers: the last layer of the last checkpoint, each beside its null. n counts texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

LEAST = 1.0  # degrees: less is no straightening that is named


def shape_summary(tables: Mapping[str, pl.DataFrame]) -> dict[str, Any]:
    """Nothing of what was not asked for."""
    return (
        _dimension(tables["dimension"])
        | _similarity(tables["similarity"])
        | _cosine(tables["cosine"])
        | _curvature(tables["curvature"])
    )


def _dimension(frame: pl.DataFrame) -> dict[str, Any]:
    """Both estimates in the last layer of the last checkpoint, each beside that of Gaussian states, and whether the two
    are told apart."""
    if frame.is_empty():
        return {}
    last = _last(frame)
    if last["missing"]:
        return {"intrinsic dimension": f"not told: {last['missing']}"}
    out: dict[str, Any] = {}
    for name, column in (("two neighbours", "two_nn"), (f"{last['k']} neighbours", "mle")):
        out[f"intrinsic dimension ({name})"] = _of(last, column)
        beside = _of(last, f"{column}_null")
        out[f"of Gaussian states with the same covariance ({name})"] = beside
        apart = last[f"{column}_low"] is not None and (
            last[f"{column}_high"] < beside["low"] or beside["high"] < last[f"{column}_low"]
        )
        if not apart:
            out[f"structure beyond the covariance ({name})"] = "none that is told apart from Gaussian states"
    return out


def _similarity(frame: pl.DataFrame) -> dict[str, Any]:
    """CKA of the first and the last layer of the last checkpoint, and of the last layer of the first and the last
    checkpoint, each beside that of texts in another order."""
    same = pl.col("checkpoint_a") == pl.col("checkpoint_b")
    out: dict[str, Any] = {}
    for what, pairs in (("layer", frame.filter(same)), ("checkpoint", frame.filter(~same))):
        if what == "layer" and pairs.height:
            pairs = pairs.filter(pl.col("checkpoint_a") == pairs["checkpoint_a"][-1])
            pairs = pairs.filter(pl.col("layer_a") == pairs["layer_a"].min())
        if pairs.is_empty():
            continue
        pairs = pairs if what == "layer" else pairs.filter(pl.col("checkpoint_a") == pairs["checkpoint_a"][0])
        row = pairs.row(-1, named=True)
        out[f"CKA of the first and the last {what}"] = {key: row[key] for key in ("value", "low", "high", "n")}
        ends = {"low": row["null_low"], "high": row["null_high"], "n": row["n"]}
        out[f"CKA of the first and the last {what}, texts in another order"] = {"value": row["null"]} | ends
    return out


def _cosine(frame: pl.DataFrame) -> dict[str, Any]:
    if frame.is_empty():
        return {}
    last = _last(frame)
    out: dict[str, Any] = {}
    for name, column in (("mean cosine", "cosine"), ("mean cosine, centred", "centred")):
        out[name] = _of(last, column)
        out[f"{name}, random signs"] = _of(last, f"{column}_null")
    return out


def _curvature(frame: pl.DataFrame) -> dict[str, Any]:
    if frame.is_empty():
        return {}
    last = _last(frame)
    out: dict[str, Any] = {}
    out["curvature (degrees)"] = _of(last, "curvature")
    for what in ("states", "tokens"):
        out[f"curvature (degrees), {what} shuffled"] = _of(last, f"shuffled_{what}")
    if last["from_first"] is not None:
        out["straightening since the first layer (degrees)"] = _of(last, "from_first")
        out["straightening since the first layer (degrees), tokens shuffled"] = _of(last, "from_first_shuffled")
    own = frame.filter(pl.col("checkpoint") == last["checkpoint"])
    found = own.filter((pl.col("p_adjusted") < 0.05) & (pl.col("difference") <= -LEAST)).height
    out["layers straighter than with tokens shuffled"] = (
        f"{found} of {own.height} (by at least {LEAST:g} degree, adjusted p < 0.05: {0.05 * found:.2g} by chance)"
    )
    return out


def _last(frame: pl.DataFrame) -> dict[str, Any]:
    return frame.filter(pl.col("layer") == frame["layer"].max()).row(-1, named=True)


def _of(row: Mapping[str, Any], column: str) -> dict[str, Any]:
    return {"value": row[column], "low": row[f"{column}_low"], "high": row[f"{column}_high"], "n": row["n"]}
