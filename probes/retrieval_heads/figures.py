"""Figures of the retrieval-head probe: which heads copy, how sparse they are, and what masking them does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl

from workbench.core.errors import InputError
from workbench.figures import heads, traces
from workbench.figures import style as theme
from workbench.figures.layout import dressed, sheet, ticks, x_axis
from workbench.figures.run_tables import drawn, finite, info, maybe, model_name, need, numbers
from workbench.stats import intervals as statistics


def head_map(run: Any) -> go.Figure:
    """Retrieval score of every head; retrieval heads outlined."""
    frame = finite(need(run, "heads", ("layer", "head", "score")), "score", what="head score")
    return heads.head_map(
        frame,
        label="retrieval score",
        n_layers=info(run, "model", "layers"),
        n_heads=info(run, "model", "heads"),
        n_kv_heads=info(run, "model", "kv_heads"),
        marked="is_retrieval",
        more=[c for c in ("ci_low", "ci_high", "activation_frequency") if c in frame.columns],
        title=f"Retrieval score of each head of {model_name(run)}",
        note="Outlined: retrieval heads." if "is_retrieval" in frame.columns else "",
        n=_trials(frame),
    )


def score_curve(run: Any) -> go.Figure:
    """Scores from the highest, with the threshold and the share of heads above it."""
    frame = finite(need(run, "heads", ("layer", "head", "score")), "score", what="head score")
    threshold = info(run, "config", "threshold")
    return heads.ranked(
        frame,
        label="retrieval score",
        threshold=float(threshold) if threshold is not None else 0.1,
        title=f"Retrieval scores of {model_name(run)}, sorted",
        interval=_interval(run),
        n=_trials(frame),
    )


def activation(run: Any) -> go.Figure:
    """How often a head copies at all against how much it copies."""
    frame = need(run, "heads", ("layer", "head", "score", "activation_frequency"))
    frame = finite(finite(frame, "score", what="head score"), "activation_frequency", what="activation frequency")
    fig = sheet(
        title=f"How often and how much the heads of {model_name(run)} copy",
        x="activation frequency (share of trials)",
        y="retrieval score",
        aspect=0.7,
        n=_trials(frame),
    )
    marked = frame["is_retrieval"].to_list() if "is_retrieval" in frame.columns else [False] * frame.height
    for name, wanted, style in (
        ("other heads", False, theme.Style(theme.NEUTRAL)),
        ("retrieval heads", True, theme.Style(theme.BLUE)),
    ):
        own = frame.filter(pl.Series([bool(m) == wanted for m in marked]))
        if own.is_empty():
            continue
        rows = own.select("layer", "head", "activation_frequency", "score").iter_rows()
        traces.add_points(
            fig,
            0,
            numbers(own, "activation_frequency"),
            numbers(own, "score"),
            name=name,
            style=style,
            hover=[f"layer {a}, head {b}<br>score {s:.3f}, active in {f:.0%}" for a, b, f, s in rows],
            custom=own.select("layer", "head").to_numpy(),
            opacity=0.85 if frame.height <= 256 else 0.4,
        )
    fig.layout.xaxis.range = [-0.04, 1.04]
    return dressed(fig)


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
        n=trials.height,
        note="Depth 0 is the beginning of the context.",
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
    """Recall against the number of masked heads: the top heads, and random heads of the same layers with their
    range."""
    frame = finite(need(run, "masking", ("k", "heads", "draw", "recall")), "recall", what="recall")
    ablations = frame["ablation"].unique(maintain_order=True).to_list() if "ablation" in frame.columns else [None]
    baseline = _baseline(run, frame)
    fig = sheet(
        [f"{a} ablation" if a and len(ablations) > 1 else "" for a in ablations],
        title=f"Masking retrieval heads of {model_name(run)}",
        x="masked heads (K)",
        y="recall",
        interval=f"retrieval heads {_interval(run, masked=True)}, random heads the range over draws"
        if "ci_low" in frame.columns
        else "random heads: the range over draws",
        n=int(frame["n"].max()) if "n" in frame.columns else _height(run, "trials"),
        note="Random heads are drawn from the same layers."
        + (" Heads were chosen on other needles." if _held_out(run) else ""),
    )
    for i, ablation in enumerate(ablations):
        own = frame.filter(pl.col("ablation") == ablation) if ablation is not None else frame
        for name, data in (("random heads", _random(own)), ("retrieval heads", _top(own))):
            if data.is_empty():
                continue
            k, recall, low, high = (numbers(data, c) for c in ("k", "recall", "low", "high"))
            if baseline is not None and not (k == 0).any():  # every curve starts where nothing is masked
                k, recall = np.append(0, k), np.append(baseline, recall)
                low, high = np.append(baseline, low), np.append(baseline, high)
            top = name == "retrieval heads"
            style = theme.Style(theme.BLUE) if top else theme.Style(theme.NEUTRAL, "dash", "square")
            traces.add_curve(
                fig,
                i,
                k,
                recall,
                name=name,
                style=style,
                legend=i == 0,
                low=low,
                high=high,
                hover="K = %{x}: recall %{y:.3f}",
            )
        traces.level_axis(fig, i)
        traces.whole_numbers(x_axis(fig, i), numbers(frame, "k"))
    return dressed(fig)


def enough(run: Any) -> go.Figure:
    """How many trials are enough: overlap of the top heads with those of all trials (table ``enough``)."""
    frame = finite(need(run, "enough", ("trials", "top", "overlap")), "overlap", what="overlap")
    fig = sheet(
        title=f"How many trials are enough, {model_name(run)}",
        x="successful trials used",
        y="overlap with the heads of all trials",
        interval="95 % of random subsets" if "ci_low" in frame.columns else "",
    )
    names = [str(v) for v in frame["top"].unique(maintain_order=True).to_list()]
    looks = theme.sequence(names)
    for name in names:
        own = frame.filter(pl.col("top").cast(pl.String) == name).sort("trials")
        traces.add_curve(
            fig,
            0,
            numbers(own, "trials"),
            numbers(own, "overlap"),
            style=looks[name],
            name=f"top {name}" if name.isdigit() else name,
            low=numbers(own, "ci_low"),
            high=numbers(own, "ci_high"),
        )
    traces.level_axis(fig, 0)
    return dressed(fig)


def compare(a: Any, b: Any, *, seed: int = 0) -> go.Figure:
    """The head scores of two runs against each other, with Pearson's r and its interval."""
    frames = [finite(need(run, "heads", ("layer", "head", "score")), "score", what="head score") for run in (a, b)]
    both = frames[0].join(frames[1], on=["layer", "head"], suffix="_b")
    if both.height < 2:
        raise InputError("The two runs have fewer than two heads in common: their maps cannot be compared.")
    r = statistics.pearson(both["score"], both["score_b"], rng=np.random.default_rng(seed))
    names = (model_name(a), model_name(b))
    if names[0] == names[1]:
        names = ("first run", "second run")
    return heads.against(
        *frames,
        names=names,
        label="retrieval score",
        correlation=f"Pearson r = {traces.number(r.value)}<br>[{traces.number(r.low)}, {traces.number(r.high)}]",
        title=f"Retrieval scores: {names[0]} and {names[1]}",
    )


