"""Figures of what a selection does to a model: losses after fine-tuning, and losses without a feature."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl

from workbench.figures import style as theme
from workbench.figures import traces
from workbench.figures.layout import dressed, sheet, ticks, y_axis
from workbench.figures.run_tables import info, model_name, need, numbers

MOST = 12  # features of a target
OTHERS = {"random": "as many random rows", "full": "the whole pool"}
LOOKS = {
    "selected": theme.Style(theme.BLUE),
    "random": theme.Style(theme.NEUTRAL, "dash", "x"),
    "full": theme.Style(theme.OCHRE, "dot", "diamond"),
}


def finetuning(run: Any) -> go.Figure:
    """Loss of held-out examples after fine-tuning on the selection, on random rows and on the whole pool."""
    runs = need(run, "finetuning", ("target", "condition", "seed", "loss_before", "loss_after", "n", "rows"))
    gains = need(run, "finetuning_gain", ("target", "against", "difference", "ci_low", "ci_high"))
    targets = runs["target"].unique(maintain_order=True).to_list()
    place = {target: at for at, target in enumerate(targets)}
    counts = runs.unique("target", maintain_order=True)
    tokens, seeds = runs["tokens"].mean() if "tokens" in runs.columns else None, runs["seed"].n_unique()
    how = "a LoRA" if info(run, "config", "finetune_weights") == "lora" else "all weights"
    note = f"Left: one mark a fine-tuning ({how}; {seeds} of each kind"
    note += f", {tokens:,.0f} tokens each" if tokens else ""
    note += "), bar: before. Right: below 0 the selection teaches more."
    fig = sheet(
        ["after fine-tuning", "selected minus others"],
        title=f"What {model_name(run)} learns from the selection",
        x=["loss of held-out examples (nats a token)", "difference in loss (nats a token)"],
        y_ticks=ticks(range(len(targets)), [str(t) for t in targets], keep=True),
        share_x=False,
        columns=2,
        row=2.6,
        aspect=min(1.2, 0.14 * len(targets) + 0.2),
        interval="95 %, over those clusters and the fine-tunings",
        n=_between(counts["n"]) + " clusters of held-out examples a target",
        rows=_between(counts["rows"]),
        note=note,
    )
    before = counts["loss_before"].to_numpy()
    words = [traces.safe(f"{t}, before: {traces.number(v)}") for t, v in zip(targets, before)]
    bar = theme.Style(theme.MUTED, "solid", "line-ns-open")
    traces.add_points(fig, 0, before, np.arange(len(targets)), name="before", style=bar, hover=words)
    shifts = {"selected": -0.25, "random": 0.0, "full": 0.25}
    for condition, style in LOOKS.items():
        own = runs.filter(pl.col("condition") == condition)
        y = np.array([place[t] for t in own["target"]]) + shifts[condition]
        name = OTHERS.get(condition, "the selected rows")
        words = [
            traces.safe(f"{t}, {name}, seed {seed}: {traces.number(loss)}")
            for t, seed, loss in own.select("target", "seed", "loss_after").iter_rows()
        ]
        traces.add_points(fig, 0, numbers(own, "loss_after"), y, name=name, style=style, hover=words)
    for other, name in OTHERS.items():
        own = gains.filter(pl.col("against") == other)
        y = np.array([place[t] for t in own["target"]]) + (-0.15 if other == "random" else 0.15)
        traces.add_spots(
            fig, 1, numbers(own, "difference"), y, name=name, style=LOOKS[other],
            low=numbers(own, "ci_low"), high=numbers(own, "ci_high"),
            labels=[f"{t}, minus {name}" for t in own["target"]], legend=False,
        )  # fmt: skip
    traces.add_rule(fig, 1, x=0.0, dash="dot")
    for i in range(2):
        y_axis(fig, i).range = [len(targets) - 0.4, -0.6]
    return dressed(fig)


def effects(run: Any) -> go.Figure:
    """What the loss of a target's examples, and of the pool, gains without each feature, above control features."""
    frame = need(run, "feature_effects", ("target", "feature", "difference", "ci_low", "ci_high", "needed", "n"))
    targets = frame["target"].unique(maintain_order=True).to_list()
    tops = [frame.filter(pl.col("target") == target).head(MOST) for target in targets]
    named = [[str(feature) for feature in top["feature"]] for top in tops]
    cut = f" The first {MOST} of a target." if max(frame.group_by("target").len()["len"].to_list()) > MOST else ""
    fig = sheet(
        [str(t) if len(targets) > 1 else "" for t in targets],
        title=f"What {model_name(run)} loses without a feature, above random features as active",
        x="loss above control (nats a token)",
        y="feature",
        y_ticks=[ticks(range(len(names)), names, keep=True) for names in named],
        share_y=False,
        row=1.6,
        interval="95 %, over those clusters and the control features",
        n=_between(frame["n"]) + " clusters of examples a target",
        rows=_between(frame["rows"]) if "rows" in frame.columns else None,
        note="Above 0: worse without it than without a control. Blue: on the target's examples and needed (false "
        "discovery rate 5 %); red: on these, not shown to be needed; crosses: on the pool." + cut,
    )
    blue, red = theme.Style(theme.BLUE), theme.Style(theme.RED, "solid", "square")
    for i, top in enumerate(tops):
        at = np.arange(top.height)
        for mine, style in ((True, blue), (False, red)):
            own = (top["needed"] == mine).to_numpy()
            name = "the examples, needed" if mine else "the examples, not shown to be needed"
            some, columns = top.filter(pl.Series(own)), ("difference", "ci_low", "ci_high")
            _effects_of(fig, i, some, at[own] - 0.15, columns, name, style)
        if "pool_difference" in top.columns:
            style = theme.Style(theme.NEUTRAL, "dash", "x")
            _effects_of(fig, i, top, at + 0.2, ("pool_difference", "pool_low", "pool_high"), "the pool", style)
        traces.add_rule(fig, i, x=0.0, dash="dot")
        y_axis(fig, i).range = [top.height - 0.4, -0.6]
    return dressed(fig)


def _effects_of(
    fig: go.Figure, i: int, top: pl.DataFrame, y: np.ndarray, columns: tuple[str, ...], name: str, style: theme.Style
) -> None:
    if top.height:
        value, low, high = (numbers(top, column) for column in columns)
        labels = [f"feature {f}, {name}" for f in top["feature"]]
        legend = name not in {trace.name for trace in fig.data}
        traces.add_spots(fig, i, value, y, name=name, style=style, low=low, high=high, labels=labels, legend=legend)


def _between(values: pl.Series) -> str:
    least, most = values.min(), values.max()
    return f"{least}" if least == most else f"{least} to {most}"
