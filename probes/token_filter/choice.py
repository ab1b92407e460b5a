"""The filter layer: chosen on some of the needles, judged on the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from probes.token_filter.config import Config
from probes.token_filter.layer_recall import Kept
from probes.token_filter.selection import Selections
from probes.token_filter.trials import FilterTrials
from workbench.core.context import Context
from workbench.core.errors import InputError

CHOICE = {
    "k": pl.Int64,
    "fold": pl.Int64,
    "layer": pl.Int64,
    "recall_choosing": pl.Float64,
    "recall_testing": pl.Float64,
    "needles_choosing": pl.Int64,
    "needles_testing": pl.Int64,
}


@dataclass(frozen=True, eq=False)
class FilterChoice:
    """For one k: `layer` [trials], the layer that each trial is filtered by, chosen on other needles; -1 where none is.
    `rows`: of the table `choice`."""

    k: int
    layer: np.ndarray
    rows: list[tuple]


def usable(found: FilterTrials, selections: Selections, config: Config, context: Context) -> np.ndarray:
    """The layers that may filter: those whose last query sees every token of every prompt. Raises InputError where the
    layer that is asked for is none of them, or where there is none."""
    sizes = np.array([len(t.ids) for t in found.trials])
    whole = np.flatnonzero((selections.seen == sizes[:, None]).all(0))
    layers = selections.seen.shape[1]
    if not len(whole):
        raise InputError(
            f"No layer sees all tokens of prompts of up to {sizes.max()}: all {layers} attend over a window, so none "
            f"can be the filter; give shorter lengths."
        )
    if isinstance(config.filter_layer, int) and config.filter_layer not in whole:
        raise InputError(
            f"filter_layer={config.filter_layer} attends over a window and sees "
            f"{selections.seen[:, config.filter_layer].max()} tokens of a prompt at most; choose one of "
            f"{', '.join(map(str, whole.tolist()))}."
        )
    if len(whole) < layers:
        blind = sorted(set(range(layers)) - set(whole.tolist()))
        context.warn(
            f"The layers {', '.join(map(str, blind))} attend over a window and do not see all of every prompt: they "
            f"are scored on what they see, and none of them is chosen as the filter."
        )
    return whole


def choose(found: FilterTrials, kept: Kept, whole: np.ndarray, config: Config, context: Context) -> FilterChoice:
    """The layer that filters each trial: the one that is asked for, or for every second needle the one with the highest
    needle recall on the others, the earliest of equals, and the other way round."""
    names, layer = found.names, np.full(len(found.trials), -1)
    if isinstance(config.filter_layer, int):
        layer[:] = config.filter_layer
        mean = float(kept.needle[:, config.filter_layer].mean())
        return FilterChoice(kept.k, layer, [(kept.k, 0, config.filter_layer, None, mean, 0, len(np.unique(names)))])
    needles = np.unique(names)
    if len(needles) < 2:
        context.warn(
            "There is one needle, so no layer can be chosen on another: nothing is answered from kept tokens; give "
            "more needles, or filter_layer."
        )
        return FilterChoice(kept.k, layer, [])
    rows = []
    for fold, start in enumerate((0, 1)):
        testing = np.isin(names, needles[start::2])
        recall = kept.needle[~testing].mean(0)[whole]
        best = int(whole[int(np.argmax(np.round(recall, 12)))])  # the first of equals: the cheapest
        layer[testing] = best
        rows.append(
            (
                kept.k,
                fold,
                best,
                float(recall.max()),
                float(kept.needle[testing, best].mean()),
                len(needles) - len(needles[start::2]),
                len(needles[start::2]),
            )
        )
    return FilterChoice(kept.k, layer, rows)


def choice_table(choices: Sequence[FilterChoice]) -> pl.DataFrame:
    return pl.DataFrame([row for choice in choices for row in choice.rows], schema=CHOICE, orient="row")


def spread(found: FilterTrials, wanted: int) -> list[int]:
    """At most `wanted` trials, as many of each needle as can be, each needle's evenly over the grid and not all at the
    same cells."""
    names, out = found.names, []
    needles = np.unique(names)
    for i, needle in enumerate(needles):
        own = np.flatnonzero(names == needle)
        share = min(len(own), wanted // len(needles) + (i < wanted % len(needles)))
        at = (np.arange(share) + (i + 0.5) / len(needles)) * len(own) / max(share, 1)
        out += own[at.astype(int)].tolist()
    return sorted(out)
