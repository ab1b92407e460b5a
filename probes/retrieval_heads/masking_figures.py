"""Figures of recall and of tasks, with heads masked and without."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl

from probes.retrieval_heads.figure_words import count_in_words, independent
from workbench.figures import style as theme
from workbench.figures import traces
from workbench.figures.layout import dressed, sheet, ticks, x_axis
from workbench.figures.run_tables import finite, info, maybe, model_name, need, numbers
from workbench.stats.clusters import FEWEST

KINDS = {"random heads": "random", "retrieval heads": "top"}  # curve -> kind of masking


def needle_map(run: Any) -> go.Figure:
    """Recall of the needle over context length and depth: unmasked, and with the top and random heads masked."""
    trials = finite(need(run, "trials", ("length", "depth", "recall")), "recall", what="recall")
    panels = [("no head masked", _mean_over(trials, ["length", "depth"]))]
    masked = _masked_cells(run)
    if masked is not None:
        panels += masked
    lengths = sorted({v for _, f in panels for v in f["length"].to_list()})
    depths = sorted({v for _, f in panels for v in f["depth"].to_list()})
    percent = max(depths) > 1
    fig = sheet(
        [name for name, _ in panels],
        title=f"Recall of the needle by {model_name(run)}",
        x="context length (tokens)",
        y="depth (%)",
        x_ticks=ticks(range(len(lengths)), [_length(v) for v in lengths], keep=True),
        y_ticks=ticks(range(len(depths)), [f"{v if percent else 100 * v:.0f}" for v in depths], keep=len(depths) <= 12),
        aspect=min(0.9, max(0.3, len(depths) / len(lengths))),
        cells=(len(depths), len(lengths)),
        n=f"{trials['needle'].n_unique()} needles ({trials.height:,} trials)" if "needle" in trials.columns else None,
        note="Depth 0 is the beginning of the context." + _closed(trials),
    )
    traces.colour_scale(fig, (0.0, 1.0), "recall")
    for i, (_, frame) in enumerate(panels):
        values = np.full((len(depths), len(lengths)), np.nan)
        count = np.zeros(values.shape)
        for length, depth, recall, size in frame.select("length", "depth", "recall", "size").iter_rows():
            values[depths.index(depth), lengths.index(length)] = np.nan if recall is None else recall
            count[depths.index(depth), lengths.index(length)] = size
        d, s = np.meshgrid(depths, lengths, indexing="ij")
        custom = np.stack([s, d, values, count], axis=-1)
        hover = (
            "%{customdata[0]} tokens, depth %{customdata[1]:.3g}<br>recall %{customdata[2]:.3f} (n = %{customdata[3]})"
        )
        labels = np.vectorize(lambda v: f"{v:.2f}" if np.isfinite(v) else "")(values)
        traces.add_cells(fig, i, values, custom=custom, hover=hover, ends=(0.0, 1.0), labels=labels, reverse=True)
    return dressed(fig)


def masking(run: Any) -> go.Figure:
    """Recall against the number of masked heads: the top heads and random heads, each with its interval where the run
    says both."""
    frame = finite(need(run, "masking", ("k", "heads", "draw", "recall")), "recall", what="recall")
    recalls = maybe(run, "masked_recall", ("k", "heads", "recall", "ci_low", "ci_high", "n", "rows"))
    curves = _curves(frame, recalls)
    known = any(np.isfinite(numbers(data, "low")).any() for by_name in curves.values() for data in by_name.values())
    fig = sheet(
        [f"{a} ablation" if a and len(curves) > 1 else "" for a in curves],
        title=f"Masking retrieval heads of {model_name(run)}",
        x="masked heads (K)",
        y="recall",
        interval=f"both bands are 95 % intervals over {independent(run)}, that of random heads over their draws too"
        if known
        else "",
        n=_masked_n(run, frame, recalls),
        note="Random heads are drawn from the same layers, none with a score above the threshold."
        + (" Heads were chosen on other needles." if _held_out(run) else "")
        + ("" if known else " No intervals: " + _why_none(recalls)),
    )
    baseline = _baseline(run, frame)
    for i, by_name in enumerate(curves.values()):
        for name, data in by_name.items():
            if data.is_empty():
                continue
            if baseline is not None and not (data["k"] == 0).any():  # every curve starts where nothing is masked
                data = pl.concat([pl.DataFrame({"k": [0], "recall": [baseline]}), data], how="diagonal_relaxed")
            top = name == "retrieval heads"
            style = theme.Style(theme.BLUE) if top else theme.Style(theme.NEUTRAL, "dash", "square")
            traces.add_curve(
                fig,
                i,
                numbers(data, "k"),
                numbers(data, "recall"),
                name=name,
                style=style,
                legend=i == 0,
                low=numbers(data, "low"),
                high=numbers(data, "high"),
                hover="K = %{x}: recall %{y:.3f}",
            )
        traces.level_axis(fig, i)
        traces.whole_numbers(x_axis(fig, i), numbers(frame, "k"))
    return dressed(fig)


def tasks(run: Any) -> go.Figure:
    """The score on the tasks against the number of masked heads, and what masking takes: the top heads and random
    ones, each with its interval."""
    columns = ("k", "heads", "score", "ci_low", "ci_high", "n", "rows")
    frame = finite(need(run, "task_scores", columns), "score", what="score")
    metric = str(info(run, "config", "task_metric", default="f1"))
    metric = {"exact": "exact match", "f1": "F1", "last_number": "last number right"}.get(metric, metric)
    n, rows = int(frame["n"].max()), int(frame["rows"].max())
    known = np.isfinite(numbers(frame, "ci_low")).any()
    fig = sheet(
        ["score", "what masking takes"],
        title=f"Tasks under masked heads of {model_name(run)}",
        x="masked heads (K)",
        y=[metric, f"drop of {metric}"],
        share_y=False,
        interval="95 % over questions, of random heads over their draws too; drops are paired" if known else "",
        n=f"{n} questions" if n == rows else f"{n} groups ({rows:,} questions)",
        note="Heads were chosen on needles; random heads are of the same layers, none with a score above the threshold."
        + (" Asked to reason first." if info(run, "config", "chain_of_thought", default=False) else "")
        + ("" if known else f" No intervals: they need {FEWEST} questions or groups."),
    )
    none = frame.filter(pl.col("heads") == "none")
    for i, prefix in enumerate(("", "drop_")):
        for name, kind in KINDS.items():
            own = frame.filter(pl.col("heads") == prefix + kind).sort("k")
            if own.is_empty():
                continue
            own = own if prefix else pl.concat([none, own])
            top = kind == "top"
            traces.add_curve(
                fig,
                i,
                numbers(own, "k"),
                numbers(own, "score"),
                name=name,
                style=theme.Style(theme.BLUE) if top else theme.Style(theme.NEUTRAL, "dash", "square"),
                legend=i == 0,
                low=numbers(own, "ci_low"),
                high=numbers(own, "ci_high"),
                hover="K = %{x}: %{y:.3f}",
            )
        traces.whole_numbers(x_axis(fig, i), numbers(frame, "k"))
    traces.level_axis(fig, 0)
    traces.add_rule(fig, 1, y=0.0)
    return dressed(fig)


def _mean_over(frame: pl.DataFrame, keys: list[str]) -> pl.DataFrame:
    recall = pl.col("recall").cast(pl.Float64).fill_nan(None)
    return frame.group_by(keys).agg(recall.mean(), size=recall.count()).sort(keys)


def _masked_cells(run: Any) -> list[tuple[str, pl.DataFrame]] | None:
    """Recall per length and depth at the largest K that has both: from ``masking`` where it has these columns,
    otherwise from the optional table ``masked_trials``."""
    columns = ("k", "heads", "length", "depth", "recall")
    frame = next((f for f in (maybe(run, t, columns) for t in ("masked_trials", "masking")) if f is not None), None)
    if frame is None or frame.is_empty():
        return None
    if "ablation" in frame.columns:
        frame = frame.filter(pl.col("ablation") == frame["ablation"][0])
    k = frame["k"].max()
    result = []
    for group, name in (("top", f"top {k} heads masked"), ("random", f"{k} random heads masked")):
        own = frame.filter((pl.col("heads") == group) & (pl.col("k") == k))
        if not own.is_empty():
            result.append((name, _mean_over(own, ["length", "depth"])))
    return result or None


def _curves(frame: pl.DataFrame, recalls: pl.DataFrame | None) -> dict[str | None, dict[str, pl.DataFrame]]:
    """Ablation → name of the curve → k, recall, low, high: of the table `masked_recall`, or of the means over draws,
    without intervals, where a run has none."""
    if recalls is not None and not recalls.is_empty():
        ends = recalls.rename({"ci_low": "low", "ci_high": "high"})
        none = ends.filter(pl.col("heads") == "none")
        own = {name: pl.concat([none, ends.filter(pl.col("heads") == kind)]) for name, kind in KINDS.items()}
        return {None: {name: data.sort("k") for name, data in own.items() if data.height > none.height}}
    ablations = frame["ablation"].unique(maintain_order=True).to_list() if "ablation" in frame.columns else [None]
    found: dict[str | None, dict[str, pl.DataFrame]] = {}
    for ablation in ablations:
        own = frame if ablation is None else frame.filter(pl.col("ablation") == ablation)
        means = own.group_by("k", "heads").agg(pl.col("recall").mean()).sort("k")
        found[ablation] = {name: means.filter(pl.col("heads") == kind) for name, kind in KINDS.items()}
    return found


def _why_none(recalls: pl.DataFrame | None) -> str:
    if recalls is None:
        return "the run has none of both kinds."
    return f"they need {FEWEST} needles that were tested."


def _masked_n(run: Any, frame: pl.DataFrame, recalls: pl.DataFrame | None) -> str | int | None:
    if recalls is not None and not recalls.is_empty():
        return count_in_words(int(recalls["n"].max()), int(recalls["rows"].max()), independent(run))
    return f"{int(frame['n'].max())} trials" if "n" in frame.columns else None


def _baseline(run: Any, masking: pl.DataFrame) -> float | None:
    """Recall with nothing masked: the row k = 0, else the mean over trials."""
    for frame in (masking.filter(pl.col("k") == 0), maybe(run, "trials", ("recall",))):
        if frame is not None and not frame.is_empty():
            value = frame["recall"].cast(pl.Float64).fill_nan(None).mean()
            if value is not None:
                return float(value)
    return None


def _closed(trials: pl.DataFrame) -> str:
    if "recall_closed" not in trials.columns:
        return ""
    return f" With the needle cut out, mean recall is {trials['recall_closed'].mean():.2f}."


def _held_out(run: Any) -> bool:
    """Heads were masked on other needles than those that chose them."""
    trials, threshold = maybe(run, "trials", ("needle", "recall")), info(run, "config", "recall_threshold", default=0.5)
    wanted = info(run, "config", "mask_on", default="same") == "held_out"
    return wanted and trials is not None and trials.filter(pl.col("recall") > threshold)["needle"].n_unique() > 1


def _length(value: float) -> str:
    return f"{value / 1000:g}K" if value >= 1000 and value % 1000 == 0 else f"{value:g}"
