"""Figures of the studies: what was compared, and what came of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl

from probes.branching_factor.drawn_conditions import (
    INTERVAL,
    PER_BYTE,
    joined,
    looks,
    measure_of,
    prompt_names,
    size,
    tokenizers_of,
)
from workbench.core.errors import InputError
from workbench.figures import style as theme
from workbench.figures import traces
from workbench.figures.layout import dressed, sheet, ticks, x_axis, y_axis
from workbench.figures.run_tables import finite, info, maybe, model_name, need, numbers
from workbench.figures.text_table import word_table


def complexity(run: Any) -> go.Figure:
    """Branching factor against how much of the prompt is given."""
    column, low, high, label = measure_of(run)
    frame = need(run, "complexity", ("model", "level", "bf"))
    ends = maybe(run, "conditions", ("condition", column, low, high))
    if ends is not None and "condition" in frame.columns:
        more = dict.fromkeys((column, low, high)).keys() - {"bf"}
        frame = frame.join(ends.select("condition", *more), on="condition", how="left")
    frame = finite(frame, column, what=label)
    unit = info(run, "config", "unit", default="units")
    fig = sheet(
        title=f"{label.capitalize()} and the length of the prompt",
        x=f"prompt given ({unit})",
        y=label,
        interval=INTERVAL,
        n=size(run),
        note=tokenizers_of([run]),
    )
    whole, counted = frame["level"].min() < 0, frame["level"].max()
    for name, style in looks(frame["model"].unique(maintain_order=True).to_list()).items():
        own = (
            frame.filter(pl.col("model") == name)
            .with_columns(at=pl.when(pl.col("level") < 0).then(counted + 1).otherwise(pl.col("level")))
            .sort("at")
        )
        traces.add_curve(
            fig,
            0,
            numbers(own, "at"),
            numbers(own, column),
            name=name,
            style=style,
            low=numbers(own, low),
            high=numbers(own, high),
            hover="level %{x}: %{y:.4g}",
        )
    if whole:  # the whole prompt comes last, whatever its length
        levels = sorted(level for level in frame["level"].unique() if level >= 0)
        x_axis(fig, 0).update(tickmode="array", tickvals=[*levels, counted + 1], ticktext=[*map(str, levels), "all"])
    else:
        traces.whole_numbers(x_axis(fig, 0), numbers(frame, "level"))
    return dressed(fig)


def impact(run: Any) -> go.Figure:
    """How much of the spread of the branching factor is due to the model, and how much to the prompt's length."""
    frame = finite(need(run, "impact", ("factor", "impact", "share")), "share", what="impact")
    if frame.height < 2:
        raise InputError(
            "The run has one factor only: there is nothing to share out (give a second model with compare)."
        )
    names = {"complexity": "length of the prompt", "model": "model"}
    fig = sheet(
        title="Impact on the branching factor",
        x="share of the impact",
        y_ticks=ticks(range(frame.height), [names.get(f, f) for f in frame["factor"]], keep=True, lines=2),
        row=2.3,
        aspect=0.08 * frame.height,
        interval="95 % bootstrap over prompts, none below five",
        n=size(run),
        note=_shuffled_note(frame, names),
    )
    traces.add_bars(
        fig,
        0,
        np.arange(frame.height),
        numbers(frame, "share"),
        name="share",
        style=theme.Style(theme.BLUE),
        horizontal=True,
        legend=False,
        low=numbers(frame, "share_low"),
        high=numbers(frame, "share_high"),
        width=0.55,
        labels=frame["factor"].to_list(),
    )
    y_axis(fig, 0).range = [frame.height - 0.4, -0.6]
    x_axis(fig, 0).update(range=[0, 1.02], tickformat=".0%")
    return dressed(fig)


