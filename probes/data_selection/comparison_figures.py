"""Figures that hold the ways to choose against each other: rows in common, and how long they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl

from workbench.core.errors import InputError
from workbench.figures import style as theme
from workbench.figures import traces
from workbench.figures.layout import dressed, sheet, ticks, x_axis, y_axis
from workbench.figures.run_tables import finite, info, model_name, need, numbers

METHODS = {
    "sae": "SAE features",
    "neurons": "raw neurons",
    "hidden": "hidden state",
    "bm25": "BM25",
    "sae_plain": "SAE, by score",
    "random": "random",
}

SHORT = {"sae": "SAE", "neurons": "neurons", "hidden": "hidden", "sae_plain": "by score"}  # under narrow panels


def overlap(run: Any) -> go.Figure:
    """How much of one method's selection another one shares."""
    frame = finite(need(run, "overlap", ("target", "method_a", "method_b", "overlap")), "overlap", what="overlap")
    frame, ratio = at_ratio(frame, run)
    names = list(dict.fromkeys([*frame["method_a"].to_list(), *frame["method_b"].to_list()]))
    count, counted = frame["target"].n_unique(), frame.filter(pl.col("method_b") != "random")
    if count > 4:  # one panel each would be unreadable
        keys = ["method_a", "method_b"]
        rest = [pl.col(c).mean() for c in ("overlap", "expected") if c in frame.columns]
        frame = frame.group_by(keys, maintain_order=True).agg(*rest).with_columns(target=pl.lit("all"))
    targets = frame["target"].unique(maintain_order=True).to_list()
    expected = f" Two random choices share {frame['expected'].max():.1%}." if "expected" in frame.columns else ""
    axis_ticks = ticks(range(len(names)), [method_name(m) for m in names], keep=True)
    fig = sheet(
        [str(t) if len(targets) > 1 else "" for t in targets],
        title="How far the methods choose the same rows",
        x_ticks=ticks(range(len(names)), [SHORT.get(m, method_name(m)) for m in names], keep=True),
        y_ticks=axis_ticks,
        aspect=0.8,
        cells=(len(names), len(names)),
        **clusters_and_rows(counted),
        note=(f"Share of common rows when {100 * ratio:.3g} % are selected." if ratio else "")
        + expected
        + (f" Mean over {count} targets." if count > 4 else ""),
    )
    traces.colour_scale(fig, (0.0, 1.0), "shared share")
    for i, target in enumerate(targets):
        values = np.full((len(names), len(names)), np.nan)
        np.fill_diagonal(values, 1.0)
        for a, b, v in frame.filter(pl.col("target") == target).select("method_a", "method_b", "overlap").iter_rows():
            values[names.index(a), names.index(b)] = values[names.index(b), names.index(a)] = v
        custom = np.empty((*values.shape, 3), dtype=object)
        for r, a in enumerate(names):
            for c, b in enumerate(names):
                custom[r, c] = [traces.safe(method_name(a)), traces.safe(method_name(b)), values[r, c]]
        labels = np.vectorize(lambda v: f"{v:.2f}".replace("0.", ".") if np.isfinite(v) else "")(values)
        traces.add_cells(
            fig,
            i,
            values,
            custom=custom,
            hover="%{customdata[0]} and %{customdata[1]}: %{customdata[2]:.1%}",
            ends=(0.0, 1.0),
            labels=labels,
            reverse=True,
        )
    return dressed(fig)


def lengths(run: Any) -> go.Figure:
    """Mean length of what each method selects: does it only pick long rows?"""
    frame = finite(need(run, "lengths", ("target", "method", "mean")), "mean", what="length")
    frame, ratio = at_ratio(frame, run)
    targets, methods = (frame[c].unique(maintain_order=True).to_list() for c in ("target", "method"))
    fig = sheet(
        [str(t) if len(targets) > 1 else "" for t in targets],
        title="Length of the selected rows",
        x="mean length (tokens)",
        y_ticks=ticks(range(len(methods)), [method_name(m) for m in methods], keep=True),
        row=1.3,
        aspect=0.1 * len(methods) + 0.1,
        **clusters_and_rows(frame.filter(pl.col("method") != "random")),
        note=(f"{100 * ratio:.3g} % of the pool selected. " if ratio else "")
        + "Dashed: examples of the target. Dotted: the pool.",
    )
    looks = method_looks(methods)
    none = [np.nan]
    for i, target in enumerate(targets):
        here = frame.filter(pl.col("target") == target)
        for j, method in enumerate(methods):
            own = here.filter(pl.col("method") == method)
            if not own.is_empty():
                traces.add_spots(
                    fig,
                    i,
                    numbers(own, "mean")[:1],
                    [j],
                    low=none,
                    high=none,
                    name=method_name(method),
                    style=looks[method],
                    labels=[method_name(method)],
                    legend=False,
                )
        for column, dash in (("target_mean", "dash"), ("pool_mean", "dot")):
            if column in here.columns and here[column][0] is not None:
                traces.add_rule(fig, i, x=float(here[column][0]), dash=dash)
        y_axis(fig, i).range = [len(methods) - 0.5, -0.5]
        every = np.concatenate([numbers(frame, c) for c in ("mean", "target_mean", "pool_mean")])
        x_axis(fig, i).range = [0, 1.08 * float(np.nanmax(every))]
    return dressed(fig)


