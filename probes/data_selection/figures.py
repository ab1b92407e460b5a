"""Figures of the data-selection probe: what was chosen, by which features, and how well against other ways to
choose."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl

from probes.data_selection.check_figures import effects, finetuning
from probes.data_selection.comparison_figures import (
    clusters_of_pool,
    lengths,
    method_looks,
    method_name,
    overlap,
    overlap_by_ratio,
)
from probes.data_selection.feature_figures import cards, feature_map, features, listed, quality
from workbench.figures import style as theme
from workbench.figures import traces
from workbench.figures.layout import dressed, sheet, ticks, x_axis, y_axis
from workbench.figures.point_map import map_figure
from workbench.figures.run_tables import drawn, finite, info, maybe, model_name, need, numbers

MAPS = 9  # panels of the map
SIDE = 0.09  # between the methods at one share


def scores(run: Any) -> go.Figure:
    """How similar the pool is to every target, and where the selection cuts."""
    frame = finite(need(run, "scores", ("row", "target", "score", "selected")), "score", what="similarity")
    targets = frame["target"].unique(maintain_order=True).to_list()
    cuts = {t: frame.filter((pl.col("target") == t) & pl.col("selected"))["score"].min() for t in targets}
    many = len(targets) > 2  # no room for words in the panels
    names = [f"{t}, cut {traces.number(cuts[t])}" if many and cuts[t] is not None else str(t) for t in targets]
    fig = sheet(
        names if len(targets) > 1 else [""],
        title=f"Similarity of the pool to the target, {model_name(run)}",
        x=_similarity(run),
        y="share of rows",
        share_y=False,
        aspect=0.7,
        **(clusters_of_pool(run) or {"n": f"{frame['row'].n_unique()} rows"}),
    )
    values = numbers(frame, "score")
    edges = np.linspace(values.min(), max(values.max(), values.min() + 1e-9), 51)
    for i, target in enumerate(targets):
        own = frame.filter(pl.col("target") == target)
        chosen = own.filter(pl.col("selected"))
        for name, data, style in (
            ("pool", own, theme.Style(theme.NEUTRAL)),
            ("selected", chosen, theme.Style(theme.BLUE)),
        ):
            if data.is_empty():
                continue
            heights = np.histogram(numbers(data, "score"), edges)[0] / own.height
            x, y = np.repeat(edges, 2), np.concatenate([[0], np.repeat(heights, 2), [0]])
            fig.add_scatter(
                x=x,
                y=y,
                mode="lines",
                fill="tozeroy",
                name=name,
                legendgroup=name,
                showlegend=i == 0,
                line={"color": style.colour},
                fillcolor=theme.alpha(style.colour, 0.3),
                hovertemplate="%{x:.3g}: %{y:.2%}<extra>" + name + "</extra>",
                xaxis=f"x{i + 1 if i else ''}",
                yaxis=f"y{i + 1 if i else ''}",
            )
        if not chosen.is_empty():
            cut = float(numbers(chosen, "score").min())
            where = "right" if cut < (edges[0] + edges[-1]) / 2 else "left"
            text = "" if many else f"cut {traces.number(cut)}: {chosen.height} rows ({chosen.height / own.height:.1%})"
            traces.add_rule(fig, i, x=cut, text=text, where=where)
        pad = 0.03 * (edges[-1] - edges[0])
        x_axis(fig, i).range = [edges[0] - pad, edges[-1] + pad]
        y_axis(fig, i).tickformat = ".0%"
    return dressed(fig)


def precision(run: Any) -> go.Figure:
    """Share of selected rows that are of the target's kind, by method and by how much is selected."""
    frame = finite(
        need(run, "precision", ("target", "method", "ratio", "precision", "ci_low", "ci_high")),
        "precision",
        what="precision",
    )
    methods, targets = (frame[c].unique(maintain_order=True).to_list() for c in ("method", "target"))
    looks = method_looks(methods)
    title = f"Precision of the selections, {model_name(run)}"
    names = [str(t) if len(targets) > 1 else "" for t in targets]
    n = rows = f"{frame['k'].min()} to {frame['k'].max()}" if "k" in frame.columns else None
    if n and "n" in frame.columns and (own := frame.filter(pl.col("method") != "random")).height:
        n = f"{own['n'].min()} to {own['n'].max()} clusters of rows that say almost the same"
    elif n:
        n, rows = f"{n} selected rows", None
    note = "Dotted: share of such rows in the pool." if "base_rate" in frame.columns else ""
    note = " ".join(filter(None, [note, _told(run, len(targets)), _no_bars(frame)]))
    ratios = sorted(set(frame["ratio"].to_list()))
    several = len(ratios) > 1
    shares = {"tickvals": list(range(len(ratios))), "ticktext": [f"{100 * ratio:.3g}%" for ratio in ratios]}
    told = {
        "title": title,
        "interval": "95 %, over those clusters (of random, over its draws)",
        "n": n,
        "rows": rows,
        "note": note,
    }
    if several:
        fig = sheet(names, x="selected share of the pool", y="precision", **told)
    else:
        rows = ticks(range(len(methods)), [method_name(m) for m in methods], keep=True)
        fig = sheet(names, x="precision", aspect=0.1 * len(methods) + 0.1, row=1.3, y_ticks=rows, **told)
    for i, target in enumerate(targets):
        here = frame.filter(pl.col("target") == target)
        (_precision_curves if several else _precision_spots)(fig, i, here, looks)
        rates = y_axis(fig, i) if several else x_axis(fig, i)
        rates.update(range=[-0.04, 1.04], tickformat=".0%")
        if several:
            x_axis(fig, i).update(tickmode="array", range=[-0.5, len(ratios) - 0.5], **shares)
        if "base_rate" in here.columns:
            base = float(here["base_rate"][0])
            traces.add_rule(fig, i, dash="dot", **({"y": base} if several else {"x": base}))
    return dressed(fig)


