"""Figures of the knowledge-conflict probe: heads that pull towards memory or context, and what pruning them does."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl
from scipy.stats import spearmanr

from probes.knowledge_conflict.exposed_figures import patching, paths
from probes.knowledge_conflict.figure_style import CONTEXT, KINDS, MEMORY, MIXED, items_of
from probes.knowledge_conflict.pruning_figures import cost, groups, pruning
from workbench.figures import heads, traces
from workbench.figures import style as theme
from workbench.figures.layout import dressed, sheet, ticks, x_axis, y_axis
from workbench.figures.run_tables import drawn, finite, info, model_name, need, numbers, summary_value
from workbench.figures.text_table import word_table


def head_map(run: Any) -> go.Figure:
    """Memory minus context importance of every head; memory and context heads outlined."""
    frame = _heads(run).with_columns(balance=pl.col("memory_importance") - pl.col("context_importance"))
    marked = None
    if "role" in frame.columns:
        frame, marked = frame.with_columns(chosen=pl.col("role").is_in(["memory", "context"])), "chosen"
    fig = heads.head_map(
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
        note=("Outlined: memory and context heads. " if marked else "") + _roles_of(run, frame) + _variant(run),
        n=items_of(run),
    )
    mixed = frame.filter(pl.col("role") == "mixed") if marked else frame.clear()
    if not mixed.is_empty():
        traces.add_points(
            fig,
            0,
            numbers(mixed, "head"),
            numbers(mixed, "layer"),
            name="mixed heads",
            style=MIXED,
            hover=_mixed_by(mixed),
        )
    return fig


def roles(run: Any) -> go.Figure:
    """Context against memory importance of every head."""
    frame = _heads(run)
    fig = sheet(
        title=f"Memory and context importance of the heads of {model_name(run)}",
        x="memory importance",
        y="context importance",
        aspect=0.8,
        note=_roles_of(run, frame) + _variant(run),
        n=items_of(run),
    )
    role = frame["role"].fill_null("") if "role" in frame.columns else pl.Series([""] * frame.height)
    for name, style in (
        ("other heads", theme.Style(theme.NEUTRAL)),
        ("memory heads", MEMORY),
        ("context heads", CONTEXT),
        ("mixed heads", MIXED),
    ):
        kind = name.split()[0]
        own = frame.filter(role == kind if kind != "other" else ~role.is_in(["memory", "context", "mixed"]))
        if own.is_empty():
            continue
        rows = own.select("layer", "head", "memory_importance", "context_importance").iter_rows()
        traces.add_points(
            fig,
            0,
            numbers(own, "memory_importance"),
            numbers(own, "context_importance"),
            name=name,
            style=style,
            hover=[f"layer {a}, head {b}<br>memory {m:.3f}, context {c:.3f}" for a, b, m, c in rows],
            heads=own.select("layer", "head").to_numpy(),
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
        n=items_of(run),
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
        interval="95 % t over subjects" if "memory_low" in frame.columns else "",
        n=items_of(run),
    )
    for i, key in enumerate(keys):
        own = frame.filter(pl.col("panel") == key).sort("window_start")
        for kind, style in KINDS:
            ends = [f"{kind}_low", f"{kind}_high"]
            banded = set(ends) <= set(own.columns)
            traces.add_curve(
                fig,
                i,
                numbers(own, "window_start"),
                numbers(own, f"delta_{kind}"),
                name=f"{kind} answer",
                style=style,
                legend=i == 0,
                low=numbers(own, ends[0]) if banded else None,
                high=numbers(own, ends[1]) if banded else None,
                hover="layers from %{x}: %{y:+.3f}",
            )
        traces.add_rule(fig, i, y=0, dash="dot")
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
        interval="95 % bootstrap over subjects",
        n=items_of(run) or f"{frame.height} heads",
    )
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
            heads=frame.select("layer", "head").to_numpy(),
        )
        good = np.isfinite(x) & np.isfinite(y)
        if good.sum() > 2:
            rho = spearmanr(x[good], y[good]).statistic
            text = f"ρ = {traces.number(rho)}{_ends(run, f'gradient_spearman_{kind}')}"
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
    "patching": patching,
    "paths": paths,
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


def _mixed_by(mixed: pl.DataFrame) -> list[str]:
    by = mixed["mixed_by"].to_list() if "mixed_by" in mixed.columns else [""] * mixed.height
    return [
        f"layer {a}, head {b}: mixed<br>{traces.safe(c or '')}" for a, b, c in zip(mixed["layer"], mixed["head"], by)
    ]


def _roles_of(run: Any, frame: pl.DataFrame) -> str:
    """How heads came by their roles, where the run says it."""
    false = summary_value(run, "false_roles_expected")
    if false is None or "role" not in frame.columns:
        return ""
    found = frame.filter(pl.col("role") != "none").height
    mixed = " Mixed: opposite signs in kinds of conflict, or both answers." if "mixed" in frame["role"] else ""
    return f"{found} roles at a false discovery rate of 5 %, {traces.number(false)} false in expectation.{mixed} "


def _ends(run: Any, key: str) -> str:
    """The interval of a number of the summary, in brackets; nothing where it has none."""
    value = (run.summary or {}).get(key)
    if not isinstance(value, dict) or value.get("low") is None:
        return ""
    return f" [{traces.number(value['low'])}, {traces.number(value['high'])}]"


def _variant(run: Any) -> str:
    names = {
        "direct": "direct path to the logits",
        "direct_mlp": "direct path with MLPs recomputed",
        "total": "total effect",
    }
    variant = (run.summary or {}).get("variant") or info(run, "config", "variant")
    return f"Effect: {names.get(variant, variant)}." if variant else ""


def _total_rank(run: Any, kind: str) -> str:
    """Spearman's correlation with the total effect, which the gradient estimates, where the run patched something
    else."""
    rho = summary_value(run, f"gradient_spearman_{kind}_total")
    return (
        ""
        if rho is None or "total" in ((run.summary or {}).get("variant"), info(run, "config", "variant"))
        else f"<br>with the total effect: {traces.number(rho)}"
    )


def _panel_name(key: str) -> str:
    component, source = key.split("\t")
    component = component.replace("_", " ")
    component = {"mlp": "MLP output", "attention": "attention output"}.get(component, component)
    return f"{component}, from {source.replace('_', ' ')}" if source and source not in ("none", "all") else component


def _headroom(values: np.ndarray) -> list[float]:
    low, high = float(values.min()), float(values.max())
    span = (high - low) or 1.0
    return [low - 0.05 * span, high + 0.18 * span]
