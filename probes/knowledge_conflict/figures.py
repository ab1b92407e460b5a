"""Figures of the knowledge-conflict probe: heads that pull towards memory or context, and what pruning them does."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl

from workbench.figures import heads, traces
from workbench.figures import style as theme
from workbench.figures.layout import dressed, sheet, ticks, x_axis, y_axis
from workbench.figures.run_tables import drawn, finite, info, maybe, model_name, need, numbers, summary_value
from workbench.figures.text_table import word_table
from workbench.stats import intervals as statistics

MEMORY, CONTEXT, OTHER = (
    theme.Style(theme.BLUE),
    theme.Style(theme.RED, "solid", "square"),
    theme.Style(theme.OCHRE, "solid", "diamond"),
)
KINDS = (("memory", MEMORY), ("context", CONTEXT))


def head_map(run: Any) -> go.Figure:
    """Memory minus context importance of every head; memory and context heads outlined."""
    frame = _heads(run).with_columns(balance=pl.col("memory_importance") - pl.col("context_importance"))
    marked = None
    if "role" in frame.columns:
        frame, marked = frame.with_columns(chosen=pl.col("role").is_in(["memory", "context"])), "chosen"
    return heads.head_map(
        frame,
        value="balance",
        label="memory − context importance",
        n_layers=info(run, "model", "layers"),
        n_heads=info(run, "model", "heads"),
        n_kv_heads=info(run, "model", "kv_heads"),
        diverging=True,
        marked=marked,
        more=[c for c in ("memory_importance", "context_importance", "ci_low", "ci_high") if c in frame.columns],
        title=f"Heads of {model_name(run)} that pull towards memory or context",
        note=("Outlined: memory and context heads. " if marked else "") + _variant(run),
        n=_items(run),
    )


def roles(run: Any) -> go.Figure:
    """Context against memory importance of every head."""
    frame = _heads(run)
    fig = sheet(
        title=f"Memory and context importance of the heads of {model_name(run)}",
        x="memory importance",
        y="context importance",
        aspect=0.8,
        note=_variant(run),
        n=_items(run),
    )
    role = frame["role"].fill_null("") if "role" in frame.columns else pl.Series([""] * frame.height)
    for name, style in (
        ("other heads", theme.Style(theme.NEUTRAL)),
        ("memory heads", MEMORY),
        ("context heads", CONTEXT),
    ):
        kind = name.split()[0]
        part = frame.filter(role == kind if kind != "other" else ~role.is_in(["memory", "context"]))
        if part.is_empty():
            continue
        rows = part.select("layer", "head", "memory_importance", "context_importance").iter_rows()
        traces.add_points(
            fig,
            0,
            numbers(part, "memory_importance"),
            numbers(part, "context_importance"),
            name=name,
            style=style,
            hover=[f"layer {a}, head {b}<br>memory {m:.3f}, context {c:.3f}" for a, b, m, c in rows],
            custom=part.select("layer", "head").to_numpy(),
            opacity=0.5 if kind == "other" else 0.9,
        )
    traces.add_rule(fig, 0, x=0, dash="dot")
    traces.add_rule(fig, 0, y=0, dash="dot")
    return dressed(fig)


def layer_profile(run: Any) -> go.Figure:
    """Importance of each kind per layer, summed over the heads that help it."""
    frame = _heads(run)
    layers = frame.group_by("layer").agg(
        *(pl.col(f"{kind}_importance").clip(lower_bound=0).sum().alias(kind) for kind, _ in KINDS)
    )
    layers = layers.sort("layer")
    fig = sheet(
        title=f"Where memory and context act in {model_name(run)}",
        x="layer",
        y="importance, summed over heads",
        x_ticks=ticks(range(int(layers["layer"].max()) + 1)),
        note="Heads with a positive importance. " + _variant(run),
        n=_items(run),
    )
    for kind, style in KINDS:
        traces.add_curve(
            fig,
            0,
            numbers(layers, "layer"),
            numbers(layers, kind),
            name=kind,
            style=style,
            hover="layer %{x}: %{y:.3f}",
        )
    return dressed(fig)


def flow(run: Any) -> go.Figure:
    """Change of both answers' probabilities when a window of layers is knocked out, one panel per component and
    source."""
    frame = need(run, "flow", ("component", "window_start", "delta_memory", "delta_context"))
    frame = frame.filter(pl.col("delta_memory").is_not_null() | pl.col("delta_context").is_not_null())
    source = pl.col("source").fill_null("") if "source" in frame.columns else pl.lit("")
    frame = frame.with_columns(panel=pl.concat_str([pl.col("component"), source], separator="\t"))
    keys = frame["panel"].unique(maintain_order=True).to_list()
    width = frame["window"][0] if "window" in frame.columns else info(run, "config", "window")
    fig = sheet(
        [_panel_name(key) for key in keys],
        title=f"What carries memory and context in {model_name(run)}",
        x="first layer of the window",
        y="change of probability",
        aspect=0.7,
        note="What the last position receives is knocked out in a window of layers"
        + (f" ({width} wide)." if isinstance(width, int) and width > 0 else "."),
        interval="95 % bootstrap over items" if "memory_low" in frame.columns else "",
        n=int(frame["n"].max()) if "n" in frame.columns else _items(run),
    )
    for i, key in enumerate(keys):
        part = frame.filter(pl.col("panel") == key).sort("window_start")
        for kind, style in KINDS:
            ends = [f"{kind}_low", f"{kind}_high"]
            banded = set(ends) <= set(part.columns)
            traces.add_curve(
                fig,
                i,
                numbers(part, "window_start"),
                numbers(part, f"delta_{kind}"),
                name=f"{kind} answer",
                style=style,
                legend=i == 0,
                low=numbers(part, ends[0]) if banded else None,
                high=numbers(part, ends[1]) if banded else None,
                hover="layers from %{x}: %{y:+.3f}",
            )
        traces.add_rule(fig, i, y=0, dash="dot")
    return dressed(fig)


def pruning(run: Any) -> go.Figure:
    """Rates of memory, context and other answers against the number of pruned heads, with random heads of the same
    layers."""
    frame = need(run, "pruning", ("role", "k", "heads", "draw", "memory_rate", "context_rate", "other_rate"))
    roles = [r for r in ("context", "memory") if r in frame["role"].to_list()]
    roles += [r for r in frame["role"].unique(maintain_order=True).to_list() if r not in (*roles, None, "none")]
    fig = sheet(
        [f"{role} heads pruned" for role in roles],
        title=f"Answers of {model_name(run)} as heads are pruned",
        x="pruned heads (k)",
        y="share of answers",
        interval="95 % Wilson over items; random heads the range over draws",
        note="Solid: the named heads. Dashed: random heads of the same layers.",
        n=_items(run, test=True),
    )
    ablation = (
        frame["ablation"].drop_nulls().unique(maintain_order=True).to_list() if "ablation" in frame.columns else []
    )
    if len(ablation) > 1:
        frame = frame.filter(pl.col("ablation") == ablation[0])
    unpruned = frame.filter(pl.col("k") == 0)
    for i, role in enumerate(roles):
        part = frame.filter((pl.col("role") == role) & (pl.col("k") > 0))
        for kind, style in (*KINDS, ("other", OTHER)):
            column = f"{kind}_rate"
            start = unpruned[column].cast(pl.Float64).mean() if not unpruned.is_empty() else None
            for group in ("random", "top"):
                data = _per_k(part.filter(pl.col("heads") == group), column, ends=(f"{kind}_low", f"{kind}_high"))
                if data.is_empty():
                    continue
                k, y, low, high = (numbers(data, c) for c in ("k", "mean", "low", "high"))
                if start is not None:
                    k, y, low, high = _from_unpruned(unpruned, column, (k, y, low, high), f"{kind}_low", f"{kind}_high")
                look = style if group == "top" else theme.Style(style.colour, "dash", f"{style.symbol}-open")
                name = f"{kind} answers" if group == "top" else f"{kind} answers, random heads"
                traces.add_curve(
                    fig,
                    i,
                    k,
                    y,
                    name=name,
                    style=look,
                    legend=i == 0 and group == "top",
                    low=low,
                    high=high,
                    hover="k = %{x}: %{y:.1%}",
                )
        traces.level_axis(fig, i)
        traces.whole_numbers(x_axis(fig, i), numbers(frame, "k"))
        y_axis(fig, i).tickformat = ".0%"
    return dressed(fig)


def groups(run: Any) -> go.Figure:
    """Answers that follow the side meant, on every kind of conflict: as the model is, with the chosen heads pruned,
    with random heads."""
    frame = need(run, "groups", ("role", "k", "heads", "column", "group", "n", "memory_rate", "context_rate"))
    wanted = [
        (role, side) for role, side in (("context", "memory"), ("memory", "context")) if role in frame["role"].to_list()
    ]
    kinds = frame.select("column", "group").unique(maintain_order=True).rows()
    several = len({column for column, _ in kinds}) > 1
    sizes = dict(zip(frame.select("column", "group").rows(), frame["n"]))
    names = [(f"{column}: {group}" if several else group) + f" ({sizes[column, group]})" for column, group in kinds]
    fig = sheet(
        [f"{role} heads pruned" for role, _ in wanted],
        title=f"Kinds of conflict, {model_name(run)}",
        x=[f"share of {side} answers" for _, side in wanted],
        y_ticks=ticks(range(len(names)), names, keep=True),
        share_x=False,
        row=1.6,
        aspect=0.1 * len(names),
        interval="95 % Wilson over items",
        note="Test items by the file's own columns, their number in brackets.",
        n=_items(run, test=True),
    )
    colours = dict(KINDS)
    for i, (role, side) in enumerate(wanted):
        looks = (
            ("as it is", (frame["k"] == 0), theme.Style(theme.NEUTRAL, "solid", "circle"), -0.22),
            (
                "random heads pruned",
                (frame["heads"] == "random"),
                theme.Style(theme.NEUTRAL, "dash", "circle-open"),
                0.0,
            ),
            (f"heads pruned, for {side}", (frame["k"] > 0) & (frame["heads"] == "top"), colours[side], 0.22),
        )
        for name, chosen, style, shift in looks:
            part = frame.filter(chosen & (frame["role"] == role))
            if part.is_empty():
                continue
            at = [kinds.index(pair) for pair in part.select("column", "group").iter_rows()]
            traces.add_spots(
                fig,
                i,
                numbers(part, f"{side}_rate"),
                np.asarray(at) + shift,
                low=numbers(part, f"{side}_low"),
                high=numbers(part, f"{side}_high"),
                name=name,
                style=style,
                labels=[names[j] for j in at],
                legend=i == 0 or chosen is looks[2][1],
            )
        x_axis(fig, i).range = [-0.08, 1.08]  # the last label of one panel keeps clear of the first of the next
        x_axis(fig, i).tickformat = ".0%"
        y_axis(fig, i).range = [len(names) - 0.5, -0.5]
    return dressed(fig)


def cost(run: Any) -> go.Figure:
    """What pruning costs: accuracy on clean prompts (and perplexity on neutral text) against the number of pruned
    heads."""
    frame = finite(
        need(run, "pruning", ("role", "k", "heads", "clean_accuracy")), "clean_accuracy", what="clean accuracy"
    )
    measures = [("clean_accuracy", "accuracy on clean prompts")]
    measures += [(c, "perplexity on neutral text") for c in ("perplexity", "neutral_perplexity") if c in frame.columns][
        :1
    ]
    roles = [r for r in frame["role"].unique(maintain_order=True).to_list() if r in ("memory", "context")]
    fig = sheet(
        [""] * len(measures),
        title=f"The cost of pruning {model_name(run)}",
        x="pruned heads (k)",
        y=[label for _, label in measures],
        share_y=False,
        interval="95 % Wilson over items; random heads the range over draws",
        n=_items(run, test=True),
    )
    for i, (column, _) in enumerate(measures):
        start = frame.filter(pl.col("k") == 0)[column].cast(pl.Float64).mean()
        ends = ("clean_low", "clean_high") if column == "clean_accuracy" else ("", "")
        for role in roles:
            style = MEMORY if role == "memory" else CONTEXT
            for group in ("top", "random"):
                part = frame.filter((pl.col("role") == role) & (pl.col("heads") == group) & (pl.col("k") > 0))
                data = _per_k(part, column, ends=ends)
                if data.is_empty():
                    continue
                k, y, low, high = (numbers(data, c) for c in ("k", "mean", "low", "high"))
                if start is not None:
                    k, y, low, high = _from_unpruned(frame.filter(pl.col("k") == 0), column, (k, y, low, high), *ends)
                top = group == "top"
                traces.add_curve(
                    fig,
                    i,
                    k,
                    y,
                    name=f"{role} heads" if top else f"random, layers of {role} heads",
                    style=style if top else theme.Style(style.colour, "dash", f"{style.symbol}-open"),
                    legend=i == 0,
                    low=low,
                    high=high,
                    hover="k = %{x}: %{y:.3g}",
                )
        if column == "clean_accuracy":
            traces.level_axis(fig, i)
            y_axis(fig, i).tickformat = ".0%"
    return dressed(fig)


def gradient(run: Any) -> go.Figure:
    """The first-order approximation of every head's effect against the patched one, with Spearman's correlation."""
    frame = need(
        run,
        "heads",
        ("layer", "head", "memory_importance", "context_importance", "gradient_memory", "gradient_context"),
    )
    frame = finite(
        finite(frame, "gradient_memory", what="gradient attribution"), "memory_importance", what="head importance"
    )
    fig = sheet(
        [f"{kind} importance" for kind, _ in KINDS],
        title=f"Gradient attribution against patching, {model_name(run)}",
        x="by patching",
        y="by gradient",
        share_x=False,
        share_y=False,
        aspect=0.85,
        interval="95 % bootstrap over heads",
        n=f"{frame.height} heads",
    )
    rng = np.random.default_rng(0)
    for i, (kind, style) in enumerate(KINDS):
        x, y = numbers(frame, f"{kind}_importance"), numbers(frame, f"gradient_{kind}")
        hover = [
            f"layer {a}, head {b}<br>patching {u:.3f}, gradient {v:.3f}"
            for a, b, u, v in zip(frame["layer"], frame["head"], x, y)
        ]
        traces.add_points(
            fig,
            i,
            x,
            y,
            name=kind,
            style=theme.Style(style.colour),
            hover=hover,
            legend=False,
            opacity=0.6,
            custom=frame.select("layer", "head").to_numpy(),
        )
        good = np.isfinite(x) & np.isfinite(y)
        if good.sum() > 2:
            rho = statistics.spearman(x[good], y[good], rng=rng)
            text = f"ρ = {traces.number(rho.value)} [{traces.number(rho.low)}, {traces.number(rho.high)}]"
            traces.add_note(fig, i, text + _total_rank(run, kind), x=0.0)
            y_axis(fig, i).range = _headroom(y[good])
        x_axis(fig, i).zeroline = y_axis(fig, i).zeroline = False
    return dressed(fig)


def answers(run: Any) -> go.Figure:
    """What the model answers before and after pruning (optional table ``answers``)."""
    frame = need(run, "answers", ("subject", "answer", "distractor", "before", "after"))
    note = "Answers that change come first."
    extra = []
    for column, name in (("role", "pruned heads"), ("k", "k")):
        if column in frame.columns and frame[column].n_unique() > 1:
            extra.append(column)
        elif column in frame.columns:
            note += f" {name.capitalize() if column == 'role' else name}: {frame[column][0]}."
    titles = {
        "subject": "subject",
        "answer": "memory",
        "distractor": "context",
        "role": "pruned",
        "k": "k",
        "before": "answer before",
        "after": "answer after",
    }
    columns = ["subject", "answer", "distractor", *extra, "before", "after"]
    changed = (
        pl.col("before_kind") != pl.col("after_kind")
        if "after_kind" in frame.columns
        else pl.col("before") != pl.col("after")
    )
    shown = frame.with_columns(changed=changed.fill_null(False)).sort("changed", descending=True, maintain_order=True)
    return word_table(
        [titles[c] for c in columns],
        shown.select(columns).rows(),
        title=f"Answers of {model_name(run)} before and after pruning",
        note=note,
    )


FIGURES = {
    "head_map": head_map,
    "pruning": pruning,
    "layer_profile": layer_profile,
    "flow": flow,
    "roles": roles,
    "groups": groups,
    "cost": cost,
    "gradient": gradient,
    "answers": answers,
}


def figures(run: Any) -> dict[str, go.Figure]:
    """Every figure that the tables of the run allow."""
    return drawn(run, FIGURES)


def _heads(run: Any) -> pl.DataFrame:
    frame = need(run, "heads", ("layer", "head", "memory_importance", "context_importance"))
    return finite(
        finite(frame, "memory_importance", what="head importance"), "context_importance", what="head importance"
    )


def _variant(run: Any) -> str:
    names = {
        "direct": "direct path to the logits",
        "direct_mlp": "direct path with MLPs recomputed",
        "total": "total effect",
    }
    variant = info(run, "config", "variant")
    return f"Effect: {names.get(variant, variant)}." if variant else ""


def _items(run: Any, *, test: bool = False) -> int | None:
    frame = maybe(run, "inputs", ("split",))
    if frame is None:
        return None
    rows = frame.filter((pl.col("split") == "test") if test else (pl.col("split") == "find"))
    return rows.height or None


def _total_rank(run: Any, kind: str) -> str:
    """Spearman's correlation with the total effect, which the gradient estimates, where the run patched something
    else."""
    rho = summary_value(run, f"gradient_spearman_{kind}_total")
    return (
        ""
        if rho is None or info(run, "config", "variant") == "total"
        else f"<br>with the total effect: {traces.number(rho)}"
    )


def _panel_name(key: str) -> str:
    component, source = key.split("\t")
    component = component.replace("_", " ")
    component = {"mlp": "MLP output", "attention": "attention output"}.get(component, component)
    return f"{component}, from {source.replace('_', ' ')}" if source and source not in ("none", "all") else component


def _per_k(frame: pl.DataFrame, column: str, *, ends: tuple[str, str]) -> pl.DataFrame:
    """Per k: the mean over draws, with their range, or with the interval of the only draw."""
    value = pl.col(column).cast(pl.Float64)
    frame = frame.filter(value.is_finite())
    own = frame.height > 0 and set(ends) <= set(frame.columns) and frame["k"].n_unique() == frame.height
    low, high = (pl.col(ends[0]).min(), pl.col(ends[1]).max()) if own else (value.min(), value.max())
    return frame.group_by("k").agg(value.mean().alias("mean"), low=low, high=high).sort("k")


def _from_unpruned(unpruned: pl.DataFrame, column: str, curve, low: str, high: str):
    """A curve (k, value, low, high) with the point where nothing is pruned put in front."""
    start = unpruned[column].cast(pl.Float64).mean()
    first = (0, start, *(unpruned[c].mean() if c in unpruned.columns else start for c in (low, high)))
    return tuple(np.append(a, b) for a, b in zip(first, curve))


def _headroom(values: np.ndarray) -> list[float]:
    low, high = float(values.min()), float(values.max())
    span = (high - low) or 1.0
    return [low - 0.05 * span, high + 0.18 * span]
