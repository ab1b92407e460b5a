"""Figures of spectra: eigenvalues with their power law, and how much of RankMe is the number of texts."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl

from probes.representation_geometry.figure_parts import last_point, ordered, texts_of
from workbench.core.errors import InputError
from workbench.figures import style as theme
from workbench.figures import traces
from workbench.figures.layout import dressed, sheet, x_axis, y_axis
from workbench.figures.run_tables import finite, info, maybe, model_name, need, numbers


def spectrum(run: Any) -> go.Figure:
    """Eigenvalues against rank, both logarithmic, with the fitted power law; one panel per checkpoint or layer."""
    frame = finite(need(run, "spectrum", ("checkpoint", "layer", "rank", "eigenvalue")), "eigenvalue", what="spectrum")
    frame = frame.filter(pl.col("eigenvalue") > 0)
    if frame.is_empty():
        raise InputError("There is no spectrum to draw: no eigenvalue is positive.")
    keys = list(dict.fromkeys(frame["checkpoint"].to_list()))
    chosen = frame["layer"].max()
    over_layers = len(keys) == 1
    names = sorted(set(frame["layer"].to_list())) if over_layers else keys
    colours = ordered(len(names))
    measured = maybe(run, "layers", ("checkpoint", "layer", "alpha", "alpha_intercept"))
    first, last = _fit_range(run, measured)
    fig = sheet(
        title=f"Spectrum of the representations of {model_name(run)}" + ("" if over_layers else f", layer {chosen}"),
        x="rank",
        y="eigenvalue (share of the total)",
        aspect=0.75,
        note=". ".join(
            filter(None, [f"Dashed: the power law fitted to ranks {first} to {last}", last_point(measured)])
        ),
        n=texts_of(measured) if measured is not None else None,
    )
    totals = frame.group_by("checkpoint", "layer").agg(total=pl.col("eigenvalue").sum())
    frame = frame.join(totals, on=["checkpoint", "layer"]).with_columns(share=pl.col("eigenvalue") / pl.col("total"))
    drawn_layers = names if len(names) <= 6 else [names[round(j)] for j in np.linspace(0, len(names) - 1, 6)]
    told = []
    for name, colour in zip(names, colours):
        if name not in drawn_layers:
            continue
        key, layer = (keys[0], name) if over_layers else (name, chosen)
        own = frame.filter((pl.col("checkpoint") == key) & (pl.col("layer") == layer)).sort("rank")
        rank, share = numbers(own, "rank"), numbers(own, "share")
        label = f"layer {name}" if over_layers else str(name)
        traces.add_curve(
            fig, 0, rank, share, name=label, style=theme.Style(colour), markers=False, hover="rank %{x}: %{y:.3g}"
        )
        fit = _fit(measured, key, layer)
        inside = (rank >= first) & (rank <= last)
        if fit is not None and inside.sum() > 1:
            alpha, level = fit[0], fit[1] - np.log(float(own["total"][0]))  # the line is drawn in shares
            told.append(f"{traces.safe(label)}: α = {alpha:.2f}" + (f", R² = {fit[2]:.3f}" if fit[2] == fit[2] else ""))
            x = np.array([rank[inside].min(), rank[inside].max()])
            fig.add_scatter(
                x=x,
                y=np.exp(level - alpha * np.log(x)),
                mode="lines",
                line={"color": theme.RED, "dash": "dash"},
                showlegend=False,
                name=traces.safe(f"{label}: fit"),
                hovertemplate=f"{traces.safe(label)}: α = {alpha:.3f}<extra></extra>",
                xaxis="x",
                yaxis="y",
            )
    traces.add_note(fig, 0, "<br>".join(told), x=0.0, y=0.0)
    traces.log_axis(x_axis(fig, 0), numbers(frame, "rank"))
    traces.log_axis(y_axis(fig, 0), numbers(frame, "share"))
    return dressed(fig)


def samples(run: Any) -> go.Figure:
    """RankMe against the number of texts: how much of it is the sample."""
    frame = finite(need(run, "curve", ("checkpoint", "layer", "n", "rankme")), "rankme", what="RankMe")
    frame = frame.filter(pl.col("checkpoint") == frame["checkpoint"][-1])
    if frame["n"].n_unique() < 2:
        raise InputError("The table 'curve' has one number of texts only: there is no curve to draw.")
    keys = sorted(set(frame["layer"].to_list()))
    shown = keys if len(keys) <= 6 else [keys[round(j)] for j in np.linspace(0, len(keys) - 1, 6)]
    whole = maybe(run, "layers", ("checkpoint", "layer", "rankme_inf"))
    if whole is not None:
        whole = whole.filter(pl.col("checkpoint") == frame["checkpoint"][0])
    fig = sheet(
        title=f"RankMe of {model_name(run)} against the number of texts",
        x="texts",
        y="RankMe (covariance eigenvalues)",
        note=". ".join(filter(None, ["Dotted, and beside it: estimated at infinitely many texts", last_point(whole)])),
        interval="95 %, at all texts their spread (bootstrap over texts), which holds no bias of a finite sample; at "
        "infinitely many Student's t over the same draws",
        n=f"{frame['n'].max()} texts",
    )
    ends = [float(frame["n"].min()), float(frame["n"].max())]
    for key, colour in zip(shown, ordered(len(shown))):
        own, style = frame.filter(pl.col("layer") == key).sort("n"), theme.Style(colour)
        n, rankme, hover = numbers(own, "n"), numbers(own, "rankme"), "%{x} texts: %{y:.4g}"
        traces.add_curve(fig, 0, n, rankme, name=f"layer {key}", style=style, hover=hover)
        row = None if whole is None else whole.filter(pl.col("layer") == key)
        if row is None or row.is_empty():
            continue
        _point(fig, ends[1], row, ("rankme", "ci_low", "ci_high"), f"layer {key}", style)
        limit = float(numbers(row, "rankme_inf")[0])
        if np.isfinite(limit):
            name, dotted = f"layer {key}, infinitely many texts", theme.Style(colour, "dot", "diamond")
            traces.add_curve(fig, 0, ends, [limit] * 2, name=name, style=dotted, legend=False, markers=False)
            _point(fig, 1.05 * ends[1], row, ("rankme_inf", "rankme_inf_low", "rankme_inf_high"), name, dotted)
    return dressed(fig)


def _point(fig: go.Figure, x: float, row: pl.DataFrame, columns: tuple[str, str, str], name: str, style) -> None:
    """A point with its interval, where there is one."""
    value, low, high = (numbers(row, column)[:1] for column in columns)
    if np.isfinite([low, high]).all():
        traces.add_curve(fig, 0, [x], value, name=name, style=style, legend=False, low=low, high=high)


def _fit_range(run: Any, measured: pl.DataFrame | None) -> tuple[int, int]:
    value = info(run, "config", "fit_range")
    if measured is not None and {"fit_first", "fit_last"} <= set(measured.columns):
        used = measured.filter(pl.col("alpha").is_not_null() & pl.col("fit_first").is_not_null())
        value = (used["fit_first"][-1], used["fit_last"][-1]) if used.height else value
    try:
        first, last = (int(v) for v in value)
        return first, last
    except (TypeError, ValueError):
        return 12, 100


def _fit(measured: pl.DataFrame | None, checkpoint: str, layer: int) -> tuple[float, float, float] | None:
    """(alpha, ln eigenvalue at rank 1, R²) of the line that was fitted, whatever its weights were."""
    if measured is None:
        return None
    row = measured.filter((pl.col("checkpoint").cast(pl.String) == str(checkpoint)) & (pl.col("layer") == layer))
    found = [float(numbers(row, c)[0]) for c in ("alpha", "alpha_intercept", "alpha_r2")] if row.height else [np.nan]
    return (found[0], found[1], found[2]) if np.isfinite(found[:2]).all() else None