def _told(run: Any, targets: int) -> str:
    """Which methods the main one selects better than, worse than, or cannot be told from."""
    summary = run.summary or {}
    words = {
        "better_than": "better than {}",
        "worse_than": "worse than {}",
        "not_better_than": "neither shown better nor worse than {}",
    }
    said = [
        text.format(", ".join(method_name(m) for m in str(summary[key]).split(", ")))
        for key, text in words.items()
        if summary.get(key)
    ]
    if not said:
        return ""
    main = str(summary.get("method", "sae"))
    one = next((value for key, value in summary.items() if key.startswith(f"{main}_minus_")), {})
    over = f" over {one['n']} clusters" if one.get("n") else ""
    mean = f"On average over {targets} targets" if targets > 1 else "Here"
    listed = "; ".join(said)
    return f"{mean}, the selection by {method_name(main)} is {listed} (95 % interval of the difference{over})."


def _no_bars(frame: pl.DataFrame) -> str:
    """Which points have no interval, and why."""
    none = frame.filter(pl.col("ci_low").is_null() | pl.col("ci_low").is_nan()).height
    return f"{none} points of fewer than five clusters have no interval." if none else ""


def _precision_curves(fig: go.Figure, i: int, here: pl.DataFrame, looks: dict[str, theme.Style]) -> None:
    """Precision of every method at each selected share, in one panel, the methods side by side: bands would hide each
    other."""
    place = {ratio: at for at, ratio in enumerate(sorted(set(here["ratio"].to_list())))}
    for j, (method, style) in enumerate(looks.items()):
        own = here.filter(pl.col("method") == method).sort("ratio")
        if own.is_empty():
            continue
        value, low, high = (numbers(own, column) for column in ("precision", "ci_low", "ci_high"))
        x = [place[ratio] + SIDE * (j - (len(looks) - 1) / 2) for ratio in own["ratio"]]
        traces.add_curve(fig, i, x, value, name=method_name(method), style=style, legend=i == 0, markers=True)
        ends = zip(own["ratio"], value, low, high)
        fig.data[-1].update(
            line={"width": 1},
            error_y={
                "type": "data",
                "symmetric": False,
                "array": np.clip(high - value, 0, None),
                "arrayminus": np.clip(value - low, 0, None),
                "color": style.colour,
                "width": 0,
            },
            text=[
                f"{r:.3%} selected: {v:.1%}" + (f" [{a:.1%}, {b:.1%}]" if np.isfinite(a) else "") for r, v, a, b in ends
            ],
            hovertemplate=f"%{{text}}<extra>{traces.safe(method_name(method))}</extra>",
        )


def _precision_spots(fig: go.Figure, i: int, here: pl.DataFrame, looks: dict[str, theme.Style]) -> None:
    """Precision of every method where one share was selected, in one panel."""
    for j, (method, style) in enumerate(looks.items()):
        own = here.filter(pl.col("method") == method)
        if not own.is_empty():
            traces.add_spots(
                fig,
                i,
                numbers(own, "precision"),
                [j],
                name=method_name(method),
                style=style,
                labels=[method_name(method)],
                legend=False,
                low=numbers(own, "ci_low"),
                high=numbers(own, "ci_high"),
            )
    y_axis(fig, i).range = [len(looks) - 0.5, -0.5]


def embedding(run: Any) -> go.Figure:
    """Map of the pool, one panel per target, coloured by the score (optional table ``map``: row, x, y[, method])."""
    frame = need(run, "map", ("x", "y"))
    scored = maybe(run, "scores", ("row", "target", "score"))
    if "method" in frame.columns:
        frame = frame.filter(pl.col("method") == frame["method"][0])
    title, n = f"Map of the pool, {model_name(run)}", f"{frame.height} rows"
    if scored is None or "row" not in frame.columns:
        return map_figure([("", frame)], colour=None, title=title, n=n)
    targets = scored["target"].unique(maintain_order=True).to_list()
    shown = targets[:MAPS]
    maps = [
        (
            "" if len(targets) == 1 else str(t),
            frame.join(scored.filter(pl.col("target") == t).select("row", "score"), on="row", how="left"),
        )
        for t in shown
    ]
    label = f"similarity to {targets[0]}" if len(targets) == 1 else "similarity to the target"
    if len(targets) > MAPS:
        title += f" (the first {MAPS} of {len(targets)} targets)"
    return map_figure(maps, colour="score", label=label, title=title, n=n)


FIGURES = {
    "scores": scores,
    "precision": precision,
    "overlap": overlap,
    "overlap_by_ratio": overlap_by_ratio,
    "features": features,
    "feature_map": feature_map,
    "cards": cards,
    "listed": listed,
    "lengths": lengths,
    "feature_effects": effects,
    "finetuning": finetuning,
    "embedding": embedding,
    "quality": quality,
}


def figures(run: Any) -> dict[str, go.Figure]:
    """Every figure that the tables of the run allow."""
    return drawn(run, FIGURES)


def _similarity(run: Any) -> str:
    method = str((run.summary or {}).get("method", "sae"))
    if method == "hidden":
        return "cosine similarity of hidden states"
    if method in ("bm25", "random"):
        return {"bm25": "BM25 score", "random": "random number"}[method]
    names = {
        "jaccard": "generalised Jaccard similarity",
        "cosine": "cosine similarity",
        "euclidean": "negative Euclidean distance",
    }
    return names.get(str(info(run, "config", "similarity", default="")), "similarity")
