"""Where the answers are carried: the activation of one component, in one layer, at one name or at the last position,
put in from the corrupted prompt, everything after it computed again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
import torch

from probes.knowledge_conflict.config import FALSE_DISCOVERIES, Config
from probes.knowledge_conflict.head_importance import importance, scores
from probes.knowledge_conflict.items import SOURCES, Item
from workbench.core.context import Context
from workbench.engine.passes import Pass
from workbench.engine.patching import activation_patching
from workbench.models.model import Model
from workbench.stats.clusters import clusters_of, false_discovery, mean_interval, p_of_zero

COMPONENTS = {"residual": "resid_post", "attention": "attn_out", "mlp": "mlp_out"}  # -> the site that is patched
POSITIONS = (*SOURCES, "last")  # the last token of a name, and of the prompt
ENDS = ("memory_low", "memory_high", "context_low", "context_high", "ci_low", "ci_high")
PATCHING = {"component": pl.String, "layer": pl.Int64, "position": pl.String}
PATCHING |= dict.fromkeys(("memory_importance", "context_importance", "score", *ENDS, "p", "p_adjusted"), pl.Float64)
PATCHING |= {"shown": pl.Boolean, "n": pl.Int64, "rows": pl.Int64}


def patching(model: Model, config: Config, context: Context, items: Sequence[Item]) -> pl.DataFrame:
    """What both answers lose by each patch, by config.metric, mean over items: the columns of PATCHING.

    p is of a score of 0, adjusted over all components, layers and positions; `shown` needs a least size, too."""
    components = dict(COMPONENTS)
    if reason := model.lacks("stream_adds_up"):
        context.warn(f"Attention and MLP outputs are not patched at single positions: {reason}.")
        components = {"residual": COMPONENTS["residual"]}
    found = [_lost(model, config, context, item, number, components) for number, item in enumerate(items)]
    context.progress(len(items), len(items), "items")
    effects = np.stack(found)  # [n, components, positions, layers, 2], NaN where an item has no such name
    return _table(config, effects, items, tuple(components))


def _lost(
    model: Model, config: Config, context: Context, item: Item, number: int, components: dict[str, str]
) -> np.ndarray:
    """What the answers of one item lose, [components, positions, layers, 2]; NaN for a name that it lacks."""
    places = {name: item.sources[name][-1] for name in SOURCES if item.sources.get(name)}
    places["last"] = len(item.conflict) - 1
    run = Pass(context.edits, check=context.check)

    def compute() -> dict[str, np.ndarray]:
        out = np.full((len(components), len(POSITIONS), model.n_layers, 2), np.nan, np.float32)
        for c, kind in enumerate(components.values()):
            effects = activation_patching(
                model, [item.conflict], [item.corrupt], [item.tokens], kind, positions=list(places.values()), run=run
            )
            lost = importance(effects, config.metric)[0].reshape(model.n_layers, len(places), 2)
            for k, name in enumerate(places):
                out[c, POSITIONS.index(name)] = torch.as_tensor(lost[:, k]).numpy()
        patched = len(components) * len(places) * model.n_layers
        context.count(prompts=patched, tokens=patched * len(item.conflict), forwards=len(components) * model.n_layers)
        return {"lost": out}

    context.progress(number, config.patch_items, "items")
    return context.part(f"patched positions {item.row}", compute)["lost"]


def _table(config: Config, effects: np.ndarray, items: Sequence[Item], components: Sequence[str]) -> pl.DataFrame:
    """The means of effects [n, components, positions, layers, 2] with their intervals and p."""
    subjects, rows = np.array([item.subject for item in items]), []
    for c, component in enumerate(components):
        for k, position in enumerate(POSITIONS):
            here = effects[:, c, k].astype(np.float64)  # [n, layers, 2]
            there = ~np.isnan(here[:, 0, 0])
            if not there.any():
                continue
            here, clusters = here[there], clusters_of(subjects[there])
            score = scores(here, config.metric)
            (low, high), (low_each, high_each) = mean_interval(score, clusters), mean_interval(here, clusters)
            p = p_of_zero(score, clusters)
            for layer in range(here.shape[1]):
                ends = low_each[layer, 0], high_each[layer, 0], low_each[layer, 1], high_each[layer, 1]
                mean = (*here[:, layer].mean(0), score[:, layer].mean())
                rows.append((component, layer, position, *mean, *ends, low[layer], high[layer], p[layer], None, None,
                             clusters.n, clusters.rows))  # fmt: skip
    table = pl.DataFrame(rows, schema=PATCHING, orient="row")
    return judged(table, config).with_columns(pl.col(*ENDS).fill_nan(None))


def judged(table: pl.DataFrame, config: Config) -> pl.DataFrame:
    """A table of scores with p, adjusted over all of its rows, and whether a score is `shown`: told from 0 at that
    false discovery rate, and of `least_effect` at least."""
    adjusted = pl.Series(false_discovery(table["p"].to_numpy()))
    shown = (adjusted < FALSE_DISCOVERIES) & (table["score"].abs() >= config.least_effect)
    table = table.with_columns(p_adjusted=adjusted, shown=shown)
    return table.with_columns(pl.col("p", "p_adjusted").fill_nan(None))
