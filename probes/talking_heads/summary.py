"""What a person would quote of a run."""

from __future__ import annotations

import numpy as np
import polars as pl

from probes.talking_heads.config import Config
from probes.talking_heads.scan import RATE, ModelHeads


def in_words(row: dict) -> str:
    """``0.5 component 0 → 2.11 (q)``; heads that share a key and value as ``2.8–11``."""
    head = row["target_head"]
    several = f"–{head + row['target_heads'] - 1}" if row["target_heads"] > 1 else ""
    return (
        f"{row['source_layer']}.{row['source_head']} component {row['component']} → "
        f"{row['target_layer']}.{head}{several} ({row['kind']})"
    )


def summary_of_scan(channels: pl.DataFrame, tests: np.ndarray, weights: ModelHeads, config: Config) -> dict:
    """How many channels stand out of how many tests, the strongest ones, and the score of a random direction."""
    tested, marked = (int(n) for n in tests)
    found: dict = {"tests": tested, "channels": marked, "expected_false_at_most": RATE * marked}
    found["random_score"] = float(channels["null_mean"].mean()) if channels.height else None  # pyright: ignore[reportArgumentType]
    found["one_over_root_d"] = weights.width**-0.5
    best = channels.head(5)
    found["strongest"] = (
        "; ".join(
            f"{in_words(row)} score {row['score']:.3f}, z {row['z']:.1f} and {row['z_heads']:.1f}"
            for row in best.iter_rows(named=True)
            if row["is_channel"]
        )
        or f"none: no component has both z at {config.outlier:g} or above"
    )
    return found


def summary_of_ablation(ablation: pl.DataFrame) -> dict:
    """For every task, the attention of its first receiver, and how it changes without the channels that are removed
    together, or without the strongest."""
    found: dict = {}
    for task in ablation["task"].unique(maintain_order=True).to_list():
        own = ablation.filter(task=task, metric="attention")
        first = own.row(0, named=True)
        own = own.filter(target_layer=first["target_layer"], target_head=first["target_head"])
        name = task.replace(" ", "_")
        found[f"{name}_receiver"] = f"{first['target_layer']}.{first['target_head']}"
        found[f"{name}_attention"] = _estimate(first, "value", "ci_low", "ci_high")
        for ablated in ("weight", "activation", "random"):
            rows = own.filter(ablation=ablated)
            if rows.is_empty():
                continue
            last = rows.row(-1, named=True)
            if last["component"] is not None:
                last = rows.row(0, named=True)
            found[f"{name}_removed"] = last["channels"]
            found[f"{name}_change_{ablated}"] = _estimate(last, "change", "change_low", "change_high")
            if ablated == "weight" and last["beyond_random"] is not None:
                found[f"{name}_beyond_random"] = _estimate(
                    last, "beyond_random", "beyond_random_low", "beyond_random_high"
                )
    return found


def _estimate(row: dict, value: str, low: str, high: str) -> dict:
    return {"value": row[value], "low": row[low], "high": row[high], "n": row["n"], "rows": row["rows"]}


def summary_of_sweep(gain: np.ndarray) -> dict:
    """The scale that did best on the prompts that chose, and the accuracy that it gains on the others."""
    if not len(gain):
        return {}
    scale, value, low, high, n, rows = (float(x) for x in gain)
    ends = {"low": None if np.isnan(low) else low, "high": None if np.isnan(high) else high}
    return {"sweep_best_scale": scale, "sweep_gain": {"value": value, **ends, "n": int(n), "rows": int(rows)}}
