"""Figures of which places are alike: layers of a checkpoint, and checkpoints of a training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl

from workbench.core.errors import InputError
from workbench.figures import traces
from workbench.figures.layout import dressed, sheet, ticks
from workbench.figures.run_tables import model_name, need, numbers


def similarity_of_layers(run: Any) -> go.Figure:
    """CKA of every two layers of the last checkpoint."""
    frame = need(run, "similarity", ("checkpoint_a", "checkpoint_b", "layer_a", "layer_b", "value", "null_high"))
    frame = frame.filter(pl.col("checkpoint_a") == pl.col("checkpoint_b"))
    if frame.is_empty():
        raise InputError("One layer was measured: there are no layers to compare.")
    key = frame["checkpoint_a"][-1]
    several = f", {key}" if frame["checkpoint_a"].n_unique() > 1 else ""
    frame = frame.filter(pl.col("checkpoint_a") == key)
    places = sorted({*frame["layer_a"], *frame["layer_b"]})
    title = f"Similarity of the layers of {model_name(run)}{several}"
    return _pairs(frame, "layer", places, [str(place) for place in places], title=title, x="layer")


def similarity_of_checkpoints(run: Any) -> go.Figure:
    """CKA of the last layer at every two checkpoints."""
    frame = need(run, "similarity", ("checkpoint_a", "checkpoint_b", "layer_a", "layer_b", "value", "null_high"))
    frame = frame.filter(pl.col("checkpoint_a") != pl.col("checkpoint_b"))
    if frame.is_empty():
        raise InputError("One checkpoint was measured: there are none to compare.")
    places = list(dict.fromkeys([*frame["checkpoint_a"], *frame["checkpoint_b"]]))
    steps = dict(zip(frame["checkpoint_a"], frame["step_a"])) | dict(zip(frame["checkpoint_b"], frame["step_b"]))
    stepped = all(step is not None for step in steps.values())
    names = [str(steps[place]) if stepped else str(place).rstrip("/").rsplit("/", 1)[-1] for place in places]
    title = f"Similarity of the checkpoints of {model_name(run)}, layer {frame['layer_a'][0]}"
    return _pairs(frame, "checkpoint", places, names, title=title, x="training step" if stepped else "checkpoint")


def _pairs(
    frame: pl.DataFrame, of: str, places: Sequence[int | str], names: Sequence[str], *, title: str, x: str
) -> go.Figure:
    """A cell for every two places, the same on both sides of the diagonal; outlined where texts in another order are as
    alike."""
    where = {place: number for number, place in enumerate(places)}
    shape = (len(places), len(places))
    values, null, low, high = np.eye(len(places)), *(np.full(shape, np.nan) for _ in range(3))
    for number, row in enumerate(frame.iter_rows(named=True)):
        a, b = where[row[f"{of}_a"]], where[row[f"{of}_b"]]
        for table, column in ((values, "value"), (null, "null_high"), (low, "low"), (high, "high")):
            table[a, b] = table[b, a] = numbers(frame, column)[number]
    by_chance = np.nan_to_num(values) <= np.nan_to_num(null, nan=-np.inf)
    pairs = frame.filter(pl.col("value").is_not_null()).height
    found = int(np.triu(by_chance, 1).sum())
    note = (
        f"Outlined: pairs that are no more alike than texts in another order ({found} of {pairs} pairs)"
        if found
        else ("Every pair is more alike than texts in another order")
    )
    fig = sheet(
        title=title,
        x=x,
        y=x,
        x_ticks=ticks(range(len(places)), names),
        y_ticks=ticks(range(len(places)), names),
        aspect=0.9,
        cells=shape,
        note=f"{note}, beyond whose range (97.5 %) {0.025 * pairs:.2g} of {pairs} lie by chance",
        n=f"{frame['n'].max()} texts",
    )
    label = np.array(names, dtype=object)
    custom = np.stack([*np.broadcast_arrays(label[:, None], label[None]), low, high, null, values], axis=-1)
    hover = f"{x} %{{customdata[0]}} and %{{customdata[1]}}: %{{customdata[5]:.3f}}<br>95 %: %{{customdata[2]:.3f}} to "
    hover += "%{customdata[3]:.3f}<br>texts in another order, up to %{customdata[4]:.3f}"
    ends = (min(0.0, float(np.nanmin(values))), 1.0)
    traces.colour_scale(fig, ends, "CKA (unbiased)")
    traces.add_cells(fig, 0, values, custom=custom, hover=hover, ends=ends, marked=by_chance)
    return dressed(fig)
