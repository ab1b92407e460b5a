"""Figures of what `also` measures, each beside its null: intrinsic dimension, and which places are alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl

from probes.representation_geometry.training_steps import step_axis
from workbench.core.errors import InputError
from workbench.figures import style as theme
from workbench.figures import traces
from workbench.figures.layout import dressed, sheet, ticks
from workbench.figures.run_tables import finite, model_name, need, numbers

MEASURED, HALF, NULL = theme.Style(theme.BLUE), theme.Style(theme.BLUE, "dot", "circle-open"), theme.Style(theme.OCHRE)


@dataclass(frozen=True)
class Line:
    """A curve of a panel: the column it is of, those of its ends, its name and how it is drawn."""

    column: str
    name: str
    style: theme.Style
    low: str = ""
    high: str = ""


def dimension(run: Any) -> go.Figure:
    """Intrinsic dimension over layers (over training where there is one layer), at all and at half of the texts, beside
    that of Gaussian states with the same covariance."""
    frame = finite(need(run, "dimension", ("layer", "two_nn", "mle")), "two_nn", what="intrinsic dimension")
    k = frame["k"][-1]
    panels = {}
    for column, title in (("two_nn", "two neighbours"), ("mle", f"{k} neighbours")):
        panels[title] = [
            Line(column, "all texts", MEASURED, f"{column}_low", f"{column}_high"),
            Line(f"{column}_half", "half of the texts", HALF),
            Line(f"{column}_null", "Gaussian, same covariance", NULL, f"{column}_null_low", f"{column}_null_high"),
        ]
    return courses(
        frame,
        panels,
        title=f"Intrinsic dimension of the states of {model_name(run)}",
        y="intrinsic dimension",
        note="Both estimates are too low where the dimension is high, and depend on the number of texts",
        interval="95 % of random halves of the texts; of Gaussian states, the middle 95 % of the draws",
    )


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


def courses(
    frame: pl.DataFrame,
    panels: dict[str, Sequence[Line]],
    *,
    title: str,
    y: str | Sequence[str],
    note: str,
    interval: str,
) -> go.Figure:
    """Panels of curves over the layers of the last checkpoint, or over training where one layer was measured. Raises
    InputError for a single layer of a single checkpoint."""
    last = frame.filter(pl.col("checkpoint") == frame["checkpoint"][-1]).sort("layer")
    over_layers = last["layer"].n_unique() > 1
    if over_layers:
        several = frame["checkpoint"].n_unique() > 1
        own, where = last, f", {last['checkpoint'][0]}" if several else ""
    else:
        own, where = frame.filter(pl.col("step").is_not_null()).sort("step"), f", layer {last['layer'][0]}"
        if own["step"].n_unique() < 2:
            raise InputError("One layer of one checkpoint was measured: there is no course to draw.")
    fig = sheet(
        list(panels),
        title=title + where,
        x="layer" if over_layers else "training step",
        y=y,
        x_ticks=ticks(range(int(own["layer"].max()) + 1)) if over_layers else None,
        share_y=isinstance(y, str),
        aspect=0.75,
        note=note + last_point(own),
        interval=interval,
        n=f"{own['n'].max()} texts",
    )
    for i, lines in enumerate(panels.values()):
        at = numbers(own, "layer") if over_layers else step_axis(fig, i, numbers(own, "step"))(numbers(own, "step"))
        for line in lines:
            if not np.isfinite(numbers(own, line.column)).any():
                continue
            traces.add_curve(
                fig,
                i,
                at,
                numbers(own, line.column),
                name=line.name,
                style=line.style,
                legend=i == 0,
                low=numbers(own, line.low) if line.low else None,
                high=numbers(own, line.high) if line.high else None,
                hover=("layer" if over_layers else "step") + " %{x}: %{y:.4g}",
            )
    return dressed(fig)


def last_point(frame: pl.DataFrame) -> str:
    """For a note: where the last layer was read, as far as the table says so."""
    if "site" not in frame.columns:
        return ""
    final = frame.filter(pl.col("layer") == frame["layer"].max())["site"][-1] == "final_norm"
    return f". The last layer is read {'after' if final else 'before'} the final norm"
