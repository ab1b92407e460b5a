"""What a run of layer redundancy says in a few numbers."""

from __future__ import annotations

from typing import Any

import polars as pl

WORDS = {"attention": "attention", "mlp": "MLP", "block": "block"}


def summary_of(layers: pl.DataFrame, dropping: pl.DataFrame) -> dict[str, Any]:
    """Of every kind the module that is first to go, with its similarity on the texts that did not choose it; the loss
    of the whole model, and of the largest number of dropped modules the loss and how it differs from that of random
    ones. n counts texts."""
    out: dict[str, Any] = {}
    whole = dropping.row(0, named=True)
    held_out = whole["texts"]
    for component, rows in layers.group_by("component", maintain_order=True):
        first = rows.sort("rank").row(0, named=True)
        word = WORDS[str(component[0])]
        out[f"most redundant {word}"] = first["layer"]
        out[f"similarity of {word} {first['layer']} (other texts)"] = {
            "value": first["held_out"],
            "low": first["held_out_low"],
            "high": first["held_out_high"],
            "n": held_out,
        }
        if flagged := rows.filter(pl.col("rescales"))["layer"].to_list():
            out[f"{word} layers that rescale the stream"] = ", ".join(map(str, sorted(flagged)))
    out["loss of the whole model"] = {
        "value": whole["loss"],
        "low": whole["ci_low"],
        "high": whole["ci_high"],
        "n": whole["texts"],
    }
    chosen = dropping.filter(pl.col("order") == "similarity")
    for component, rows in chosen.group_by("component", maintain_order=True):
        row = rows.sort("n").row(-1, named=True)
        what = f"{row['n']} {component[0]} dropped"
        out[f"loss with {what}"] = {key: row[name] for key, name in _ENDS.items()}
        out[f"loss with {what}, minus random"] = {
            "value": row["minus_random"],
            "low": row["minus_random_low"],
            "high": row["minus_random_high"],
            "n": row["texts"],
        }
        out[f"random sets as good as {what}"] = row["random_as_good"]
        out[f"counted speed with {what}"] = row["speed"]
    return out


_ENDS = {"value": "loss", "low": "ci_low", "high": "ci_high", "n": "texts"}
