"""Step A: where the answers come from. Windows of layers switched off at the last position, or cut off from a name."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import polars as pl
import torch

from probes.knowledge_conflict.answers import edited, probabilities
from probes.knowledge_conflict.config import Config
from probes.knowledge_conflict.items import SOURCES, Item
from workbench.core.context import Context
from workbench.engine.edits import Edit, KnockOut, Patch
from workbench.models.model import Model
from workbench.models.sites import sites
from workbench.stats.clusters import clusters_of, mean_interval

OUTPUTS = {"attention": "attn_out", "mlp": "mlp_out"}  # component -> the site that is set to zero
FLOW = {
    "component": pl.String,
    "window_start": pl.Int64,
    "source": pl.String,
    "delta_memory": pl.Float64,
    "delta_context": pl.Float64,
    "memory_low": pl.Float64,
    "memory_high": pl.Float64,
    "context_low": pl.Float64,
    "context_high": pl.Float64,
    "n": pl.Int64,
    "rows": pl.Int64,
}


def flow(model: Model, config: Config, context: Context, items: Sequence[Item]) -> pl.DataFrame:
    """What p(a_m) and p(a_c) lose or gain when a window of layers is switched off or cannot see a name: the columns of
    FLOW, and the width of the window in layers."""

    def measured(some: Sequence[Item], edits: Sequence[Edit] = ()) -> dict:
        return {"p": probabilities(model, context, some, edited(context, edits))}

    width = min(model.n_layers, config.window or max(1, model.n_layers // 8))
    starts, rows = range(model.n_layers - width + 1), []
    panels = _panels(model, context) if items else []
    if items:
        before = context.part("flow", partial(measured, items))["p"]
    for component, source in context.each(panels, title=lambda _, panel: " ".join(panel)):
        chosen = [n for n, item in enumerate(items) if component != "knockout" or item.sources[source]]
        if not chosen:  # no prompt names the subject twice, for example: there is nothing to cut
            context.warn(f"No item has a span '{source}'; step A leaves it out.")
            continue
        some = [items[n] for n in chosen]
        for start in starts:
            edits = _window_off(model, component, source, range(start, start + width), some)
            name = f"flow {component} {source} {start}"
            delta = context.part(name, partial(measured, some, edits))["p"] - before[chosen]
            clusters = clusters_of(np.array([item.subject for item in some]))
            low, high = mean_interval(delta, clusters)
            ends = (low[0], high[0], low[1], high[1])
            rows.append((component, start, source, *delta.mean(0), *ends, clusters.n, clusters.rows))
            context.progress(start + 1, len(starts), "windows of layers")
    table = pl.DataFrame(rows, schema=FLOW, orient="row")
    return table.with_columns(pl.selectors.float().fill_nan(None), window=pl.lit(width))


def _panels(model: Model, context: Context) -> list[tuple[str, str]]:
    """(component, source) of everything that is switched off."""
    panels = []
    if reason := model.lacks("stream_adds_up"):
        context.warn(f"Step A has no component knock-outs: {reason}.")
    else:
        panels += [(component, "all") for component in OUTPUTS]
    if model.attention_interface and model.lacks("attention_edits", "attention_rows") is None:
        return panels + [("knockout", source) for source in SOURCES]
    context.warn(f"{model.architecture} allows no attention knock-outs; step A has component knock-outs only.")
    return panels


def _window_off(model: Model, component: str, source: str, layers: Sequence[int], items: Sequence[Item]) -> list[Edit]:
    """The outputs of a component set to zero at the last position, or the last position cut off from the names of
    these items."""
    if component == "knockout":
        return [KnockOut(tuple(layers), tuple(item.sources[source] for item in items))]
    nothing = torch.zeros(model.width)
    return [Patch(site, nothing, (-1,)) for site in sites(OUTPUTS[component], layers)]