def _shuffled_note(frame: pl.DataFrame, names: dict[str, str]) -> str:
    """What the impacts are beside those of levels shuffled within every prompt, which are above zero, too."""
    if "impact_null" not in frame.columns:
        return ""
    unit = " nats per byte" if "measure" in frame.columns and frame["measure"][0] == "nats_per_byte" else ""
    parts = [
        f"{names.get(factor, factor)} {impact:.3g}{unit} ({null:.2g} with its levels shuffled)"
        for factor, impact, null in frame.select("factor", "impact", "impact_null").iter_rows()
    ]
    return f"Impact (largest less smallest mean): {', '.join(parts)}."


def nudging(run: Any) -> go.Figure:
    """Branching factor before and after an opening is given: the nudge, and openings of the model's own as control."""
    steps = need(run, "nudging", ("model", "given", "condition"))
    column, low, high, label = measure_of(run)
    ends = need(run, "conditions", ("condition", column, low, high)).select("condition", column, low, high)
    frame = finite(steps.join(ends, on="condition", how="left"), column, what=label)
    fig = sheet(
        title=f"{label.capitalize()} before and after an opening",
        y=label,
        note=joined(f"The common opening is that of {frame['model'][-1]}.", tokenizers_of([run])),
        x_ticks=ticks([0, 1], ["nothing given", "after an opening"], keep=True),
        interval=INTERVAL,
        n=size(run),
    )
    models = frame["model"].unique(maintain_order=True).to_list()
    for name, style in looks(models).items():
        before = frame.filter((pl.col("model") == name) & (pl.col("given") == "nothing"))
        for given, dash in (("opening", None), ("own opening", "dot")):
            after = frame.filter((pl.col("model") == name) & (pl.col("given") == given))
            if before.is_empty() or after.is_empty():
                continue
            both = pl.concat([before, after])
            look = theme.Style(style.colour, dash or style.dash, "diamond" if dash else style.symbol)
            x = np.array([0.0, 1.0]) + (0.04 * (models.index(name) - (len(models) - 1) / 2) if not dash else 0.04)
            whose = "own opening" if dash else "common opening"
            traces.add_curve(
                fig,
                0,
                x,
                numbers(both, column),
                name=f"{name}, {whose}",
                style=look,
                low=numbers(both, low),
                high=numbers(both, high),
                hover="%{y:.4g}",
            )
    x_axis(fig, 0).range = [-0.35, 1.35]
    if column == "bf":
        traces.add_rule(fig, 0, y=1, dash="dot")
    return dressed(fig)


def signature(run: Any) -> go.Figure:
    """The signature of over-training: entropy on the model's own text and on given text, and how likely given text
    is."""
    kinds = {
        "entropy_own": "entropy, own text",
        "entropy_given": "entropy, given text",
        "nll_given": "surprisal, given text",
        "surprise": "surprisal less entropy",
    }
    said = tokenizers_of([run])
    frame = need(run, "signature", ("condition", *kinds))
    by_byte = bool(said) and "nll_given_per_byte" in frame.columns
    kinds = {key + "_per_byte" * by_byte: name for key, name in kinds.items()}
    frame = finite(frame, "nll_given" + "_per_byte" * by_byte, what="signature")
    names = frame["condition"].to_list()
    fig = sheet(
        title="Does the model expect what it reads?",
        x=PER_BYTE if by_byte else "nats per token",
        y_ticks=ticks(range(len(kinds)), list(kinds.values()), keep=True),
        row=1.8,
        aspect=0.09 * len(kinds),
        interval="95 % t over prompts and texts, none below five",
        n=size(run),
        note=joined("Given text: the prompts of the data, read as text.", said),
    )
    for j, (name, style) in enumerate(looks(names).items()):
        row = frame.filter(pl.col("condition") == name)
        at = np.arange(len(kinds)) + (j - (len(names) - 1) / 2) * min(0.25, 0.8 / len(names))
        side = lambda which, row=row: [numbers(row, f"{key}{which}")[0] for key in kinds]  # noqa: E731
        traces.add_spots(
            fig,
            0,
            side(""),
            at,
            low=side("_low"),
            high=side("_high"),
            name=name,
            style=style,
            labels=list(kinds.values()),
        )
    traces.add_rule(fig, 0, x=0, dash="dot")
    y_axis(fig, 0).range = [len(kinds) - 0.5, -0.5]
    return dressed(fig)