def of_several(runs: Sequence[Any]) -> go.Figure:
    """:func:`compare` of two runs. Raises InputError for more."""
    if len(runs) > 2:
        raise InputError(f"The figure of several runs of 'retrieval-heads' shows two, not {len(runs)}.")
    return compare(*runs)


FIGURES = {
    "head_map": head_map,
    "score_curve": score_curve,
    "needle_map": needle_map,
    "masking": masking,
    "activation": activation,
    "enough": enough,
}


def figures(run: Any) -> dict[str, go.Figure]:
    """Every figure that the tables of the run allow."""
    return drawn(run, FIGURES)


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


def _top(frame: pl.DataFrame) -> pl.DataFrame:
    """Per K: recall with the top heads masked, with its interval where the table has one."""
    ends = [pl.col(c).mean().alias(a) for c, a in (("ci_low", "low"), ("ci_high", "high")) if c in frame.columns]
    return frame.filter(pl.col("heads") == "top").group_by("k").agg(pl.col("recall").mean(), *ends).sort("k")


def _random(frame: pl.DataFrame) -> pl.DataFrame:
    """Per K: mean recall over the random draws, with their range."""
    draws = frame.filter(pl.col("heads") == "random").group_by("k", "draw").agg(pl.col("recall").mean())
    recall = pl.col("recall")
    return draws.group_by("k").agg(recall.mean(), low=recall.min(), high=recall.max()).sort("k")


def _baseline(run: Any, masking: pl.DataFrame) -> float | None:
    """Recall with nothing masked: the row k = 0, else the mean over trials."""
    for frame in (masking.filter(pl.col("k") == 0), maybe(run, "trials", ("recall",))):
        if frame is not None and not frame.is_empty():
            value = frame["recall"].cast(pl.Float64).fill_nan(None).mean()
            if value is not None:
                return float(value)
    return None


def _interval(run: Any, *, masked: bool = False) -> str:
    """What the intervals of the run resample: needles, unless it was told otherwise or the trials that count are all of
    one."""
    trials = maybe(run, "trials", ("trial", "needle", "kept"))
    if trials is not None:
        chosen = maybe(run, "masked_trials", ("trial",)) if masked else None
        counts = pl.col("kept") if chosen is None else pl.col("trial").is_in(chosen["trial"].unique().to_list())
        trials = trials.filter(counts)
    one = trials is not None and trials["needle"].n_unique() < 2
    return f"95 % bootstrap over {'trials' if one else info(run, 'config', 'resample', default='trials')}"


def _held_out(run: Any) -> bool:
    """Heads were masked on other needles than those that chose them."""
    trials, threshold = maybe(run, "trials", ("needle", "recall")), info(run, "config", "recall_threshold", default=0.5)
    wanted = info(run, "config", "mask_on", default="same") == "held_out"
    return wanted and trials is not None and trials.filter(pl.col("recall") > threshold)["needle"].n_unique() > 1


def _height(run: Any, table: str) -> int | None:
    frame = maybe(run, table)
    return None if frame is None else frame.height


def _trials(frame: pl.DataFrame) -> int | None:
    return int(frame["n_trials"].max()) if "n_trials" in frame.columns and frame["n_trials"].max() is not None else None


def _length(value: float) -> str:
    return f"{value / 1000:g}K" if value >= 1000 and value % 1000 == 0 else f"{value:g}"
