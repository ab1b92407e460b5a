"""How often the answers follow memory, context or neither: rates with Wilson intervals, and what the chosen heads
gain."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from probes.knowledge_conflict.config import ROLES, Config
from probes.knowledge_conflict.item_intervals import difference
from probes.knowledge_conflict.items import Item, kinds
from workbench.core.context import Context
from workbench.stats.intervals import wilson

SIDES = ("memory", "context", "other")
MAX_CLEAN_LOSS = 0.02  # of clean accuracy on test; more is warned of
GROUP_RATES = {
    "role": pl.String,
    "k": pl.Int64,
    "heads": pl.String,
    "column": pl.String,
    "group": pl.String,
    "n": pl.Int64,
    **{f"{side}_{end}": pl.Float64 for side in SIDES for end in ("rate", "low", "high")},
    "clean_accuracy": pl.Float64,
    "clean_low": pl.Float64,
    "clean_high": pl.Float64,
}
GAINS = ("gain", "gain_over_random", "clean_change", "perplexity_ratio", "random_perplexity_ratio")


def rates(found: pl.DataFrame) -> dict[str, float]:
    """Shares of answers that follow memory, context or neither, and of clean prompts answered right, with Wilson
    intervals."""
    n, out = found.height, {"n": found.height}
    hits = {side: int((found["kind"] == side).sum()) for side in SIDES} | {"clean": int(found["clean_right"].sum())}
    for name, right in hits.items():
        out["clean_accuracy" if name == "clean" else f"{name}_rate"] = right / n
        out[f"{name}_low"], out[f"{name}_high"] = wilson(right, n)
    return out


def rate(found: pl.DataFrame, side: str) -> dict:
    """One of the rates, as a summary says it."""
    own = rates(found)
    return {"value": own[f"{side}_rate"], "low": own[f"{side}_low"], "high": own[f"{side}_high"], "n": found.height}


def baseline(before: pl.DataFrame, context: Context) -> dict:
    """The rates of the unpruned model, and a warning where pruning cannot raise one."""
    found = {f"{side}_rate": rate(before, side) for side in SIDES}
    for side in ROLES:
        if found[f"{side}_rate"]["value"] == 1:
            context.warn(f"Every test item already follows {side}; pruning cannot raise that side.")
    if found["other_rate"]["value"] == 1:
        context.warn("No test item is answered with either side; the rates say nothing about memory against context.")
    return found


def by_group(
    role: str, k: int, items: Sequence[Item], before: pl.DataFrame, top: pl.DataFrame, randoms: Sequence[pl.DataFrame]
) -> list[dict]:
    """The rates of each kind of conflict: unpruned (k = 0), with the chosen heads pruned, and the mean over the random
    draws."""
    rows = []
    for column, value, chosen in kinds(items):
        place = {"role": role, "column": column, "group": value}
        rows.append(place | {"k": 0, "heads": "top"} | rates(before[chosen]))
        if k:
            rows.append(place | {"k": k, "heads": "top"} | rates(top[chosen]))
            draws = [rates(found[chosen]) for found in randoms]
            means = {
                name: float(np.mean([draw[name] for draw in draws]))
                for name in draws[0]
                if not name.endswith(("low", "high", "n"))
            }
            rows.append(place | {"k": k, "heads": "random", "n": len(chosen)} | means)
    return rows


def gain(
    context: Context,
    config: Config,
    role: str,
    k: int | None,
    before: pl.DataFrame,
    top: pl.DataFrame,
    randoms: Sequence[pl.DataFrame],
) -> dict:
    """What the chosen k does on test, against the unpruned model and against random heads of the same layers; nulls
    where none is pruned."""
    wanted, name = ROLES[role], f"{role}_pruned"
    if not k:
        return {f"{name}_k": k} | dict.fromkeys(f"{name}_{what}" for what in (f"{wanted}_rate", *GAINS))

    def follows(found: pl.DataFrame) -> np.ndarray:
        return (found["kind"] == wanted).to_numpy().astype(float)

    def right(found: pl.DataFrame) -> np.ndarray:
        return found["clean_right"].to_numpy().astype(float)

    def change(a: np.ndarray, b: np.ndarray) -> dict:
        return difference(a, b, config, context.rng(f"gain {role}"))

    gained = change(follows(top), follows(before))
    over = change(follows(top), np.mean([follows(found) for found in randoms], axis=0))
    clean = change(right(top), right(before))
    _warn_of_gain(gained, "pruning none", role, k, context)
    _warn_of_gain(over, "pruning random heads of the same layers", role, k, context)
    if clean["value"] < -MAX_CLEAN_LOSS:
        context.warn(
            f"Pruning {k} {role} heads costs {-clean['value']:.1%} of clean accuracy on test, more than "
            f"{MAX_CLEAN_LOSS:.0%}."
        )
    unpruned = before["perplexity"][0]
    return {
        f"{name}_k": k,
        f"{name}_{wanted}_rate": rate(top, wanted),
        f"{name}_gain": gained,
        f"{name}_gain_over_random": over,
        f"{name}_clean_change": clean,
        f"{name}_perplexity_ratio": float(top["perplexity"][0] / unpruned),
        f"{name}_random_perplexity_ratio": float(np.mean([found["perplexity"][0] for found in randoms]) / unpruned),
    }


def _warn_of_gain(found: dict, against: str, role: str, k: int, context: Context) -> None:
    """Say where the interval of a gain does not exclude zero."""
    if found["low"] is not None and found["low"] > 0:
        return
    seen = (
        "too few items for an interval"
        if found["low"] is None
        else f"interval {found['low']:+.2f} to {found['high']:+.2f}"
    )
    context.warn(
        f"Pruning {k} {role} heads is not shown to bring more {ROLES[role]} answers than {against}: "
        f"{found['value']:+.2f} ({seen})."
    )