def verbalised(run: Any) -> go.Figure:
    """How many different answers direct sampling and verbalised lists give, as many answers of either."""
    frame = finite(
        need(run, "verbalised", ("prompt", "n", "distinct_direct", "distinct_verbalised")),
        "distinct_verbalised",
        what="parsed response",
    )
    texts = prompt_names(need(run, "prompts", ("prompt", "text")).filter(pl.col("condition") == "direct"))
    frame = frame.head(30)
    fig = sheet(
        title=f"Different answers, direct and verbalised, {model_name(run)}",
        x="different answers among as many of either",
        y_ticks=ticks(range(frame.height), [texts.get(p, f"prompt {p}") for p in frame["prompt"]], keep=True),
        row=1.2,
        aspect=0.06 * frame.height,
        n=size(run),
    )
    none = np.full(frame.height, np.nan)
    for (column, name), style in zip(
        (("distinct_direct", "direct"), ("distinct_verbalised", "verbalised")),
        theme.sequence(["direct", "verbalised"]).values(),
    ):
        traces.add_spots(
            fig,
            0,
            numbers(frame, column),
            np.arange(frame.height),
            low=none,
            high=none,
            name=name,
            style=style,
            labels=[texts.get(p, f"prompt {p}") for p in frame["prompt"]],
        )
    y_axis(fig, 0).range = [frame.height - 0.5, -0.5]
    x_axis(fig, 0).update(range=[0, 1.03], tickformat=".0%")
    return dressed(fig)


def resampling(run: Any) -> go.Figure:
    """Task accuracy when outputs are cut at a position and sampled again."""
    frame = finite(
        need(run, "resampling", ("position", "accuracy", "ci_low", "ci_high")), "accuracy", what="accuracy"
    ).sort("position")
    fig = sheet(
        title=f"Sampling again from a position, {model_name(run)}",
        x="tokens kept",
        y="task accuracy",
        interval="95 % Wilson over prompts, none below five",
        n=_outputs(frame),
    )
    more = "baseline" in frame.columns
    if more:  # outputs that end early cannot be cut late: each position has the outputs that reach it
        traces.add_curve(
            fig,
            0,
            numbers(frame, "position"),
            numbers(frame, "baseline"),
            name="the same outputs, sampled from the start",
            style=theme.Style(theme.NEUTRAL, "dash", "square"),
            hover="%{x} tokens kept: %{y:.1%}",
        )
    traces.add_curve(
        fig,
        0,
        numbers(frame, "position"),
        numbers(frame, "accuracy"),
        name="sampled again from here",
        style=theme.Style(theme.BLUE),
        legend=more,
        low=numbers(frame, "ci_low"),
        high=numbers(frame, "ci_high"),
        hover="%{x} tokens kept: %{y:.1%}",
    )
    traces.level_axis(fig, 0)
    y_axis(fig, 0).tickformat = ".0%"
    return dressed(fig)


def _outputs(frame: pl.DataFrame) -> str | None:
    """How many outputs were cut, and of how many prompts."""
    if "outputs" not in frame.columns:
        return None
    of = f" of {frame['prompts'].max()} prompts" if "prompts" in frame.columns else ""
    return f"{frame['outputs'].max()} outputs{of}"


def openings(run: Any) -> go.Figure:
    """The common openings of the aligned model, of which one is the nudge."""
    frame = need(run, "openings", ("opening", "tokens", "share"))
    rows = [
        (f"{o}", t, f"{s:.1%}", "given to the other model" if c else "")
        for o, t, s, c in frame.select(
            "opening",
            "tokens",
            "share",
            *(["chosen"] if "chosen" in frame.columns else [pl.lit(False).alias("chosen")]),
        ).iter_rows()
    ]
    rows.sort(key=lambda row: not row[3])
    return word_table(
        ["opening", "tokens", "samples", ""], rows, title="Common openings", note="Openings that many samples share."
    )
