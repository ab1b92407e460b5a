"""Figures of the token filter: which layers keep the needle, where it stands, and what is answered from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl

from workbench.core.errors import InputError
from workbench.figures import style as theme
from workbench.figures import traces
from workbench.figures.layout import dressed, sheet, ticks, x_axis
from workbench.figures.run_tables import drawn, finite, info, maybe, model_name, need, numbers
from workbench.stats.clusters import FEWEST

ARMS = {  # in the order of the bars
    "all": "all tokens",
    "filter": "filter",
    "filter_without_needle": "filter, needle cut",
    "recent": "most recent",
    "random_with_question": "random + question",
    "random": "random",
    "closed": "all, no needle",
}
OF_FILTER = ("filter", "filter_without_needle")
FEW_PANELS = 6


def layers(run: Any) -> go.Figure:
    """The share of the needle and the share of whole answers that every layer keeps, beside random sets."""
    frame = finite(need(run, "layers", ("layer", "k", "needle_recall", "answer_kept")), "needle_recall", what="recall")
    ks = _ks(frame)
    known = np.isfinite(numbers(frame, "ci_low")).any()
    fig = sheet(
        [f"{k:,} tokens kept" if len(ks) > 1 else "" for k in ks],
        title=f"What the layers of {model_name(run)} keep of a needle with {_kept_words(ks)}",
        x="filter layer",
        y="share kept",
        x_ticks=ticks(range(int(frame["layer"].max()) + 1)),
        aspect=0.62 if len(ks) == 1 else 0.8,
        interval=f"95 % over needles, as shares; dashed: random sets of as many tokens ({_draws(run)} draws)"
        if known
        else "",
        n=_counted(frame),
        note=(_windows(frame) + _chosen(run) + _why_none(known)).strip(),
    )
    looks = {
        "needle_recall": ("needle's tokens", theme.Style(theme.BLUE), "ci_low", "ci_high"),
        "answer_kept": ("whole answer", theme.Style(theme.OCHRE, "solid", "square"), "answer_low", "answer_high"),
        "recall_drawn": ("random set", theme.Style(theme.NEUTRAL, "dash", "diamond"), "drawn_low", "drawn_high"),
    }
    for i, k in enumerate(ks):
        own = frame.filter(pl.col("k") == k).sort("layer")
        for column, (name, style, low, high) in looks.items():
            if not np.isfinite(numbers(own, column)).any():
                continue
            traces.add_curve(
                fig,
                i,
                numbers(own, "layer"),
                numbers(own, column),
                name=name,
                style=style,
                low=numbers(own, low),
                high=numbers(own, high),
                legend=i == 0,
                markers=own.height <= traces.FEW and column != "recall_drawn",
                hover="layer %{x}: %{y:.3f}",
            )
        traces.level_axis(fig, i)
    return dressed(fig)


def places(run: Any) -> go.Figure:
    """The share of the needle that every layer keeps, by its depth; one panel per length."""
    columns = ("k", "layer", "length", "depth", "needle_recall", "rows")
    frame = finite(need(run, "places", columns), "needle_recall", what="recall")
    k = _ks(frame)[0]
    frame = frame.filter(pl.col("k") == k)
    lengths = sorted(frame["length"].unique().to_list())
    shown = lengths if len(lengths) <= FEW_PANELS else [lengths[i] for i in _even(len(lengths), FEW_PANELS)]
    depths, size = sorted(frame["depth"].unique().to_list()), int(frame["layer"].max()) + 1
    some = "" if len(shown) == len(lengths) else f" {len(shown)} of the {len(lengths)} lengths are shown."
    fig = sheet(
        [f"{n:,} tokens" for n in shown],
        title=f"Where {model_name(run)} keeps a needle, {k:,} tokens kept",
        x="needle depth (%)",
        y="filter layer",
        x_ticks=ticks(range(len(depths)), [f"{d:g}" for d in depths]),
        y_ticks=ticks(range(size)),
        aspect=min(1.5, max(0.6, size / max(len(depths), 1) / 3)),
        cells=(size, len(depths)),
        n=_counted(maybe(run, "layers")),
        note=f"Depth 0 is the beginning of the context.{some}" + _windows(maybe(run, "layers")),
    )
    traces.colour_scale(fig, (0.0, 1.0), "share kept")
    for i, length in enumerate(shown):
        values, counts = np.full((size, len(depths)), np.nan), np.zeros((size, len(depths)))
        cells = frame.filter(pl.col("length") == length).select("layer", "depth", "needle_recall", "rows")
        for layer, depth, value, count in cells.iter_rows():
            values[layer, depths.index(depth)], counts[layer, depths.index(depth)] = value, count
        d, y = np.meshgrid(depths, np.arange(size))
        traces.add_cells(
            fig,
            i,
            values,
            custom=np.stack([y, d, values, counts], axis=-1),
            hover="layer %{customdata[0]}, depth %{customdata[1]:.3g} %<br>%{customdata[2]:.3f} of the needle "
            "(%{customdata[3]} trials)",
            ends=(0.0, 1.0),
        )
    return dressed(fig)


def answers(run: Any) -> go.Figure:
    """Recall of the answers from the kept tokens, beside all tokens and other sets of the same size."""
    frame = finite(need(run, "rates", ("k", "arm", "recall", "ci_low", "ci_high")), "recall", what="recall")
    frame = frame.filter(pl.col("arm").is_in(list(ARMS)))
    ks = _ks(frame)
    known = np.isfinite(numbers(frame, "ci_low")).any()
    names = [arm for arm in ARMS if (frame["arm"] == arm).any()]
    fig = sheet(
        [f"{k:,} tokens kept" if len(ks) > 1 else "" for k in ks],
        title=f"What {model_name(run)} answers from {_kept_words(ks)}",
        x="recall of the answer",
        y="",
        y_ticks=ticks(range(len(names)), [ARMS[arm] for arm in names], keep=True),
        aspect=0.5 if len(ks) == 1 else 0.9,
        interval="95 % over needles, of random sets over their draws too" if known else "",
        n=_counted(frame),
        note=("The filter layer was chosen on other needles." * _held_out(run) + _why_none(known)).strip(),
    )
    for i, k in enumerate(ks):
        own = {row["arm"]: row for row in frame.filter(pl.col("k") == k).iter_rows(named=True)}
        there = [(at, own[arm]) for at, arm in enumerate(names) if arm in own]
        traces.add_bars(
            fig,
            i,
            [at for at, _ in there],
            [row["recall"] for _, row in there],
            name="recall",
            style=[_colour(row["arm"]) for _, row in there],
            low=_ends(there, "ci_low"),
            high=_ends(there, "ci_high"),
            horizontal=True,
            legend=False,
            width=0.7,
        )
        x_axis(fig, i).range = [0, 1.04]
        fig.layout["yaxis" if i == 0 else f"yaxis{i + 1}"].range = [len(names) - 0.4, -0.6]
    return dressed(fig)


def agreement(run: Any) -> go.Figure:
    """The share of the needle that a layer keeps against the highest retrieval score of its heads."""
    columns = ("layer", "k", "needle_recall", "retrieval_score")
    frame = finite(need(run, "layers", columns), "retrieval_score", what="retrieval score")
    ks = _ks(frame)
    said = need(run, "agreement", ("k", "correlation", "ci_low", "ci_high"))
    found = {row["k"]: row for row in said.iter_rows(named=True)}
    fig = sheet(
        [f"{k:,} tokens kept" if len(ks) > 1 else "" for k in ks],
        title=f"Keeping and retrieving a needle, by layer of {model_name(run)}",
        x="highest retrieval score of a head of the layer",
        y="share of the needle kept",
        aspect=0.7,
        n=_counted(frame),
        note=" ".join(_in_words(found[k]) for k in ks if k in found),
    )
    for i, k in enumerate(ks):
        own = frame.filter(pl.col("k") == k)
        if "sees_all" in own.columns:
            own = own.filter(pl.col("sees_all"))
        rows = own.select("layer", "retrieval_score", "needle_recall").iter_rows()
        traces.add_points(
            fig,
            i,
            numbers(own, "retrieval_score"),
            numbers(own, "needle_recall"),
            name="layers",
            style=theme.Style(theme.BLUE),
            hover=[f"layer {layer}<br>retrieval {x:.3f}, kept {y:.3f}" for layer, x, y in rows],
            legend=False,
        )
        traces.level_axis(fig, i)
        x_axis(fig, i).range = [-0.04, 1.04]
    return dressed(fig)


FIGURES = {"layers": layers, "places": places, "answers": answers, "agreement": agreement}


def figures(run: Any) -> dict[str, go.Figure]:
    """Every figure that the tables of the run allow."""
    return drawn(run, FIGURES)


def _ks(frame: pl.DataFrame) -> list[int]:
    found = sorted(frame["k"].drop_nulls().unique().to_list())
    if not found:
        raise InputError("The table says of no row how many tokens were kept: there is nothing to draw.")
    return found[:FEW_PANELS]


def _kept_words(ks: list[int]) -> str:
    return f"{ks[0]:,} tokens" if len(ks) == 1 else "few tokens"


def _counted(frame: pl.DataFrame | None) -> str | None:
    """How many needles and trials a caption counts."""
    if frame is None or not {"n", "rows"} <= set(frame.columns) or not frame["n"].drop_nulls().len():
        return None
    return f"{frame['n'].max()} needles ({frame['rows'].max():,} trials)"


def _draws(run: Any) -> int:
    return int(info(run, "config", "random_draws", default=20))


def _windows(frame: pl.DataFrame | None) -> str:
    """Which layers do not see all of a prompt, as the end of a note."""
    if frame is None or "sees_all" not in frame.columns:
        return ""
    blind = sorted(frame.filter(~pl.col("sees_all"))["layer"].unique().to_list())
    return f" Layers that attend over a window, and are no filter: {', '.join(map(str, blind))}." if blind else ""


def _chosen(run: Any) -> str:
    """Which layers the run filtered by, as the end of a note."""
    table = maybe(run, "choice", ("k", "layer"))
    if table is None or table.is_empty():
        return ""
    chosen = sorted(table["layer"].unique().to_list())
    how = "Chosen on one half of the needles and judged on the other" if _held_out(run) else "The filter layer"
    return f" {how}: layer {', '.join(map(str, chosen))}."


def _why_none(known: bool) -> str:
    """Why there are no intervals, as the end of a note."""
    return "" if known else f" No intervals: they need {FEWEST} needles."


def _held_out(run: Any) -> bool:
    return info(run, "config", "filter_layer", default="chosen") == "chosen"


def _even(count: int, wanted: int) -> list[int]:
    return sorted({int(round(i)) for i in np.linspace(0, count - 1, wanted)})


def _colour(arm: str) -> str:
    if arm in OF_FILTER:
        return theme.BLUE if arm == "filter" else theme.RED
    return theme.OCHRE if arm == "all" else theme.NEUTRAL


def _ends(there: list[tuple[int, dict]], column: str) -> list[float]:
    """The end of each bar's interval; the bar's own end where there is none."""
    return [row["recall"] if row[column] is None else row[column] for _, row in there]


def _in_words(row: dict) -> str:
    """Spearman's ρ of one k, with its interval where it has one."""
    if row["correlation"] is None or not np.isfinite(row["correlation"]):
        return f"At k = {row['k']:,} there is no rank correlation: one of the two does not vary, or layers are too few."
    ends = (
        ""
        if row["ci_low"] is None or not np.isfinite(row["ci_low"])
        else (f" [{traces.number(row['ci_low'])}, {traces.number(row['ci_high'])}]")
    )
    return f"Spearman's ρ over layers at k = {row['k']:,}: {traces.number(row['correlation'])}{ends}."
