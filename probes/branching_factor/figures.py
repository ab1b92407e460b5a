"""Figures of the branching-factor probe: how many next steps a model considers, along the output and between models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl

from workbench.core.errors import InputError
from workbench.core.nearest_name import nearest
from workbench.figures import style as theme
from workbench.figures import traces
from workbench.figures.choices import Choice
from workbench.figures.layout import dressed, sheet, shorten, ticks, x_axis, y_axis
from workbench.figures.run_tables import drawn, finite, info, maybe, model_name, need, numbers
from workbench.figures.text_table import word_table
from workbench.figures.tree import tree_figure, words_tree

INTERVAL = "95 % bootstrap over prompts and samples"
LABEL = "branching factor"


def positions(run: Any) -> go.Figure:
    """Branching factor along the output: of everything up to a position, in windows, and how many samples are still
    going."""
    frame = _with_condition(need(run, "positions", ("position", "bf_prefix")), run)
    return _positions(frame, f"Branching factor of {model_name(run)} along the output", n=_size(run))


def prompts(run: Any) -> go.Figure:
    """Branching factor of every prompt, with its interval."""
    frame = finite(_with_condition(need(run, "prompts", ("prompt", "bf")), run), "bf", what=LABEL)
    conditions = frame["condition"].unique(maintain_order=True).to_list()
    names = _prompt_names(frame)
    order = (
        frame.group_by("prompt", maintain_order=True)
        .agg(pl.col("bf").max())
        .sort("bf", descending=True)["prompt"]
        .to_list()
    )
    order = order[:30]
    fig = sheet(
        title=f"Branching factor of each prompt, {model_name(run)}",
        x=LABEL,
        y_ticks=ticks(range(len(order)), [names[p] for p in order], keep=True),
        row=max(1.0, 0.55 * len(conditions)),
        aspect=0.05 * len(order),
        interval="95 % bootstrap over samples",
        n=_size(run),
        note=f"The {len(order)} prompts with the largest values." if len(order) < frame["prompt"].n_unique() else "",
    )
    for j, (name, style) in enumerate(_looks(conditions).items()):
        part = frame.filter((pl.col("condition") == name) & pl.col("prompt").is_in(order))
        at = np.array([order.index(p) for p in part["prompt"]]) + (j - (len(conditions) - 1) / 2) * min(
            0.25, 0.8 / len(conditions)
        )
        traces.add_spots(
            fig,
            0,
            numbers(part, "bf"),
            at,
            low=numbers(part, "ci_low"),
            high=numbers(part, "ci_high"),
            name=name,
            style=style,
            labels=[names[p] for p in part["prompt"]],
        )
    traces.add_rule(fig, 0, x=1, dash="dot")
    y_axis(fig, 0).range = [len(order) - 0.5, -0.5]
    _maybe_log(fig, numbers(frame, "bf"), which="x")
    return dressed(fig)


def conditions(run: Any) -> go.Figure:
    """Branching factor of every condition (model, nudge, setting), with its interval."""
    frame = finite(need(run, "conditions", ("condition", "bf", "ci_low", "ci_high")), "bf", what=LABEL)
    if frame.height < 2:
        raise InputError("The run has one condition only: there is nothing to compare (choose a study).")
    names = frame["condition"].to_list()
    fig = sheet(
        title=f"Branching factor by condition, {model_name(run)}",
        x=LABEL,
        y_ticks=ticks(range(len(names)), names, keep=True),
        row=1.4,
        aspect=0.08 * len(names),
        interval=INTERVAL,
        n=_size(run),
    )
    for j, (name, style) in enumerate(_looks(names).items()):
        part = frame.filter(pl.col("condition") == name)
        traces.add_spots(
            fig,
            0,
            numbers(part, "bf"),
            [j],
            low=numbers(part, "ci_low"),
            high=numbers(part, "ci_high"),
            name=name,
            style=style,
            labels=[name],
            legend=False,
        )
    traces.add_rule(fig, 0, x=1, dash="dot")
    y_axis(fig, 0).range = [len(names) - 0.5, -0.5]
    _maybe_log(fig, np.concatenate([numbers(frame, "bf"), numbers(frame, "ci_high")]), which="x")
    return dressed(fig)


def ratio(run: Any) -> go.Figure:
    """How many times larger one condition's branching factor is than another's."""
    frame = finite(need(run, "comparisons", ("a", "b", "ratio", "ratio_low", "ratio_high")), "ratio", what="ratio")
    names = [f"{a} / {b}" for a, b in zip(frame["a"], frame["b"])]
    fig = sheet(
        title=f"Ratios of branching factors, {model_name(run)}",
        x="ratio of branching factors",
        y_ticks=ticks(range(len(names)), names, keep=True),
        row=1.5,
        aspect=0.08 * len(names),
        interval="95 % bootstrap over prompts (paired) and samples",
        n=f"{frame['prompts'].max()} prompts" if "prompts" in frame.columns else None,
    )
    values = numbers(frame, "ratio")
    traces.add_bars(
        fig,
        0,
        np.arange(len(names)),
        values,
        name="ratio",
        style=[theme.colour(a) for a in frame["a"]],
        horizontal=True,
        legend=False,
        low=numbers(frame, "ratio_low"),
        high=numbers(frame, "ratio_high"),
        width=0.55,
        labels=names,
    )
    traces.add_rule(fig, 0, x=1, dash="dash")
    y_axis(fig, 0).range = [len(names) - 0.4, -0.6]
    top = np.nanmax(np.concatenate([values, numbers(frame, "ratio_high"), [1.0]]))
    fig.layout.xaxis.range = [0, 1.06 * top]
    return dressed(fig)


def entropy(run: Any) -> go.Figure:
    """How the entropy of single steps is distributed."""
    frame = _with_condition(need(run, "samples", ("entropy",)), run)
    column = "step_entropy" if "step_entropy" in frame.columns else "entropy"
    if isinstance(frame[column].dtype, pl.List):
        frame = frame.select("condition", column).explode(column)
    frame = finite(frame, column, what="entropy")
    names = frame["condition"].unique(maintain_order=True).to_list()
    values = numbers(frame, column)
    edges = np.linspace(0, max(float(values.max()), 0.1) * 1.0001, 41)
    fig = sheet(
        title=f"Entropy of single steps of {model_name(run)}"
        if column == "step_entropy"
        else f"Mean entropy of the samples of {model_name(run)}",
        x="entropy (nats)",
        y="share of steps" if column == "step_entropy" else "share of samples",
        n=f"{frame.height} {'steps' if column == 'step_entropy' else 'samples'}",
    )
    for name, style in _looks(names[:7]).items():
        part = numbers(frame.filter(pl.col("condition") == name), column)
        traces.add_histogram(fig, 0, part, edges=edges, name=name, style=style)
    return dressed(fig)


def enough(run: Any) -> go.Figure:
    """The branching factor and its interval against the number of samples."""
    frame = finite(_with_condition(need(run, "enough", ("samples", "bf", "ci_low", "ci_high")), run), "bf", what=LABEL)
    if frame["samples"].n_unique() < 2:
        raise InputError("The table 'enough' has one number of samples only: there is no curve to draw.")
    names = frame["condition"].unique(maintain_order=True).to_list()
    fig = sheet(
        title=f"How many samples are enough, {model_name(run)}",
        x="samples per prompt",
        y=LABEL,
        interval="95 % of runs with so many samples (subsets of the samples taken, scaled for their overlap)",
    )
    for name, style in _looks(names[:7]).items():
        part = frame.filter(pl.col("condition") == name).sort("samples")
        traces.add_curve(
            fig,
            0,
            numbers(part, "samples"),
            numbers(part, "bf"),
            name=name,
            style=style,
            low=numbers(part, "ci_low"),
            high=numbers(part, "ci_high"),
            hover="%{x} samples: %{y:.4g}",
        )
    return dressed(fig)


def complexity(run: Any) -> go.Figure:
    """Branching factor against how much of the prompt is given."""
    frame = finite(need(run, "complexity", ("model", "level", "bf")), "bf", what=LABEL)
    ends = maybe(run, "conditions", ("condition", "ci_low", "ci_high"))
    if ends is not None and "condition" in frame.columns:
        frame = frame.join(ends.select("condition", "ci_low", "ci_high"), on="condition", how="left")
    unit = info(run, "config", "unit", default="units")
    fig = sheet(
        title="Branching factor and the length of the prompt",
        x=f"prompt given ({unit})",
        y=LABEL,
        interval=INTERVAL,
        n=_size(run),
    )
    whole, counted = frame["level"].min() < 0, frame["level"].max()
    for name, style in _looks(frame["model"].unique(maintain_order=True).to_list()).items():
        part = (
            frame.filter(pl.col("model") == name)
            .with_columns(at=pl.when(pl.col("level") < 0).then(counted + 1).otherwise(pl.col("level")))
            .sort("at")
        )
        traces.add_curve(
            fig,
            0,
            numbers(part, "at"),
            numbers(part, "bf"),
            name=name,
            style=style,
            low=numbers(part, "ci_low"),
            high=numbers(part, "ci_high"),
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
        x="share of the impact (largest less smallest mean)",
        y_ticks=ticks(range(frame.height), [names.get(f, f) for f in frame["factor"]], keep=True),
        row=1.5,
        aspect=0.08 * frame.height,
        interval="95 % bootstrap over prompts and samples",
        n=_size(run),
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


def nudging(run: Any) -> go.Figure:
    """Branching factor before and after an opening is given: the nudge, and openings of the model's own as control."""
    steps = need(run, "nudging", ("model", "given", "condition"))
    ends = need(run, "conditions", ("condition", "bf", "ci_low", "ci_high")).select(
        "condition", "bf", "ci_low", "ci_high"
    )
    frame = finite(steps.join(ends, on="condition", how="left"), "bf", what=LABEL)
    fig = sheet(
        title="Branching factor before and after an opening",
        y=LABEL,
        x_ticks=ticks([0, 1], ["nothing given", "after an opening"], keep=True),
        interval=INTERVAL,
        n=_size(run),
    )
    models = frame["model"].unique(maintain_order=True).to_list()
    for name, style in _looks(models).items():
        before = frame.filter((pl.col("model") == name) & (pl.col("given") == "nothing"))
        for given, dash in (("opening", None), ("own opening", "dot")):
            after = frame.filter((pl.col("model") == name) & (pl.col("given") == given))
            if before.is_empty() or after.is_empty():
                continue
            both = pl.concat([before, after])
            look = theme.Style(style.colour, dash or style.dash, "diamond" if dash else style.symbol)
            x = np.array([0.0, 1.0]) + (0.04 * (models.index(name) - (len(models) - 1) / 2) if not dash else 0.04)
            whose = "its own opening" if dash else f"the opening of {models[-1]}"
            traces.add_curve(
                fig,
                0,
                x,
                numbers(both, "bf"),
                name=f"{name}, {whose}",
                style=look,
                low=numbers(both, "ci_low"),
                high=numbers(both, "ci_high"),
                hover="%{y:.4g}",
            )
    x_axis(fig, 0).range = [-0.35, 1.35]
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
    frame = finite(need(run, "signature", ("condition", *kinds)), "nll_given", what="signature")
    names = frame["condition"].to_list()
    fig = sheet(
        title="Does the model expect what it reads?",
        x="nats per token",
        y_ticks=ticks(range(len(kinds)), list(kinds.values()), keep=True),
        row=1.8,
        aspect=0.09 * len(kinds),
        interval="95 % bootstrap over prompts and texts",
        n=_size(run),
        note="Given text: the prompts of the data, read as text.",
    )
    for j, (name, style) in enumerate(_looks(names).items()):
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
    texts = _prompt_names(need(run, "prompts", ("prompt", "text")).filter(pl.col("condition") == "direct"))
    frame = frame.head(30)
    fig = sheet(
        title=f"Different answers, direct and verbalised, {model_name(run)}",
        x="different answers among as many of either",
        y_ticks=ticks(range(frame.height), [texts.get(p, f"prompt {p}") for p in frame["prompt"]], keep=True),
        row=1.2,
        aspect=0.06 * frame.height,
        n=_size(run),
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
        interval="95 % bootstrap over prompts",
        n=f"{frame['outputs'].max()} outputs" if "outputs" in frame.columns else None,
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


def tree(
    run: Any, *, prompt: int | None = None, condition: str | None = None, leaves: int = 14, levels: int = 5
) -> go.Figure:
    """The samples of one prompt as a prefix tree: `prompt` (its number in the data; default: the first whose samples
    part) under `condition` (default: the run's first). Raises InputError naming what there is for one that the run does
    not have."""
    table = _tree_table(run)
    frame = _with_condition(need(run, table, ("prompt",)), run)
    known = frame["condition"].unique(maintain_order=True).to_list()
    condition = known[0] if condition is None else condition
    if condition not in known:
        raise InputError(
            f"There is no condition '{condition}'{nearest(condition, known)} in the run; there are {', '.join(known)}."
        )
    frame = frame.filter(pl.col("condition") == condition)
    if (
        "row" in frame.columns
    ):  # several outputs of one prompt (cut and sampled again) have a tree each; the first is drawn
        frame = frame.filter(pl.col("row") == pl.col("row").min().over("prompt"))
    if prompt is None:
        counts = frame.group_by("prompt", maintain_order=True).len()
        prompt = (counts.filter(pl.col("len") > 2)["prompt"].to_list() or counts["prompt"].to_list())[0]
    have = frame["prompt"].unique(maintain_order=True).to_list()
    frame = frame.filter(pl.col("prompt") == prompt)
    if frame.is_empty():
        raise InputError(
            f"There is no prompt {prompt} in condition '{condition}'; its prompts are {have[0]} to {have[-1]}."
        )
    nodes = frame if table == "tree" else words_tree([str(t) for t in frame["text"]])
    text = _prompt_text(run, prompt, condition)
    count = int(nodes.filter(pl.col("parent") < 0)["count"][0]) if "count" in nodes.columns else None
    return tree_figure(
        nodes,
        leaves=leaves,
        levels=levels,
        title=f"Continuations of “{shorten(text, 60)}”, {condition}" if text else f"Continuations of prompt {prompt}",
        n=f"{count} samples" if count else None,
    )


def _tree_table(run: Any) -> str:
    """The table from which trees are drawn."""
    columns = ("prompt", "node", "parent", "text", "probability", "bf")
    return "tree" if maybe(run, "tree", columns) is not None else "samples"


def tree_choices(run: Any, chosen: Mapping[str, Any]) -> list[Choice]:
    """The condition, where there are several, and the prompt whose samples :func:`tree` draws."""
    frame = _with_condition(need(run, _tree_table(run), ("prompt",)), run)
    conditions = frame["condition"].unique(maintain_order=True).to_list()
    found = []
    if len(conditions) > 1:
        frame = frame.filter(pl.col("condition") == chosen.get("condition", conditions[0]))
        options = {str(name): name for name in conditions}
        found.append(Choice("condition", "Condition", options, "What the samples were drawn under."))
    options = {"first that parts": None} | {str(row): int(row) for row in sorted(frame["prompt"].unique().to_list())}
    help = "Whose samples are drawn, by its row in the table `prompts`."
    return [*found, Choice("prompt", "Prompt", options, help)]


def compare(runs: Sequence[Any]) -> go.Figure:
    """Several runs in one figure: branching factor along the output, the first condition of each."""
    frames = []
    for run in runs:
        frame = _with_condition(need(run, "positions", ("position", "bf_prefix")), run)
        name = model_name(run)
        if any(name == f["condition"][0] for f in frames):
            name = f"{name} ({getattr(run, 'id', len(frames))})"
        frames.append(frame.filter(pl.col("condition") == frame["condition"][0]).with_columns(condition=pl.lit(name)))
    return _positions(pl.concat(frames, how="diagonal_relaxed"), "Branching factor along the output")


FIGURES = {
    "positions": positions,
    "conditions": conditions,
    "ratio": ratio,
    "prompts": prompts,
    "entropy": entropy,
    "complexity": complexity,
    "impact": impact,
    "nudging": nudging,
    "signature": signature,
    "verbalised": verbalised,
    "resampling": resampling,
    "openings": openings,
    "enough": enough,
    "tree": tree,
}
CHOICES = {"tree": tree_choices}


def figures(run: Any) -> dict[str, go.Figure]:
    """Every figure that the tables of the run allow."""
    return drawn(run, FIGURES)


def _positions(frame: pl.DataFrame, title: str, n: str | None = None) -> go.Figure:
    frame = finite(frame, "bf_prefix", what=LABEL)
    panels = [("up to here", "bf_prefix", LABEL)]
    if "bf_window" in frame.columns and np.isfinite(numbers(frame, "bf_window")).any():
        panels.append(("in windows", "bf_window", LABEL))
    if "alive" in frame.columns and frame.group_by("condition").agg(pl.col("alive").n_unique())["alive"].max() > 1:
        panels.append(("samples still going", "alive", "share of samples"))
    names = frame["condition"].unique(maintain_order=True).to_list()
    fig = sheet(
        [p[0] for p in panels],
        title=title,
        x="position in the output (tokens)",
        y=[p[2] for p in panels],
        share_y=False,
        aspect=0.75,
        interval=INTERVAL,
        n=n,
    )
    for i, (_, column, _) in enumerate(panels):
        values = []
        for name, style in _looks(names).items():
            part = frame.filter(pl.col("condition") == name).sort("position")
            y = numbers(part, column)
            y = y / y.max() if column == "alive" else y
            values.append(y)
            low, high = {"bf_prefix": ("ci_low", "ci_high"), "bf_window": ("window_low", "window_high")}.get(
                column, (None, None)
            )
            traces.add_curve(
                fig,
                i,
                numbers(part, "position"),
                y,
                name=name,
                style=style,
                legend=i == 0,
                markers=False,
                low=numbers(part, low) if low else None,
                high=numbers(part, high) if high else None,
                hover="position %{x}: %{y:.3g}",
            )
        if column == "alive":
            traces.level_axis(fig, i)
        elif np.nanmax(np.concatenate(values)) > 12:
            traces.log_axis(y_axis(fig, i), np.concatenate(values))
    return dressed(fig)


def _looks(names: Sequence[str]) -> dict[str, theme.Style]:
    """Models keep their colour; conditions of one model are told apart by the order in which they are listed."""
    looks = theme.styles(names)
    if len({style.colour for style in looks.values()}) == len(looks):
        return looks
    return theme.sequence(names)


def _with_condition(frame: pl.DataFrame, run: Any) -> pl.DataFrame:
    return frame if "condition" in frame.columns else frame.with_columns(condition=pl.lit(model_name(run)))


def _size(run: Any) -> str | None:
    frame = maybe(run, "prompts", ("prompt", "samples"))
    if frame is None or frame.is_empty():
        return None
    return f"{frame['prompt'].n_unique()} prompts × {frame['samples'].max()} samples"


def _prompt_names(frame: pl.DataFrame) -> dict[Any, str]:
    texts = frame["text"].to_list() if "text" in frame.columns else frame["prompt"].to_list()
    return {
        p: " ".join(str(t).split()) if "text" in frame.columns or isinstance(p, str) else f"prompt {p}"
        for p, t in zip(frame["prompt"], texts)
    }


def _prompt_text(run: Any, prompt: Any, condition: str) -> str:
    if isinstance(prompt, str):
        return prompt
    frame = maybe(run, "prompts", ("prompt", "text"))
    found = frame.filter(pl.col("prompt") == prompt) if frame is not None else None
    if found is not None and "condition" in found.columns:
        found = found.filter(pl.col("condition") == condition)
    return "" if found is None or found.is_empty() else " ".join(str(found["text"][0]).split())


def _maybe_log(fig: go.Figure, values: np.ndarray, *, which: str) -> None:
    values = values[np.isfinite(values) & (values > 0)]
    if len(values) and values.max() / values.min() > 12:
        traces.log_axis(x_axis(fig, 0) if which == "x" else y_axis(fig, 0), values)
