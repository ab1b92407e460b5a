"""Steps B and C: which heads carry the answers. Every head's effect on both by path patching and by gradient, and the
side that it pulls towards."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import polars as pl

from probes.knowledge_conflict.config import ROLES, Config
from probes.knowledge_conflict.item_intervals import mean_interval
from probes.knowledge_conflict.items import Item, kinds
from workbench.core.context import Context
from workbench.core.errors import InputError, RunFailed
from workbench.engine.passes import Pass
from workbench.engine.patching import VARIANTS, attribution
from workbench.models.model import Model
from workbench.stats.intervals import spearman

AT_ONCE = 32  # items of one resumable part
NOISE = 1e-3  # effects below this share of the largest are rounding, not a role
HEAD_GROUPS = {"column": pl.String, "group": pl.String, "n": pl.Int64, "layer": pl.Int64, "head": pl.Int64}
HEAD_GROUPS |= dict.fromkeys(("memory_importance", "context_importance", "score", "ci_low", "ci_high"), pl.Float64)


def head_effects(
    model: Model, config: Config, context: Context, items: Sequence[Item]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Importances of every head for a_m and a_c per item, each [n, layers, H, 2] float32: by patching, for
    config.variant and for "direct" and "total" where the architecture allows them; and by gradient."""
    variants = tuple(dict.fromkeys((config.variant, "direct", "total")))
    found: dict[str, list[np.ndarray]] = {name: [] for name in (*variants, "gradient")}
    for start in range(0, len(items), AT_ONCE):
        compute = partial(_lost, model, config, context, items[start : start + AT_ONCE], variants)
        for name, lost in context.part(f"heads {start}", compute).items():
            found[name].append(lost)
        context.progress(min(start + AT_ONCE, len(items)), len(items), "heads")
    whole = {name: np.concatenate(lost) for name, lost in found.items() if lost}
    return whole, whole.pop("gradient")


def _lost(
    model: Model, config: Config, context: Context, items: Sequence[Item], variants: Sequence[str]
) -> dict[str, np.ndarray]:
    """What both answers lose by each head's patch, in every variant and by gradient; each [n, layers, H, 2]. Raises
    RunFailed where that is not finite."""
    ids, donors, tokens = ([getattr(item, name) for item in items] for name in ("conflict", "corrupt", "tokens"))
    shape = (len(ids), model.n_layers, model.n_heads, 2)
    run = Pass(context.edits, check=context.check)
    out = {}
    for name in variants:
        try:
            lost = -VARIANTS[name](model, ids, donors, tokens, run=run).change(config.metric)
        except InputError as error:
            if name == config.variant:
                raise
            context.warn(f"There are no {name} effects to compare with: {error}")
            continue
        out[name] = lost.reshape(shape).numpy()
    slope = attribution(model, ids, donors, tokens, metric=config.metric, run=run)
    out["gradient"] = -slope.reshape(shape).numpy()
    for name, lost in out.items():
        if bad := [items[i].row for i in range(len(lost)) if not np.isfinite(lost[i]).all()]:
            raise RunFailed(
                f"The {name} effects of heads are NaN or infinite on the items {bad[:5]}; load the "
                f"model in bfloat16 or float32."
            )
    context.count(prompts=2 * len(ids), tokens=2 * sum(map(len, ids)), forwards=2)
    return out


