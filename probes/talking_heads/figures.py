"""Figures of the talking-heads probe: the channels on the map of heads, the components of the strongest pairs, and what
cutting and scaling channels does."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go
import polars as pl

from workbench.core.errors import InputError
from workbench.figures import heads, traces
from workbench.figures import style as theme
from workbench.figures.layout import about, dressed, sheet, ticks, x_axis
from workbench.figures.run_tables import drawn, finite, info, model_name, need, numbers

ARROWS = 20
PANELS = 6
KINDS = {"q": "queries", "k": "keys", "v": "values"}
ABLATIONS = {
    "weight": ("removed from the weights", theme.Style(theme.BLUE)),
    "activation": ("held at its mean", theme.Style(theme.OCHRE, "solid", "square")),
    "random": ("other components of the same heads", theme.Style(theme.NEUTRAL, "solid", "diamond")),
}
METRICS = {"attention": "attention to the target", "logit_difference": "logit difference", "accuracy": "accuracy"}


def channel_map(run: Any) -> go.Figure:
    """The strongest channel that leaves each head, and the channels as arrows."""
    frame = finite(need(run, "heads", ("layer", "head", "out_strength")), "out_strength", what="strength of a head")
    channels = need(run, "channels", ("source_layer", "target_layer", "kind", "z", "z_heads", "is_channel"))
    marked = channels.filter(pl.col("is_channel")).with_columns(
        pl.min_horizontal("z", "z_heads").alias("least_z"),
        pl.col("kind").replace_strict({key: f"into {value}" for key, value in KINDS.items()}).alias("side"),
    )
    fig = heads.head_map(
        frame,
        value="out_strength",
        label="strongest channel out (z)",
        n_layers=info(run, "model", "layers"),
        n_heads=info(run, "model", "heads"),
        n_kv_heads=info(run, "model", "kv_heads"),
        more=[c for c in ("in_strength",) if c in frame.columns],
        title=f"Channels between the heads of {model_name(run)}",
        n=None,
    )
    count = heads.add_links(fig, marked, weight="least_z", group="side", most=ARROWS)
    arrows = "Arrow: the one pair" if count == 1 else f"Arrows: the {count} strongest pairs"
    said = f"{arrows} of heads with a channel" if count else "No component is a channel"
    least = info(run, "config", "outlier", default=6.0)
    note = (
        f"{said} (z of at least {least:g} against random directions and against the components of all earlier heads)."
    )
    if int(info(run, "model", "heads", default=1)) != int(info(run, "model", "kv_heads", default=1)):
        note += " An arrow into keys or values ends at the first head of the group that shares them."
    return dressed(about(fig, note=" ".join(filter(None, [(fig.layout.meta or {}).get("note"), note]))))


def components(run: Any) -> go.Figure:
    """The score of every component of the sending head, for the pairs of heads with the strongest channels."""
    frame = need(run, "components", ("source_layer", "source_head", "component", "target_layer", "score", "null_mean"))
    pair = ["source_layer", "source_head", "target_layer", "target_head", "kind"]
    pairs = frame.unique(pair, keep="first", maintain_order=True).head(PANELS)
    if pairs.is_empty():
        raise InputError("There is no pair of heads whose components could be drawn.")
    names = [f"{a}.{b} → {c}.{d} ({KINDS[k]})" for a, b, c, d, k in pairs.select(pair).iter_rows()]
    fig = sheet(
        names,
        title=f"Components of the sending heads of {model_name(run)}",
        x="component, by singular value",
        y="composition score",
        aspect=0.7,
        note="Dashed: mean of random directions; dotted: three standard deviations above.",
    )
    for i, row in enumerate(pairs.iter_rows(named=True)):
        own = frame.filter(*(pl.col(name) == row[name] for name in pair)).sort("component")
        traces.add_points(
            fig,
            i,
            numbers(own, "component"),
            numbers(own, "score"),
            name="component",
            style=theme.Style(theme.BLUE),
            hover=[
                f"component {c}<br>score {s:.3f}, z {z:.1f}<br>singular value {v:.3g}"
                for c, s, z, v in own.select("component", "score", "z", "singular_value").iter_rows()
            ],
            legend=False,
        )
        last = max(own.height - 1, 1)
        for level, dash in ((row["null_mean"], "dash"), (row["null_mean"] + 3 * row["null_sd"], "dot")):
            traces.add_curve(
                fig,
                i,
                [0, last],
                [level, level],
                name="random directions" if dash == "dash" else "three sd above",
                style=theme.Style(theme.NEUTRAL, dash),
                markers=False,
                legend=i == 0,
            )
        fig.layout[f"yaxis{'' if i == 0 else i + 1}"].rangemode = "tozero"
    return dressed(fig)


def ablation(run: Any) -> go.Figure:
    """How attention to the target changes without channels, on each task and receiver."""
    frame = need(run, "ablation", ("task", "target_layer", "target_head", "channels", "ablation", "metric", "change"))
    frame = finite(frame.filter(pl.col("metric") == "attention"), "change", what="change of attention")
    tasks = frame.select("task", "target_layer", "target_head").unique(maintain_order=True).head(PANELS)
    named = [f"{task}: {layer}.{head}" for task, layer, head in tasks.iter_rows()]
    count = max(
        frame.filter(pl.col("task") == t, pl.col("target_layer") == a, pl.col("target_head") == b)[
            "channels"
        ].n_unique()
        for t, a, b in tasks.iter_rows()
    )
    labels = []
    for task, layer, head in tasks.iter_rows():
        own = frame.filter(pl.col("task") == task, pl.col("target_layer") == layer, pl.col("target_head") == head)
        labels.append(own["channels"].unique(maintain_order=True).to_list())
    fig = sheet(
        named,
        title=f"Attention to the target without channels, {model_name(run)}",
        x="change of attention",
        y_ticks=[ticks([-k for k in range(len(own))], [_short(name) for name in own], keep=True) for own in labels],
        share_y=False,
        share_x=True,
        aspect=max(0.4, 0.16 * count + 0.2),
        columns=2,
        row=1.6,
        interval="95 % over clusters of prompts, of other components over their draws too",
        n=_clusters(frame),
        note="A sending component is written layer.head/component, counted from 0; + 5: five more were cut with it.",
    )
    for i, ((task, layer, head), own) in enumerate(zip(tasks.iter_rows(), labels)):
        mine = frame.filter(pl.col("task") == task, pl.col("target_layer") == layer, pl.col("target_head") == head)
        for shift, (name, (words, style)) in enumerate(ABLATIONS.items()):
            rows = mine.filter(pl.col("ablation") == name)
            traces.add_spots(
                fig,
                i,
                numbers(rows, "change"),
                [-own.index(c) + 0.22 * (1 - shift) for c in rows["channels"].to_list()],
                name=words,
                style=style,
                low=numbers(rows, "change_low"),
                high=numbers(rows, "change_high"),
                labels=[f"{words}, {c}" for c in rows["channels"].to_list()],
                legend=i == 0,
            )
        traces.add_rule(fig, i, x=0.0)
        fig.layout[f"yaxis{'' if i == 0 else i + 1}"].range = [-len(own) + 0.4, 0.6]
    return dressed(fig)


def sweep(run: Any) -> go.Figure:
    """The task at each scale of the channels: accuracy and attention, by how many there are to choose from."""
    frame = need(run, "sweep", ("task", "scale", "size", "split", "metric", "value", "ci_low", "ci_high"))
    frame = frame.filter(pl.col("split") == "measured")
    metrics = [m for m in ("accuracy", "attention") if frame.filter(pl.col("metric") == m).height]
    if not metrics:
        raise InputError("There is no sweep to draw: no channel was scaled on a task of this run.")
    task, receiver = frame["task"][0], f"{frame['target_layer'][0]}.{frame['target_head'][0]}"
    sizes = sorted(frame["size"].drop_nulls().unique().to_list())
    sizes = [None] if len(sizes) < 2 else [None, *sizes]
    looks = theme.sequence(["all" if s is None else str(s) for s in sizes])
    fig = sheet(
        ["" for _ in metrics],
        title=f"Channels into {receiver} of {model_name(run)}, scaled",
        x="factor of the coordinates",
        y=[METRICS[m] for m in metrics],
        share_y=False,
        aspect=0.75,
        interval="95 % over clusters of prompts, drawn for all sizes together",
        n=_clusters(frame),
        note=f"Task: {task}, on the prompts that did not choose the receiver. Channels: {frame['channels'][0]}. "
        "Lines by the number of things to choose from.",
    )
    for i, metric in enumerate(metrics):
        for each in sizes:
            own = frame.filter(pl.col("metric") == metric).filter(
                pl.col("size").is_null() if each is None else pl.col("size") == each
            )
            whole = each is None
            traces.add_curve(
                fig,
                i,
                numbers(own, "scale"),
                numbers(own, "value"),
                name="all" if whole else f"{each} things",
                style=looks["all" if whole else str(each)],
                low=numbers(own, "ci_low") if whole else None,
                high=numbers(own, "ci_high") if whole else None,
                legend=i == 0,
                markers=True,
            )
        traces.add_rule(fig, i, x=1.0, text="plain" if i == 0 else "")
        if metric == "accuracy":
            traces.level_axis(fig, i)
        x_axis(fig, i).update(zeroline=False)
    return dressed(fig)


FIGURES = {"channel_map": channel_map, "components": components, "ablation": ablation, "sweep": sweep}


def figures(run: Any) -> dict[str, go.Figure]:
    """Every figure that the tables of the run allow."""
    return drawn(run, FIGURES)


def _short(name: str) -> str:
    parts = name.split(", ")
    return name if len(parts) == 1 else f"{parts[0]} + {len(parts) - 1}"


def _clusters(frame: pl.DataFrame) -> str | None:
    n = [int(v) for v in frame["n"].drop_nulls().unique().to_list()] if "n" in frame.columns else []
    if not n:
        return None
    return f"{min(n)} clusters" if len(set(n)) == 1 else f"{min(n)} to {max(n)} clusters"
