"""How often the answers follow memory, context or neither, and what the chosen heads gain; subjects are the unit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from probes.knowledge_conflict.config import ROLES
from probes.knowledge_conflict.items import Item, kinds
from workbench.core.context import Context
from workbench.stats.clusters import (
    Clusters,
    cluster_share,
    clusters_of,
    crossed_interval,
    mean_interval,
    share_interval,
)
from workbench.stats.intervals import Estimate

SIDES = ("memory", "context", "other")
MAX_CLEAN_LOSS = 0.02  # of clean accuracy on test; more is warned of
UNSURE = 0.05  # a loss of as much that the interval does not exclude is said, whatever the change itself
GROUP_RATES = {
    "role": pl.String,
    "k": pl.Int64,
    "heads": pl.String,
    "column": pl.String,
    "group": pl.String,
    "n": pl.Int64,
    "rows": pl.Int64,
    **{f"{side}_{end}": pl.Float64 for side in SIDES for end in ("rate", "low", "high")},
    "clean_accuracy": pl.Float64,
    "clean_low": pl.Float64,
    "clean_high": pl.Float64,
}
GAINS = ("gain", "gain_over_random", "clean_change", "perplexity_ratio", "random_perplexity_ratio")


def hits(found: pl.DataFrame) -> dict[str, np.ndarray]:
    """0 or 1 for every item: whether its answer follows memory, context or neither, and whether the clean prompt is
    answered right ("clean")."""
    follows = {side: (found["kind"] == side).to_numpy().astype(float) for side in SIDES}
    return follows | {"clean": found["clean_right"].to_numpy().astype(float)}


def as_said(found: Estimate) -> dict:
    """An estimate as a summary holds it: null ends where there is no interval."""
    out = found.as_dict()
    return out | {end: None if np.isnan(out[end]) else float(out[end]) for end in ("low", "high")}


def rates(found: pl.DataFrame) -> dict[str, float]:
    """Shares of answers that follow memory, context or neither, and of clean prompts answered right, with intervals
    over subjects (nulls below five); n subjects have so many rows."""
    out = {}
    for name, hit in hits(found).items():
        own = as_said(cluster_share(hit, found["subject"].to_numpy()))
        out |= {"n": own["n"], "rows": own["rows"]}
        out["clean_accuracy" if name == "clean" else f"{name}_rate"] = own["value"]
        out[f"{name}_low"], out[f"{name}_high"] = own["low"], own["high"]
    return out


def rate(found: pl.DataFrame, side: str) -> dict:
    """One of the rates, as a summary says it."""
    return as_said(cluster_share(hits(found)[side], found["subject"].to_numpy()))


def mean_rates(draws: Sequence[pl.DataFrame]) -> dict[str, float]:
    """The mean of each rate over draws of random heads; subjects and draws both vary in its interval."""
    clusters, out = clusters_of(draws[0]["subject"].to_numpy()), {}
    found = [hits(draw) for draw in draws]
    for name in found[0]:
        values = np.stack([one[name] for one in found])
        ends = _wider(crossed_interval(values, clusters), share_interval(values.mean(0), clusters))
        out["clean_accuracy" if name == "clean" else f"{name}_rate"] = float(values.mean())
        out[f"{name}_low"], out[f"{name}_high"] = (_or_none(end) for end in np.clip(ends, 0, 1))
    return {"n": clusters.n, "rows": clusters.rows} | out


def change(values: np.ndarray, subjects: np.ndarray) -> dict:
    """The mean of differences between two rates, [items] or [draws, items] (each between −1 and 1): over subjects, and
    over draws. Where Student's interval is narrower than that of the items that rise and that fall (none vary, say),
    this one holds: Wilson's for both shares, put together as Newcombe does."""
    clusters, values = clusters_of(subjects), np.asarray(values, np.float64)
    each = values.mean(0) if values.ndim == 2 else values
    by_t = crossed_interval(values, clusters) if values.ndim == 2 else mean_interval(values, clusters)
    ends = _wider(tuple(map(float, by_t)), _of_shares(each, clusters))
    low, high = np.clip(ends, -1, 1)  # NaN stays
    return as_said(Estimate(float(each.mean()), low, high, clusters.n, clusters.rows))