def head_table(
    model: Model, config: Config, context: Context, found: dict[str, np.ndarray], gradient: np.ndarray
) -> pl.DataFrame:
    """One row per head: mean importances, the score I_memory − I_context with its interval, and the role that it
    supports."""
    effects = found[config.variant]
    score = effects[..., 0] - effects[..., 1]
    mean, slope, middle = (values.mean(0, dtype=np.float64) for values in (effects, gradient, score))
    low, high = mean_interval(score, config, context.rng("head scores"))
    (memory_low, memory_high), (context_low, context_high) = (
        mean_interval(effects[..., k], config, context.rng(f"heads {k}")) for k in (0, 1)
    )
    side = _side(middle, mean)
    sure = np.where(side == "memory", low > 0, high < 0) & (side != "none")
    layer, head = np.divmod(np.arange(score[0].size), model.n_heads)
    columns = {
        "memory_importance": mean[..., 0],
        "context_importance": mean[..., 1],
        "gradient_memory": slope[..., 0],
        "gradient_context": slope[..., 1],
        "role": np.where(sure, side, "none"),
        "score": middle,
        "ci_low": low,
        "ci_high": high,
        "memory_low": memory_low,
        "memory_high": memory_high,
        "context_low": context_low,
        "context_high": context_high,
        "side": side,
        "n": np.full(score[0].shape, len(score)),
    }
    for name in ("direct", "total"):
        if name in found:
            both = found[name].mean(0, dtype=np.float64)
            columns |= {f"{name}_{answer}": both[..., k] for k, answer in enumerate(ROLES)}
    table = pl.DataFrame({"layer": layer, "head": head} | {name: values.ravel() for name, values in columns.items()})
    ends = [f"{name}_{end}" for name in ("ci", "memory", "context") for end in ("low", "high")]
    return table.with_columns(pl.col(ends).fill_nan(None))


def _side(score: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """The side that each head pulls towards, "memory", "context" or "none" [layers, H], from its mean score [layers, H]
    and importances [layers, H, 2]."""
    floor = NOISE * max(float(np.abs(mean).max()), 1e-12)
    memory = (score > floor) & (mean[..., 0] > floor)
    other = (score < -floor) & (mean[..., 1] > floor)
    return np.where(memory, "memory", np.where(other, "context", "none"))


def head_groups(
    model: Model, config: Config, context: Context, effects: np.ndarray, items: Sequence[Item]
) -> pl.DataFrame:
    """Mean importances of every head on each kind of conflict, and the score with its interval, from the effects on the
    items [n, layers, H, 2]: the columns of HEAD_GROUPS."""
    layer, head = np.divmod(np.arange(model.n_layers * model.n_heads), model.n_heads)
    tables = [pl.DataFrame(schema=HEAD_GROUPS)]
    for column, value, chosen in kinds(items):
        here = effects[chosen]
        score, mean = here[..., 0] - here[..., 1], here.mean(0, dtype=np.float64)
        low, high = mean_interval(score, config, context.rng(f"heads of {column} {value}"))
        rows = {
            "column": [column] * len(layer),
            "group": [value] * len(layer),
            "n": [len(chosen)] * len(layer),
            "layer": layer,
            "head": head,
            "memory_importance": mean[..., 0].ravel(),
            "context_importance": mean[..., 1].ravel(),
            "score": score.mean(0, dtype=np.float64).ravel(),
            "ci_low": low.ravel(),
            "ci_high": high.ravel(),
        }
        tables.append(pl.DataFrame(rows, schema=HEAD_GROUPS).with_columns(pl.col("ci_low", "ci_high").fill_nan(None)))
    return pl.concat(tables)


def gradient_ranks(config: Config, context: Context, heads: pl.DataFrame) -> dict:
    """Spearman's correlation over heads of step C with step B: with config.variant, with the direct and with the total
    effect."""
    out = {}
    for side in ROLES:
        named = {"": f"{side}_importance", "_direct": f"direct_{side}", "_total": f"total_{side}"}
        by_gradient = heads[f"gradient_{side}"].to_numpy()
        for suffix, column in named.items():
            if column in heads.columns:
                rng = context.rng(f"spearman {side}")
                rank = spearman(heads[column].to_numpy(), by_gradient, draws=config.draws, rng=rng)
                out[f"gradient_spearman_{side}{suffix}"] = rank.as_dict()
    return out


def ranked(heads: pl.DataFrame, role: str) -> tuple[tuple[int, int], ...]:
    """Heads on one side of zero, the strongest first."""
    found = heads.filter(pl.col("side") == role).sort(pl.col("score").abs(), descending=True)
    return tuple(zip(found["layer"].to_list(), found["head"].to_list()))
