"""Step A: where the answers come from. Windows of layers switched off at the last position, or cut off from a name.

All windows of all kinds are copies of a prompt's last position that are run together, each from its window's first
layer on: earlier positions cannot see it, and layers below are as they were. Models whose blocks cannot be called on
their own read the whole prompts once for every window."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import polars as pl

from probes.knowledge_conflict.answers import edited, log_probabilities
from probes.knowledge_conflict.config import Config
from probes.knowledge_conflict.items import SOURCES, Item
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.engine.layer_windows import CUT, Window
from workbench.engine.window_effects import window_effects
from workbench.models.model import Model
from workbench.stats.clusters import clusters_of, mean_interval

AT_ONCE = 32  # items of one resumable part
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


Panel = tuple[str, str]  # component, source


def flow(model: Model, config: Config, context: Context, items: Sequence[Item]) -> pl.DataFrame:
    """What p(a_m) and p(a_c) lose or gain when a window of layers is switched off or cannot see a name: the columns of
    FLOW, and the width of the window in layers."""
    width = min(model.n_layers, config.window or max(1, model.n_layers // 8))
    starts, rows = range(model.n_layers - width + 1), []
    panels = _panels(model, context, items) if items else []
    deltas = []
    for first in range(0, len(items) if panels else 0, AT_ONCE):
        compute = partial(_deltas, model, context, items[first : first + AT_ONCE], panels, starts, width)
        deltas.append(context.part(f"flow {first}", compute)["delta"])
        context.progress(min(first + AT_ONCE, len(items)), len(items), "items")
    for number, (component, source) in enumerate(panels):
        chosen = [n for n, item in enumerate(items) if component != "knockout" or item.sources[source]]
        clusters = clusters_of(np.array([items[n].subject for n in chosen]))
        delta = np.concatenate(deltas)[chosen, number]  # [n, starts, 2]
        low, high = mean_interval(delta, clusters)
        for start in starts:
            ends = (low[start, 0], high[start, 0], low[start, 1], high[start, 1])
            rows.append((component, start, source, *delta[:, start].mean(0), *ends, clusters.n, clusters.rows))
    table = pl.DataFrame(rows, schema=FLOW, orient="row")
    return table.with_columns(pl.selectors.float().fill_nan(None), window=pl.lit(width))


def _panels(model: Model, context: Context, items: Sequence[Item]) -> list[Panel]:
    """Everything that is switched off."""
    panels = []
    if reason := model.lacks("stream_adds_up"):
        context.warn(f"Step A has no component knock-outs: {reason}.")
    else:
        panels += [(component, "all") for component in OUTPUTS]
    if not model.attention_interface or model.lacks("attention_edits", "attention_rows") is not None:
        context.warn(f"{model.architecture} allows no attention knock-outs; step A has component knock-outs only.")
        return panels
    for source in SOURCES:
        if any(item.sources[source] for item in items):
            panels.append(("knockout", source))
        else:  # no prompt names the subject twice, for example: there is nothing to cut
            context.warn(f"No item has a span '{source}'; step A leaves it out.")
    return panels


def _deltas(
    model: Model, context: Context, items: Sequence[Item], panels: Sequence[Panel], starts: Sequence[int], width: int
) -> dict[str, np.ndarray]:
    """What p(a_m) and p(a_c) gain by every window, {"delta": [n, panels, starts, 2]}."""
    windows = [
        Window(start, width, CUT, tuple(item.sources[source] for item in items))
        if component == "knockout"
        else Window(start, width, OUTPUTS[component])
        for component, source in panels
        for start in starts
    ]
    try:
        before, after = _replayed(model, context, items, windows)
    except InputError as error:
        context.warn(f"Step A reads whole prompts once for every window: {error}")
        before, after = _read_whole(model, context, items, windows)
    delta = np.exp(after) - np.exp(before)[:, None]
    return {"delta": delta.reshape(len(items), len(panels), len(starts), 2)}


def _replayed(
    model: Model, context: Context, items: Sequence[Item], windows: Sequence[Window]
) -> tuple[np.ndarray, np.ndarray]:
    """log p of both answers as they are [n, 2] and under every window [n, windows, 2], the last position alone run
    again. Raises InputError where blocks cannot be called on their own."""
    ids, tokens = [item.conflict for item in items], [item.tokens for item in items]
    found = window_effects(model, ids, tokens, windows, run=edited(context))
    context.count(prompts=len(ids), tokens=sum(map(len, ids)) + len(ids) * len(windows), forwards=1)
    before = found.logits - found.normaliser[:, None]
    after = found.patched_logits - found.patched_normaliser[..., None]
    return before.double().numpy(), after.double().numpy()


def _read_whole(
    model: Model, context: Context, items: Sequence[Item], windows: Sequence[Window]
) -> tuple[np.ndarray, np.ndarray]:
    """The same by whole passes."""
    before, *after = (
        log_probabilities(model, context, items, edited(context, edits))
        for edits in ((), *(window.edits(model) for window in windows))
    )
    return before, np.stack(after, 1)