def overlap_by_ratio(run: Any) -> go.Figure:
    """How much of the selection each other method shares, by how much is selected."""
    frame = finite(
        need(run, "overlap", ("target", "ratio", "method_a", "method_b", "overlap", "expected")),
        "overlap",
        what="overlap",
    )
    main = frame["method_a"][0]
    # what chance shares is known, and drawn
    frame = frame.filter(pl.col("method_a") == main, pl.col("method_b") != "random")
    if frame.is_empty():
        raise InputError("The run compares with nothing but chance: there is no overlap to draw.")
    ratios = sorted(set(frame["ratio"].to_list()))
    if len(ratios) < 2:
        raise InputError("The run has one size of selection only: there is nothing to draw over it.")
    targets, methods = (frame[c].unique(maintain_order=True).to_list() for c in ("target", "method_b"))
    looks = method_looks([main, *methods])
    fig = sheet(
        [str(t) if len(targets) > 1 else "" for t in targets],
        title=f"Rows that {method_name(main)} shares with the other methods, {model_name(run)}",
        x="selected share of the pool",
        y="common rows",
        **clusters_and_rows(frame),
        note="Dotted: what two random choices share.",
    )
    for i, target in enumerate(targets):
        here = frame.filter(pl.col("target") == target).sort("ratio")
        for method in methods:
            own = here.filter(pl.col("method_b") == method)
            traces.add_curve(
                fig,
                i,
                numbers(own, "ratio"),
                numbers(own, "overlap"),
                name=method_name(method),
                style=looks[method],
                legend=i == 0,
                hover="%{x:.1%} selected: %{y:.1%}",
            )
        chance = here.unique("ratio", keep="first").sort("ratio")
        traces.add_curve(
            fig,
            i,
            numbers(chance, "ratio"),
            numbers(chance, "expected"),
            name="two random choices",
            style=theme.Style(theme.NEUTRAL, "dot"),
            legend=i == 0,
            hover="%{x:.1%} selected: %{y:.1%}",
        )
        y_axis(fig, i).update(range=[-0.04, 1.04], tickformat=".0%")
        x_axis(fig, i).update(
            type="log", tickmode="array", tickvals=ratios, ticktext=[f"{100 * r:.3g}%" for r in ratios]
        )
    return dressed(fig)


def method_name(name: Any) -> str:
    return METHODS.get(str(name), str(name).replace("_", " "))


def method_looks(methods: list[str]) -> dict[str, theme.Style]:
    """Hues in order, random in grey."""
    looks = theme.sequence([m for m in methods if m != "random"])
    return {m: looks.get(m, theme.Style(theme.NEUTRAL, "dash", "x")) for m in methods}


def at_ratio(frame: pl.DataFrame, run: Any) -> tuple[pl.DataFrame, float | None]:
    """The rows at the size that the run selected (or the nearest), and its share of the pool."""
    if "ratio" not in frame.columns:
        return frame, None
    k = info(run, "config", "k", default=None)
    if k is not None and "k" in frame.columns:
        near = min(set(frame.select("k", "ratio").iter_rows()), key=lambda pair: (abs(pair[0] - k), pair[1]))[1]
    else:
        wanted = info(run, "config", "ratio", default=0.05)
        near = min(set(frame["ratio"].to_list()), key=lambda r: abs(r - wanted))
    return frame.filter(pl.col("ratio") == near), near


def clusters_and_rows(frame: pl.DataFrame) -> dict[str, str | None]:
    """What a caption says of n: the clusters of rows behind the numbers of a table, and the rows."""
    if not {"n", "rows"} <= set(frame.columns):
        return {}
    ends = {column: sorted({frame[column].min(), frame[column].max()}) for column in ("n", "rows")}
    said = {column: " to ".join(f"{value}" for value in some) for column, some in ends.items()}
    return {"n": f"{said['n']} clusters of rows that say almost the same", "rows": said["rows"]}


def clusters_of_pool(run: Any) -> dict[str, Any]:
    """The same of the whole pool."""
    summary = run.summary or {}
    if not summary.get("pool_clusters"):
        return {}
    return {"n": f"{summary['pool_clusters']} clusters of pool rows that say almost the same", "rows": summary["pool"]}
