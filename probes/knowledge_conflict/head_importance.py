"""Steps B and C: which heads carry the answers. Every head's effect on both by path patching and by gradient, and the
side that it pulls towards."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import polars as pl
import torch
from scipy.stats import rankdata

from probes.knowledge_conflict.config import BOTH, ROLES, TRIED, Config
from probes.knowledge_conflict.head_roles import head_roles
from probes.knowledge_conflict.items import Item, kinds
from workbench.core.context import Context
from workbench.core.errors import InputError, RunFailed
from workbench.engine.passes import Pass
from workbench.engine.patching import VARIANTS, Effects, attribution
from workbench.models.model import Model
from workbench.stats.clusters import FEWEST, clusters_of, mean_interval
from workbench.stats.intervals import clustered_draws, percentiles

AT_ONCE = 32  # items of one resumable part
HEAD_GROUPS = {"column": pl.String, "group": pl.String, "n": pl.Int64, "rows": pl.Int64}
HEAD_GROUPS |= {"layer": pl.Int64, "head": pl.Int64}
HEAD_GROUPS |= dict.fromkeys(("memory_importance", "context_importance", "score", "ci_low", "ci_high"), pl.Float64)


def head_effects(
    model: Model, config: Config, context: Context, items: Sequence[Item]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Importances of every head for a_m and a_c per item, each [n, layers, H, 2] float32: by patching, for
    config.variant and for "direct" and "total" where the architecture allows them; and by gradient. Raises InputError
    where it allows none."""
    variants = tuple(dict.fromkeys((*(TRIED if config.variant == "auto" else (config.variant,)), "direct", "total")))
    found: dict[str, list[np.ndarray]] = {name: [] for name in (*variants, "gradient")}
    for start in range(0, len(items), AT_ONCE):
        compute = partial(_lost, model, config, context, items[start : start + AT_ONCE], variants)
        for name, lost in context.part(f"heads {start}", compute).items():
            found[name].append(lost)
        context.progress(min(start + AT_ONCE, len(items)), len(items), "items")
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
    out, last = {}, None
    for name in variants:
        try:
            found = VARIANTS[name](model, ids, donors, tokens, run=run)
        except InputError as error:
            if name == config.variant:
                raise
            context.warn(
                f"There are no {name} effects{'' if config.variant == 'auto' else ' to compare with'}: {error}"
            )
            last = error
            continue
        out[name] = importance(found, config.metric).reshape(shape).numpy()
    if not out and last is not None:
        raise last
    slope = -attribution(
        model, ids, donors, tokens, metric="logprob" if config.metric == "logprob" else "logit", run=run
    )
    if config.metric in BOTH:  # a rate has no slope: that of what it counts the sign of
        slope = torch.stack([slope[..., 0] - slope[..., 1], slope[..., 1] - slope[..., 0]], -1)
    out["gradient"] = slope.reshape(shape).numpy()
    for name, lost in out.items():
        if bad := [items[i].row for i in range(len(lost)) if not np.isfinite(lost[i]).all()]:
            raise RunFailed(
                f"The {name} effects of heads are NaN or infinite on the items {bad[:5]}; load the "
                f"model in bfloat16 or float32."
            )
    context.count(prompts=2 * len(ids), tokens=2 * sum(map(len, ids)), forwards=2)
    return out


def importance(found: Effects, metric: str) -> torch.Tensor:
    """What (a_m, a_c) lose by each patch, [n, patches, 2]: of the log-probability or raw logit of each; of how far its
    logit is ahead of the other's; or of whether it is ahead (0 or 1)."""
    if metric not in BOTH:
        return -found.change(metric)
    ahead, patched = (x[..., 0] - x[..., 1] for x in (found.logits[:, None], found.patched_logits))
    if metric == "logit_difference":
        return torch.stack([ahead - patched, patched - ahead], -1)
    before, after = (torch.stack([x > 0, x < 0], -1).float() for x in (ahead, patched))
    return before - after


def scores(effects: np.ndarray, metric: str) -> np.ndarray:
    """I_memory − I_context [n, layers, H] of effects [n, layers, H, 2], where each is a number of its own; half of it
    where one is the other's negative."""
    return (effects[..., 0].astype(np.float64) - effects[..., 1]) / (2 if metric in BOTH else 1)


