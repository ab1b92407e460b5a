"""Figures of the retrieval-head probe: which heads copy, how sparse they are, and what masking them does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl

from probes.retrieval_heads.agreement import RunCorrelation, correlation_of_runs, scored_trials
from probes.retrieval_heads.figure_words import (
    copies,
    counted,
    independent,
    interval_in_words,
    missing_in_words,
    outlined_in_words,
    score_name,
    told_in_words,
)
from probes.retrieval_heads.masking_figures import masking, needle_map, tasks
from workbench.core.errors import InputError
from workbench.figures import heads, traces
from workbench.figures import style as theme
from workbench.figures.layout import about, dressed, sheet
from workbench.figures.run_tables import drawn, finite, info, maybe, model_name, need, numbers
from workbench.stats import intervals as statistics


def head_map(run: Any) -> go.Figure:
    """Retrieval score of every head; retrieval heads outlined."""
    frame = finite(need(run, "heads", ("layer", "head", "score")), "score", what="head score")
    return heads.head_map(
        frame,
        label=score_name(run),
        n_layers=info(run, "model", "layers"),
        n_heads=info(run, "model", "heads"),
        n_kv_heads=info(run, "model", "kv_heads"),
        marked="is_retrieval",
        diverging=not copies(run),
        more=[c for c in ("ci_low", "ci_high", "activation_frequency") if c in frame.columns],
        title=f"{score_name(run).capitalize()} of each head of {model_name(run)}",
        note=" ".join(filter(None, [outlined_in_words(frame, run), told_in_words(frame, run)])),
        n=counted(frame, run),
    )


def score_curve(run: Any) -> go.Figure:
    """Scores from the highest, with the threshold and the share of heads above it."""
    frame = finite(need(run, "heads", ("layer", "head", "score")), "score", what="head score")
    threshold = info(run, "config", "threshold")
    fig = heads.ranked(
        frame,
        label=score_name(run),
        threshold=float(threshold) if threshold is not None else 0.1,
        title=f"{score_name(run).capitalize()}s of {model_name(run)}, sorted",
        interval=interval_in_words(frame, run),
        n=counted(frame, run),
    )
    return about(fig, note=" ".join(filter(None, [missing_in_words(frame), told_in_words(frame, run)])))


def activation(run: Any) -> go.Figure:
    """How often a head copies at all against how much it copies."""
    frame = need(run, "heads", ("layer", "head", "score", "activation_frequency"))
    frame = finite(finite(frame, "score", what="head score"), "activation_frequency", what="activation frequency")
    fig = sheet(
        title=f"How often and how much the heads of {model_name(run)} {'copy' if copies(run) else 'attend'}",
        x=f"activation frequency (share of trials{'' if copies(run) else ' above the null question'})",
        y=score_name(run),
        aspect=0.7,
        n=counted(frame, run),
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
            heads=own.select("layer", "head").to_numpy(),
            opacity=0.85 if frame.height <= 256 else 0.4,
        )
    fig.layout.xaxis.range = [-0.04, 1.04]
    return dressed(fig)


def attention(run: Any) -> go.Figure:
    """The attention score of every head against its control, and against its copying score where the run has one."""
    frame = finite(need(run, "heads", ("layer", "head", "score", "score_chance", "told_apart")), "score", what="score")
    panels = [("against the control", "score_chance", "score with another passage's question")]
    if "copying_score" in frame.columns and frame["copying_score"].null_count() < frame.height:
        panels.append(("against copying", "copying_score", "copying score"))
    fig = sheet(
        [name if len(panels) > 1 else "" for name, *_ in panels],
        title=f"Heads of {model_name(run)} that attend from a question to its passage",
        x=[label for *_, label in panels],
        y="attention score",
        share_x=False,
        aspect=0.9,
        n=counted(frame, run),
        note=" ".join(filter(None, [told_in_words(frame, run), _overlap(run)])),
    )
    told = frame["told_apart"].to_list()
    for i, (_, column, label) in enumerate(panels):
        for name, wanted, style in (
            ("other heads", False, theme.Style(theme.NEUTRAL)),
            ("told from threshold and control", True, theme.Style(theme.BLUE)),
        ):
            own = frame.filter(pl.Series([bool(mark) == wanted for mark in told]))
            if own.is_empty():
                continue
            rows = own.select("layer", "head", "score", column).iter_rows()
            traces.add_points(
                fig,
                i,
                numbers(own, column),
                numbers(own, "score"),
                name=name,
                style=style,
                hover=[f"layer {a}, head {b}<br>score {s:.3f}, {label} {c:.3f}" for a, b, s, c in rows],
                heads=own.select("layer", "head").to_numpy(),
                opacity=0.85 if frame.height <= 256 else 0.4,
                legend=i == 0,
            )
    return dressed(fig)


def enough(run: Any) -> go.Figure:
    """How many needles are enough: overlap of the top heads with those of all needles (table ``enough``)."""
    frame = finite(need(run, "enough", ("trials", "top", "overlap")), "overlap", what="overlap")
    used = "needles" if "needles" in frame.columns else "trials"  # before, trials were drawn
    kind = independent(run) if used == "needles" else used
    fig = sheet(
        title=f"How many {kind} are enough, {model_name(run)}",
        x=f"{kind} used" if used == "needles" or not copies(run) else "successful trials used",
        y=f"overlap with the heads of all {kind}",
        interval="95 % of random subsets" if "ci_low" in frame.columns else "",
    )
    names = [str(v) for v in frame["top"].unique(maintain_order=True).to_list()]
    looks = theme.sequence(names)
    for name in names:
        own = frame.filter(pl.col("top").cast(pl.String) == name).sort(used)
        traces.add_curve(
            fig,
            0,
            numbers(own, used),
            numbers(own, "overlap"),
            style=looks[name],
            name=f"top {name}" if name.isdigit() else name,
            low=numbers(own, "ci_low"),
            high=numbers(own, "ci_high"),
        )
    traces.level_axis(fig, 0)
    return dressed(fig)


def compare(a: Any, b: Any, *, seed: int = 0) -> go.Figure:
    """The head scores of two runs against each other, with Pearson's r and its interval: over needles, or over heads,
    and then it says so, where a run does not tell its needles."""
    frames = [finite(need(run, "heads", ("layer", "head", "score")), "score", what="head score") for run in (a, b)]
    both = frames[0].join(frames[1], on=["layer", "head"], suffix="_b")
    if both.height < 2:
        raise InputError("The two runs have fewer than two heads in common: their maps cannot be compared.")
    rng = np.random.default_rng(seed)
    data = [(info(run, "data", "fingerprint"), info(run, "config", "resample", default="needles")) for run in (a, b)]
    same = data[0] == data[1] and data[0][0] is not None
    r = correlation_of_runs(*(scored_trials(run) for run in (a, b)), same_needles=same, rng=rng)
    if r is None:  # of published scores nobody knows which trial is of which needle
        of_heads = statistics.pearson(both["score"], both["score_b"], rng=rng)
        r = RunCorrelation(of_heads.value, of_heads.low, of_heads.high, "heads, not needles")
    ends = f"[{traces.number(r.low)}, {traces.number(r.high)}]<br>over " if np.isfinite(r.low) else ""
    names = (model_name(a), model_name(b))
    if names[0] == names[1]:
        names = ("first run", "second run")
    return heads.against(
        *frames,
        names=names,
        label="retrieval score",
        correlation=f"Pearson r = {traces.number(r.value)}<br>{ends}{r.over}",
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
    more = {} if copies(run) else {"attention": attention}
    return drawn(run, FIGURES | more | ({"tasks": tasks} if "task_scores" in run.tables else {}))


def _overlap(run: Any) -> str:
    """What the two lists of heads have in common, beside chance, at the largest k up to 16."""
    overlaps = maybe(run, "overlap", ("k", "overlap", "by_chance", "by_chance_in_layers"))
    if overlaps is None or overlaps.is_empty():
        return ""
    row = (overlaps.filter(pl.col("k") <= 16) if overlaps["k"].min() <= 16 else overlaps).sort("k").row(-1, named=True)
    return (
        f"The {row['k']} best heads have {row['overlap']:.0%} in common with the {row['k']} that copy best; random "
        f"heads would have {row['by_chance']:.0%}, random heads of the same layers {row['by_chance_in_layers']:.0%}."
    )