def _of_shares(each: np.ndarray, clusters: Clusters) -> tuple[float, float]:
    up, down = each.clip(min=0), (-each).clip(min=0)
    (up_low, up_high), (down_low, down_high) = (share_interval(part, clusters) for part in (up, down))
    below = np.hypot(up.mean() - up_low, down_high - down.mean())
    above = np.hypot(up_high - up.mean(), down.mean() - down_low)
    return float(each.mean() - below), float(each.mean() + above)


def _wider(a: tuple[float, float], b: tuple[float, float]) -> tuple[float, float]:
    """The hull of two intervals; NaN where one is."""
    return float(np.minimum(a[0], b[0])), float(np.maximum(a[1], b[1]))


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


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
            rows.append(place | {"k": k, "heads": "random"} | mean_rates([found[chosen] for found in randoms]))
    return rows


def gain(
    context: Context,
    role: str,
    k: int | None,
    before: pl.DataFrame,
    top: pl.DataFrame,
    randoms: Sequence[pl.DataFrame],
) -> dict:
    """What the chosen k does on test, against the unpruned model, and against the better of it and random heads of the
    same layers; nulls where none is pruned."""
    wanted, name = ROLES[role], f"{role}_pruned"
    if not k:
        missing = (f"{wanted}_rate", f"random_{wanted}_rate", "compared_with", *GAINS)
        return {f"{name}_k": k} | dict.fromkeys(f"{name}_{what}" for what in missing)
    gained, over, clean, chance_helps = gains_of(wanted, before, top, randoms)
    _warn_of_gain(gained, "pruning none", role, k, context)
    if chance_helps:
        _warn_of_gain(over, "pruning random heads of the same layers", role, k, context)
    if clean["value"] < -MAX_CLEAN_LOSS:
        context.warn(
            f"Pruning {k} {role} heads costs {-clean['value']:.1%} of clean accuracy on test, more than "
            f"{MAX_CLEAN_LOSS:.0%}."
        )
    elif clean["low"] is None or clean["low"] < -UNSURE:
        worst = "these are too few to say more"
        if clean["low"] is not None:
            worst = f"a loss of up to {-clean['low']:.1%} is not excluded"
        context.warn(
            f"That pruning {k} {role} heads costs no facts is not shown: clean accuracy changes by "
            f"{clean['value']:+.1%} on {clean['n']} subjects, and {worst}."
        )
    unpruned = before["perplexity"][0]
    chance = mean_rates(randoms)
    return {
        f"{name}_k": k,
        f"{name}_{wanted}_rate": rate(top, wanted),
        f"{name}_random_{wanted}_rate": {
            "value": chance[f"{wanted}_rate"],
            **{end: chance[f"{wanted}_{end}"] for end in ("low", "high")},
            **{size: chance[size] for size in ("n", "rows")},
        },
        f"{name}_gain": gained,
        f"{name}_gain_over_random": over,
        f"{name}_compared_with": "random heads" if chance_helps else "no pruning",
        f"{name}_clean_change": clean,
        f"{name}_perplexity_ratio": float(top["perplexity"][0] / unpruned),
        f"{name}_random_perplexity_ratio": float(np.mean([found["perplexity"][0] for found in randoms]) / unpruned),
    }


def gains_of(
    wanted: str, before: pl.DataFrame, after: pl.DataFrame, randoms: Sequence[pl.DataFrame]
) -> tuple[dict, dict, dict, bool]:
    """How much more often the answers are the wanted ones than before, and than the better of before and the mean over
    random draws; the change of clean accuracy; and whether the draws are that better one. Paired, over subjects."""
    subjects, old, new = before["subject"].to_numpy(), hits(before), hits(after)
    by_chance = np.stack([hits(found)[wanted] for found in randoms])
    gained = change(new[wanted] - old[wanted], subjects)
    chance_helps = bool(by_chance.mean() >= old[wanted].mean())
    over = change(new[wanted] - by_chance, subjects) if chance_helps else gained
    return gained, over, change(new["clean"] - old["clean"], subjects), chance_helps


def _warn_of_gain(found: dict, against: str, role: str, k: int, context: Context) -> None:
    """Say where the interval of a gain does not exclude zero."""
    if found["low"] is not None and found["low"] > 0:
        return
    seen = (
        "too few subjects or random draws for an interval"
        if found["low"] is None
        else f"interval {found['low']:+.2f} to {found['high']:+.2f}"
    )
    context.warn(
        f"Pruning {k} {role} heads is not shown to bring more {ROLES[role]} answers than {against}: "
        f"{found['value']:+.2f} ({seen})."
    )