def head_table(
    model: Model, config: Config, found: dict[str, np.ndarray], gradient: np.ndarray, items: Sequence[Item], kept: str
) -> pl.DataFrame:
    """One row per head: mean importances by the variant `kept`, the score with its interval and p, and the role that
    it supports."""
    effects, clusters = found[kept].astype(np.float64), clusters_of(np.array([item.subject for item in items]))
    score = scores(effects, config.metric)
    mean, slope, middle = (values.mean(0, dtype=np.float64) for values in (effects, gradient, score))
    (low, high), (low_each, high_each) = (mean_interval(values, clusters) for values in (score, effects))
    roles = head_roles(score, effects, items, config)
    layer, head = np.divmod(np.arange(score[0].size), model.n_heads)
    columns = {
        "memory_importance": mean[..., 0],
        "context_importance": mean[..., 1],
        "gradient_memory": slope[..., 0],
        "gradient_context": slope[..., 1],
        "role": roles.role,
        "score": middle,
        "ci_low": low,
        "ci_high": high,
        "p": roles.p,
        "p_adjusted": roles.p_adjusted,
        "memory_low": low_each[..., 0],
        "memory_high": high_each[..., 0],
        "context_low": low_each[..., 1],
        "context_high": high_each[..., 1],
        "side": roles.side,
        "mixed_by": roles.mixed_by,
        "variant": np.full(score[0].shape, kept),
        "n": np.full(score[0].shape, clusters.n),
        "rows": np.full(score[0].shape, clusters.rows),
    }
    for name in ("direct", "total"):
        if name in found:
            both = found[name].mean(0, dtype=np.float64)
            columns |= {f"{name}_{answer}": both[..., k] for k, answer in enumerate(ROLES)}
    table = pl.DataFrame({"layer": layer, "head": head} | {name: values.ravel() for name, values in columns.items()})
    ends = [f"{name}_{end}" for name in ("ci", "memory", "context") for end in ("low", "high")]
    return table.with_columns(pl.col(*ends, "p", "p_adjusted").fill_nan(None))


def head_groups(model: Model, config: Config, effects: np.ndarray, items: Sequence[Item]) -> pl.DataFrame:
    """Mean importances of every head on each kind of conflict, and the score with its interval, from the effects on the
    items [n, layers, H, 2]: the columns of HEAD_GROUPS."""
    layer, head = np.divmod(np.arange(model.n_layers * model.n_heads), model.n_heads)
    subjects = np.array([item.subject for item in items])
    tables = [pl.DataFrame(schema=HEAD_GROUPS)]
    for column, value, chosen in kinds(items):
        here, clusters = effects[chosen], clusters_of(subjects[chosen])
        score, mean = scores(here, config.metric), here.mean(0, dtype=np.float64)
        low, high = mean_interval(score, clusters)
        rows = {
            "column": [column] * len(layer),
            "group": [value] * len(layer),
            "n": [clusters.n] * len(layer),
            "rows": [clusters.rows] * len(layer),
            "layer": layer,
            "head": head,
            "memory_importance": mean[..., 0].ravel(),
            "context_importance": mean[..., 1].ravel(),
            "score": score.mean(0).ravel(),
            "ci_low": np.ravel(low),
            "ci_high": np.ravel(high),
        }
        tables.append(pl.DataFrame(rows, schema=HEAD_GROUPS).with_columns(pl.col("ci_low", "ci_high").fill_nan(None)))
    return pl.concat(tables)


def gradient_ranks(
    config: Config,
    context: Context,
    found: dict[str, np.ndarray],
    gradient: np.ndarray,
    items: Sequence[Item],
    kept: str,
) -> dict:
    """Spearman's correlation over heads of step C with step B: with the variant that is kept, with the direct and with
    the total effect; subjects are resampled, none below five of them."""
    subjects, out = np.array([item.subject for item in items]), {}
    for k, side in enumerate(ROLES):
        for suffix, variant in {"": kept, "_direct": "direct", "_total": "total"}.items():
            if variant not in found:
                continue
            both = np.concatenate([x[..., k].reshape(len(items), -1) for x in (found[variant], gradient)], 1)
            draws = clustered_draws(both, subjects, draws=config.draws, rng=context.rng(f"spearman {side}"))
            value, *resampled = _spearman(np.concatenate([both.mean(0, dtype=np.float64)[None], draws]))
            n = len(np.unique(subjects))
            low, high = (None, None) if n < FEWEST else map(float, percentiles(np.array(resampled)))
            out[f"gradient_spearman_{side}{suffix}"] = {
                "value": float(value), "low": low, "high": high, "n": n, "rows": len(items)
            }  # fmt: skip
    return out


def _spearman(both: np.ndarray) -> np.ndarray:
    """Spearman's rho of the first half of every row [draws, 2 × heads] with the second."""
    first, second = (rankdata(half, axis=1) for half in np.split(both, 2, axis=1))
    first, second = (ranks - ranks.mean(1, keepdims=True) for ranks in (first, second))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (first * second).sum(1) / np.sqrt((first**2).sum(1) * (second**2).sum(1))
