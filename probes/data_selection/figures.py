"""Figures of the data-selection probe: what was chosen, by which features, and how well against other ways to
choose."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl

from probes.data_selection.check_figures import effects, finetuning
from probes.data_selection.feature_figures import cards, feature_map, features, listed, quality
from workbench.core.errors import InputError
from workbench.figures import style as theme
from workbench.figures import traces
from workbench.figures.layout import dressed, sheet, ticks, x_axis, y_axis
from workbench.figures.point_map import map_figure
from workbench.figures.run_tables import drawn, finite, info, maybe, model_name, need, numbers

METHODS = {
    "sae": "SAE features",
    "neurons": "raw neurons",
    "hidden": "hidden state",
    "bm25": "BM25",
    "sae_plain": "SAE features, by score",
    "random": "random",
}
MAPS = 9  # panels of the map


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
        n=f"{frame['row'].n_unique()} rows",
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
    looks = _looks(methods)
    title = f"Precision of the selections, {model_name(run)}"
    names = [str(t) if len(targets) > 1 else "" for t in targets]
    n = f"{frame['k'].min()} to {frame['k'].max()} selected rows" if "k" in frame.columns else None
    if n and "n" in frame.columns and (own := frame.filter(pl.col("method") != "random")).height:
        n += f", {own['n'].min()} to {own['n'].max()} clusters of rows that say almost the same"
    note = "Dotted: share of such rows in the pool." if "base_rate" in frame.columns else ""
    note = " ".join(filter(None, [note, _told(run, len(targets)), _no_bars(frame)]))
    ratios = sorted(set(frame["ratio"].to_list()))
    several = len(ratios) > 1
    shares = {"tickvals": ratios, "ticktext": [f"{100 * ratio:.3g}%" for ratio in ratios]}
    told = {"title": title, "interval": "95 %, over those clusters (of random, over its draws)", "n": n, "note": note}
    if several:
        fig = sheet(names, x="selected share of the pool", y="precision", **told)
    else:
        rows = ticks(range(len(methods)), [_method(m) for m in methods], keep=True)
        fig = sheet(names, x="precision", aspect=0.1 * len(methods) + 0.1, row=1.3, y_ticks=rows, **told)
    for i, target in enumerate(targets):
        here = frame.filter(pl.col("target") == target)
        (_precision_curves if several else _precision_spots)(fig, i, here, looks)
        rates = y_axis(fig, i) if several else x_axis(fig, i)
        rates.update(range=[-0.04, 1.04], tickformat=".0%")
        if several:
            x_axis(fig, i).update(type="log", tickmode="array", **shares)
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
        text.format(", ".join(_method(m) for m in str(summary[key]).split(", ")))
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
    return f"{mean}, the selection by {_method(main)} is {listed} (95 % interval of the difference{over})."


def _no_bars(frame: pl.DataFrame) -> str:
    """Which points have no interval, and why."""
    none = frame.filter(pl.col("ci_low").is_null() | pl.col("ci_low").is_nan()).height
    return f"{none} points of fewer than five clusters have no interval." if none else ""


def _precision_curves(fig: go.Figure, i: int, here: pl.DataFrame, looks: dict[str, theme.Style]) -> None:
    """Precision of every method over the selected share, in one panel."""
    for method, style in looks.items():
        own = here.filter(pl.col("method") == method).sort("ratio")
        if not own.is_empty():
            traces.add_curve(
                fig,
                i,
                numbers(own, "ratio"),
                numbers(own, "precision"),
                name=_method(method),
                style=style,
                legend=i == 0,
                hover="%{x:.1%} selected: %{y:.1%}",
                low=numbers(own, "ci_low"),
                high=numbers(own, "ci_high"),
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
                name=_method(method),
                style=style,
                labels=[_method(method)],
                legend=False,
                low=numbers(own, "ci_low"),
                high=numbers(own, "ci_high"),
            )
    y_axis(fig, i).range = [len(looks) - 0.5, -0.5]


def overlap(run: Any) -> go.Figure:
    """How much of one method's selection another one shares."""
    frame = finite(need(run, "overlap", ("target", "method_a", "method_b", "overlap")), "overlap", what="overlap")
    frame, ratio = _at_ratio(frame, run)
    names = list(dict.fromkeys([*frame["method_a"].to_list(), *frame["method_b"].to_list()]))
    count = frame["target"].n_unique()
    if count > 4:  # one panel each would be unreadable
        keys = ["method_a", "method_b"]
        rest = [pl.col(c).mean() for c in ("overlap", "expected") if c in frame.columns]
        frame = frame.group_by(keys, maintain_order=True).agg(*rest).with_columns(target=pl.lit("all"))
    targets = frame["target"].unique(maintain_order=True).to_list()
    expected = f" Two random choices share {frame['expected'].max():.1%}." if "expected" in frame.columns else ""
    axis_ticks = ticks(range(len(names)), [_method(m) for m in names], keep=True)
    fig = sheet(
        [str(t) if len(targets) > 1 else "" for t in targets],
        title="How far the methods choose the same rows",
        x_ticks=axis_ticks,
        y_ticks=axis_ticks,
        aspect=0.8,
        cells=(len(names), len(names)),
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
                custom[r, c] = [traces.safe(_method(a)), traces.safe(_method(b)), values[r, c]]
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
    frame, ratio = _at_ratio(frame, run)
    targets, methods = (frame[c].unique(maintain_order=True).to_list() for c in ("target", "method"))
    fig = sheet(
        [str(t) if len(targets) > 1 else "" for t in targets],
        title="Length of the selected rows",
        x="mean length (tokens)",
        y_ticks=ticks(range(len(methods)), [_method(m) for m in methods], keep=True),
        row=1.3,
        aspect=0.1 * len(methods) + 0.1,
        note=(f"{100 * ratio:.3g} % of the pool selected. " if ratio else "")
        + "Dashed: examples of the target. Dotted: the pool.",
    )
    looks = _looks(methods)
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
                    name=_method(method),
                    style=looks[method],
                    labels=[_method(method)],
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
    looks = _looks([main, *methods])
    fig = sheet(
        [str(t) if len(targets) > 1 else "" for t in targets],
        title=f"Rows that {_method(main)} shares with the other methods, {model_name(run)}",
        x="selected share of the pool",
        y="common rows",
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
                name=_method(method),
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


def _method(name: Any) -> str:
    return METHODS.get(str(name), str(name).replace("_", " "))


def _looks(methods: list[str]) -> dict[str, theme.Style]:
    """Hues in order, random in grey."""
    looks = theme.sequence([m for m in methods if m != "random"])
    return {m: looks.get(m, theme.Style(theme.NEUTRAL, "dash", "x")) for m in methods}


def _at_ratio(frame: pl.DataFrame, run: Any) -> tuple[pl.DataFrame, float | None]:
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
