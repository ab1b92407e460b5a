"""Figures of the concept-depth probe: at which layer a concept can be read, and whether the model uses what is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl

from probes.concept_depth.above_chance import HAS_NONE
from workbench.core.errors import InputError
from workbench.figures import style as theme
from workbench.figures import traces
from workbench.figures.layout import dressed, sheet, ticks, x_axis, y_axis
from workbench.figures.run_tables import drawn, finite, info, maybe, model_name, need, numbers

INTERVAL = (
    "95 %, over independent groups of test rows (rows where they have none): of a share for accuracy, of a mean for "
    "the separation of answers, bootstrap for what has no formula; none below five groups"
)
PANELS = 21  # of a set each: what a page, or a screen, holds
COLUMNS = 3
# what the points of the depth table are called in a figure, and their marker
POINTS = {
    "jump": ("jump", "triangle-up"),
    "comprehension": ("accuracy 0.7", "x"),
    "converge_stable": ("converged (flat from here)", "square"),
    "converge_after_jump": ("first flat step after the jump", "diamond"),
    "converge_literal": ("last flat step (as written)", "circle"),
}
MARKED = ("jump", "converge_stable")


def curves(run: Any) -> go.Figure:
    """Accuracy over layers, a small panel for every concept: with its interval, the shuffled labels beside it, and the
    points that these do not show."""
    frame = _layers(run)
    condition = frame["condition"][0]
    frame = frame.filter(pl.col("condition") == condition)
    names = frame["dataset"].unique(maintain_order=True).to_list()
    points = maybe(run, "depth", ("dataset", "condition", *MARKED))
    n_layers = int(frame["layer"].max()) + 1
    shown, left_out = _on_a_page(names)
    fig = sheet(
        shown,
        title=f"Where concepts become readable in {model_name(run)}",
        x="layer",
        y="probe accuracy",
        x_ticks=ticks(range(n_layers)),
        aspect=_aspect(len(shown)),
        columns=COLUMNS,
        interval=INTERVAL,
        note=" ".join(
            (
                "Grey: the same probes on shuffled labels, mean and the range of 95 % of the courses.",
                "Triangle: jump. Square: converged. Points that shuffled labels show too are not drawn; the words say",
                "why there is no jump.",
                f"Condition: {traces.safe(condition)}." if condition != "clean" else "",
                left_out,
            )
        ).strip(),
        n=_test_rows(frame),
    )
    for i, name in enumerate(shown):
        own = frame.filter(pl.col("dataset") == name).sort("layer")
        x, y = numbers(own, "layer"), numbers(own, "accuracy")
        _control(fig, i, own)
        traces.add_curve(
            fig,
            i,
            x,
            y,
            name="probe",
            style=theme.Style(theme.BLUE),
            low=numbers(own, "ci_low"),
            high=numbers(own, "ci_high"),
            legend=i == 0,
            markers=n_layers < 4,
            hover="layer %{x}: %{y:.3f}",
        )
        if points is not None:
            found = points.filter((pl.col("dataset") == name) & (pl.col("condition") == condition))
            _mark_points(fig, i, found, dict(zip(x.tolist(), y)), n_layers, name, theme.Style(theme.BLUE))
            _say_why_not(fig, i, found, y)
        _accuracy_axis(fig, i, frame)
    return dressed(fig)


def _on_a_page(names: Sequence[str], most: int = PANELS) -> tuple[list[str], str]:
    """The concepts that have a panel, and what the caption says of the others."""
    rest = list(names[most:])
    others = (
        "" if not rest else f"Not drawn: {len(rest)} further concepts ({traces.safe(rest[0])}, …), see `concept_map`."
    )
    return list(names[:most]), others


def _aspect(panels: int) -> float:
    """Height over width of a panel, so that all of them fit a screen."""
    rows = -(-panels // COLUMNS)
    return min(0.75, max(0.25, 640 / rows - 34) / 265)


def _say_why_not(fig: go.Figure, i: int, points: pl.DataFrame, accuracy: np.ndarray) -> None:
    """Words in place of a jump that there is none of: where the curve leaves room for them."""
    if "jump_says" not in points.columns or points.is_empty():
        return
    said = str(points["jump_says"][0])
    if said.startswith("—, ") and said != HAS_NONE:
        room_above = np.nanmax(accuracy[len(accuracy) // 2 :]) < 0.75
        traces.add_note(fig, i, said.removeprefix("—, "), y=1.0 if room_above else 0.0)


def _mark_points(
    fig: go.Figure, panel: int, points: pl.DataFrame, accuracy: dict, n_layers: int, name: str, style: theme.Style
) -> None:
    """Mark those points of one curve, `accuracy` by layer, that it has."""
    for key in MARKED if points.height else ():
        depth = points[key][0]
        if depth is None or not np.isfinite(depth):
            continue
        layer = round(depth * n_layers)
        label, symbol = POINTS[key]
        traces.add_points(
            fig,
            panel,
            [layer],
            [accuracy[layer]] if layer in accuracy else [],
            name=name,
            style=theme.Style(style.colour, "solid", symbol),
            hover=[f"{traces.safe(name)}: {label} at layer {layer}"],
            legend=False,
            opacity=1,
            large=True,
        )


def concept_map(run: Any) -> go.Figure:
    """Accuracy of every concept at every layer, the concepts ordered by where they become readable."""
    frame = _layers(run)
    conditions = frame["condition"].unique(maintain_order=True).to_list()
    first = frame.filter(pl.col("condition") == conditions[0])
    names = [
        name
        for name, _ in sorted(
            ((n, _readable_at(first, n)) for n in first["dataset"].unique(maintain_order=True)),
            key=lambda item: item[1],
        )
    ]
    names += [n for n in frame["dataset"].unique(maintain_order=True).to_list() if n not in names]
    layers = list(range(int(frame["layer"].max()) + 1))
    fig = sheet(
        [str(c) if len(conditions) > 1 else "" for c in conditions],
        title=f"Concepts by layer in {model_name(run)}",
        x="layer",
        y="",
        x_ticks=ticks(layers),
        y_ticks=ticks(range(len(names)), names, keep=True),
        aspect=min(0.9, max(0.14, len(names) / max(len(layers), 1))),
        cells=(len(names), len(layers)),
        columns=2,
        n=_test_rows(frame),
        note="Concepts are ordered by the layer at which they reach nine tenths of their gain.",
    )
    ends = (min(0.5, float(numbers(frame, "accuracy").min())), 1.0)
    traces.colour_scale(fig, ends, "probe accuracy")
    for i, condition in enumerate(conditions):
        values = np.full((len(names), len(layers)), np.nan)
        for name, layer, accuracy in (
            frame.filter(pl.col("condition") == condition).select("dataset", "layer", "accuracy").iter_rows()
        ):
            values[names.index(name), layer] = np.nan if accuracy is None else accuracy
        row, column = np.indices(values.shape)
        custom = np.empty((*values.shape, 3), dtype=object)
        custom[..., 0] = np.array([traces.safe(n) for n in names], dtype=object)[row]
        custom[..., 1], custom[..., 2] = column, values
        labels = np.vectorize(lambda v: f"{v:.2f}".lstrip("0") if np.isfinite(v) else "")(values)
        traces.add_cells(
            fig,
            i,
            values,
            custom=custom,
            hover="%{customdata[0]}, layer %{customdata[1]}: %{customdata[2]:.3f}",
            ends=ends,
            labels=labels,
            reverse=True,
        )
    return dressed(fig)


def points(run: Any) -> go.Figure:
    """The depths of every concept, with their intervals: jump and the readings of the converging point."""
    frame = need(run, "depth", ("dataset", "condition", "jump", "converge_stable"))
    shown = [k for k in POINTS if k in frame.columns]
    if not any(np.isfinite(numbers(frame, k)).any() for k in shown):
        raise InputError(
            "No concept has a jump or a converging point that shuffled labels do not show: no depth to draw."
        )
    conditions = frame["condition"].unique(maintain_order=True).to_list()
    rows = frame["dataset"].unique(maintain_order=True).to_list()
    fig = sheet(
        [str(c) if len(conditions) > 1 else "" for c in conditions],
        title=f"Depth of concepts in {model_name(run)}",
        x="relative depth",
        y_ticks=ticks(range(len(rows)), rows, keep=True),
        row=min(2.6, 40 / len(rows)),
        aspect=min(0.85, 0.1 * len(rows)),
        columns=2,
        interval="95 % bootstrap over independent groups, among resamples that have the point; none below five groups",
        note="Points that shuffled labels show too, or that a curve does not have, are not drawn.",
        n=_test_rows(frame),
    )
    for i, condition in enumerate(conditions):
        here = frame.filter(pl.col("condition") == condition)
        at = np.array([rows.index(d) for d in here["dataset"]])
        for j, (key, style) in enumerate(theme.sequence(shown).items()):
            label, symbol = POINTS[key]
            traces.add_spots(
                fig,
                i,
                numbers(here, key),
                at + (j - (len(shown) - 1) / 2) * 0.14,
                name=label,
                labels=here["dataset"].to_list(),
                style=theme.Style(style.colour, "solid", symbol),
                legend=i == 0,
                low=numbers(here, f"{key}_low"),
                high=numbers(here, f"{key}_high"),
            )
        x_axis(fig, i).range = [-0.03, 1.03]
        y_axis(fig, i).range = [len(rows) - 0.5, -0.5]
    return dressed(fig)


def selectivity(run: Any) -> go.Figure:
    """Accuracy minus that on control tasks, which give every word type a random label, over layers."""
    frame = finite(
        need(run, "layers", ("dataset", "condition", "layer", "selectivity")), "selectivity", what="selectivity"
    )
    condition = frame["condition"][0]
    frame = frame.filter(pl.col("condition") == condition)
    concepts, left_out = _on_a_page(frame["dataset"].unique(maintain_order=True).to_list())
    fig = sheet(
        concepts,
        title=f"Selectivity of the probes on {model_name(run)}",
        x="layer",
        y="accuracy − control tasks",
        x_ticks=ticks(range(int(frame["layer"].max()) + 1)),
        aspect=_aspect(len(concepts)),
        columns=COLUMNS,
        note=f"Control tasks: a random label for every word type. Dotted: no more than by heart. {left_out}".strip(),
        interval="95 % of a difference: over independent groups of test rows and over control tasks; none below five",
        n=_test_rows(frame),
    )
    for i, name in enumerate(concepts):
        own = frame.filter(pl.col("dataset") == name).sort("layer")
        traces.add_curve(
            fig,
            i,
            numbers(own, "layer"),
            numbers(own, "selectivity"),
            name="selectivity",
            style=theme.Style(theme.BLUE),
            low=numbers(own, "selectivity_low"),
            high=numbers(own, "selectivity_high"),
            legend=False,
            hover="layer %{x}: %{y:.3f}",
        )
        traces.add_rule(fig, i, y=0, dash="dot")
    return dressed(fig)


def conditions(run: Any) -> go.Figure:
    """One panel per concept: its curve under every condition (noise, weight precision)."""
    frame = _layers(run)
    names = frame["condition"].unique(maintain_order=True).to_list()
    if len(names) < 2:
        raise InputError("The run has one condition only: there is nothing to compare (set noise or precision).")
    concepts, left_out = _on_a_page(frame["dataset"].unique(maintain_order=True).to_list())
    looks = theme.sequence(names)
    fig = sheet(
        concepts,
        title=f"Noise and precision: concepts in {model_name(run)}",
        x="layer",
        y="probe accuracy",
        x_ticks=ticks(range(int(frame["layer"].max()) + 1)),
        aspect=_aspect(len(concepts)),
        columns=COLUMNS,
        note=left_out,
        interval=INTERVAL,
        n=_test_rows(frame),
    )
    for i, concept in enumerate(concepts):
        for name in names:
            own = frame.filter((pl.col("dataset") == concept) & (pl.col("condition") == name)).sort("layer")
            if own.is_empty():
                continue
            traces.add_curve(
                fig,
                i,
                numbers(own, "layer"),
                numbers(own, "accuracy"),
                name=str(name),
                style=looks[name],
                legend=i == 0,
                low=numbers(own, "ci_low"),
                high=numbers(own, "ci_high"),
                markers=False,
                hover="layer %{x}: %{y:.3f}",
            )
        _accuracy_axis(fig, i, frame)
    return dressed(fig)


def causal(run: Any) -> go.Figure:
    """The model's own answer when the probe's direction is projected out, against random directions."""
    frame = finite(need(run, "causal", ("dataset", "layer", "direction", "separation")), "separation", what="answer")
    # each panel has its own layers below it
    concepts, left_out = _on_a_page(frame["dataset"].unique(maintain_order=True).to_list(), PANELS - 2 * COLUMNS)
    site = info(run, "config", "site")
    where = (
        ""
        if site is None
        else f" ({site}; the residual stream still carries what is removed there)"
        if not str(site).startswith("resid")
        else f" ({site})"
    )
    fig = sheet(
        concepts,
        title=f"Answers of {model_name(run)} without the direction that the probe reads",
        x="layer of the projection",
        y="separation of the answers (logits)",
        aspect=0.6 * _aspect(len(concepts)),
        columns=COLUMNS,
        share_y=False,
        share_x=False,
        note=f"Dotted: the unedited model. Random directions: mean and range over draws. One token's state in one "
        f"layer is edited{where}. {left_out}".strip(),
        interval=INTERVAL,
        n=_clusters(frame, "n"),
    )
    random, probe = theme.Style(theme.NEUTRAL, "dash", "square"), theme.Style(theme.BLUE)
    for i, concept in enumerate(concepts):
        here = frame.filter(pl.col("dataset") == concept)
        value = pl.col("separation").cast(pl.Float64)
        drawn_at = (
            here.filter(pl.col("direction") == "random")
            .group_by("layer")
            .agg(value.mean(), low=value.min(), high=value.max())
        )
        own = here.filter(pl.col("direction") == "probe").sort("layer")
        for name, style, data, ends in (
            ("random direction", random, drawn_at.sort("layer"), ("low", "high")),
            ("probe direction", probe, own, ("separation_low", "separation_high")),
        ):
            if not data.is_empty():
                traces.add_curve(
                    fig,
                    i,
                    numbers(data, "layer"),
                    numbers(data, "separation"),
                    name=name,
                    style=style,
                    legend=i == 0,
                    low=numbers(data, ends[0]),
                    high=numbers(data, ends[1]),
                    hover="layer %{x}: %{y:.3f}",
                )
        base = here.filter(pl.col("direction") == "none")
        if not base.is_empty():
            traces.add_rule(fig, i, y=float(base["separation"][0]), dash="dot")
        layers = sorted(set(here.filter(pl.col("layer") >= 0)["layer"].to_list()))
        if layers:
            x_axis(fig, i).range = [min(layers) - 0.5, max(layers) + 0.5]
            x_axis(fig, i).update(tickmode="linear", dtick=max(1, len(layers) // 6), tick0=0)
    return dressed(fig)


def transfer(run: Any) -> go.Figure:
    """AUC of the probes of every concept on every other, in the layer where the first one's own curve is highest."""
    frame = need(run, "transfer", ("train", "test", "layer", "picked", "auc", "above_chance")).filter(pl.col("picked"))
    frame = finite(frame, "auc", what="transfer")
    names = list(dict.fromkeys([*frame["train"].to_list(), *frame["test"].to_list()]))
    layer = dict(frame.select("train", "layer").iter_rows())
    values, marked = np.full((len(names), len(names)), np.nan), np.zeros((len(names), len(names)), dtype=bool)
    for train, test, auc, above in frame.select("train", "test", "auc", "above_chance").iter_rows():
        values[names.index(train), names.index(test)] = auc
        marked[names.index(train), names.index(test)] = above
    rows = [f"{name} (layer {layer[name]})" if name in layer else name for name in names]
    fig = sheet(
        title=f"Probes of one concept on another in {model_name(run)}",
        x="tested on",
        y="fitted on",
        x_ticks=ticks(range(len(names)), names, keep=True),
        y_ticks=ticks(range(len(names)), rows, keep=True),
        cells=values.shape,
        aspect=min(0.7, max(0.2, 0.07 * len(names))),
        n=_clusters(frame, "n"),
        note="AUC; 0.5 is chance. Each row in the layer where the first concept's own curve is highest. Outlined: "
        "above probes of its shuffled labels (p below 0.05, adjusted over layers; at least 0.05 above). No interval "
        "is drawn; the table has them.",
    )
    ends = (0.0, 1.0)
    traces.colour_scale(fig, ends, "AUC")
    row, column = np.indices(values.shape)
    safe = np.array([traces.safe(n) for n in names], dtype=object)
    custom = np.empty((*values.shape, 3), dtype=object)
    custom[..., 0], custom[..., 1], custom[..., 2] = safe[row], safe[column], values
    traces.add_cells(
        fig,
        0,
        values,
        custom=custom,
        hover="%{customdata[0]} → %{customdata[1]}: %{customdata[2]:.3f}",
        ends=ends,
        labels=np.vectorize(lambda v: f"{v:.2f}".lstrip("0") if np.isfinite(v) else "")(values),
        marked=marked,
        reverse=True,
    )
    return dressed(fig)


def path(run: Any) -> go.Figure:
    """Peak accuracy against the strength of the penalty."""
    frame = finite(need(run, "path", ("dataset", "c", "layer", "accuracy")), "accuracy", what="accuracy")
    best = frame.group_by("dataset", "c", maintain_order=True).agg(pl.col("accuracy").max()).sort("c")
    if best["c"].n_unique() < 2:
        raise InputError("The table 'path' has one value of c only: there is no path to draw.")
    fig = sheet(
        title=f"Peak accuracy against the penalty, {model_name(run)}",
        x="C (inverse penalty)",
        y="accuracy of the best layer",
    )
    traces.log_axis(x_axis(fig, 0), numbers(best, "c"))
    for name, style in theme.sequence(best["dataset"].unique(maintain_order=True).to_list()).items():
        own = best.filter(pl.col("dataset") == name)
        traces.add_curve(fig, 0, numbers(own, "c"), numbers(own, "accuracy"), name=name, style=style)
    return dressed(fig)


def compare(runs: Sequence[Any]) -> go.Figure:
    """Several models over relative depth, one panel per concept (the first condition of each run)."""
    frames = {}
    for run in runs:
        name, frame = model_name(run), _layers(run)
        label = name if name not in frames else f"{name} ({getattr(run, 'id', len(frames))})"
        frames[label] = frame.filter(pl.col("condition") == frame["condition"][0])
    concepts = list(dict.fromkeys(d for f in frames.values() for d in f["dataset"].to_list()))
    shared = [c for c in concepts if sum(c in f["dataset"].to_list() for f in frames.values()) > 1] or concepts
    looks = theme.styles(frames)
    shared, left_out = _on_a_page(shared)
    fig = sheet(
        shared,
        title="Where concepts become readable",
        x="relative depth",
        y="probe accuracy",
        aspect=_aspect(len(shared)),
        columns=COLUMNS,
        note=left_out,
        interval=INTERVAL,
    )
    seen: set[str] = set()
    for i, concept in enumerate(shared):
        for name, frame in frames.items():
            own = frame.filter(pl.col("dataset") == concept).sort("layer")
            if own.is_empty():
                continue
            depth = numbers(own, "layer") / (int(frame["layer"].max()) + 1)
            traces.add_curve(
                fig,
                i,
                depth,
                numbers(own, "accuracy"),
                name=name,
                style=looks[name],
                legend=name not in seen,
                markers=False,
                low=numbers(own, "ci_low"),
                high=numbers(own, "ci_high"),
                hover="depth %{x:.2f}: %{y:.3f}",
            )
            seen.add(name)
        _accuracy_axis(fig, i, pl.concat([f.select("accuracy", "ci_low") for f in frames.values()]))
    return dressed(fig)


FIGURES = {
    "curves": curves,
    "concept_map": concept_map,
    "points": points,
    "selectivity": selectivity,
    "conditions": conditions,
    "causal": causal,
    "transfer": transfer,
    "path": path,
}


def figures(run: Any) -> dict[str, go.Figure]:
    """Every figure that the tables of the run allow."""
    return drawn(run, FIGURES)


def _layers(run: Any) -> pl.DataFrame:
    frame = need(run, "layers", ("dataset", "condition", "layer", "accuracy", "ci_low", "ci_high"))
    return finite(frame, "accuracy", what="accuracy")


def _test_rows(frame: pl.DataFrame) -> str | None:
    """What n is: independent groups, and the rows that are in them."""
    if "n_test" not in frame.columns:
        return None
    rows = _span(frame["n_test"])
    if "n" not in frame.columns:
        return f"{rows} test rows"
    several = frame["dataset"].n_unique() > 1
    return f"{_span(frame['n'])} independent groups ({rows} test rows)" + (" per concept" if several else "")


def _clusters(frame: pl.DataFrame, column: str) -> str | None:
    return None if column not in frame.columns else f"{_span(frame[column])} independent groups of test rows"


def _span(values: pl.Series) -> str:
    low, high = values.min(), values.max()
    return f"{low}" if low == high else f"{low} to {high}"


def _control(fig: go.Figure, i: int, own: pl.DataFrame) -> None:
    """The course on shuffled labels of one concept, with the range of the courses."""
    if "control_accuracy" not in own.columns or not np.isfinite(numbers(own, "control_accuracy")).any():
        return
    traces.add_curve(
        fig,
        i,
        numbers(own, "layer"),
        numbers(own, "control_accuracy"),
        name="shuffled labels",
        style=theme.Style(theme.NEUTRAL, "dot"),
        low=numbers(own, "control_low"),
        high=numbers(own, "control_high"),
        legend=i == 0,
        markers=False,
        hover="layer %{x}: %{y:.3f}",
    )


def _accuracy_axis(fig: go.Figure, i: int, frame: pl.DataFrame) -> None:
    """From below chance to 1: the whole range would hide what happens above chance."""
    lows = np.concatenate([numbers(frame, c) for c in ("accuracy", "ci_low", "control_low")])
    least = min(0.45, float(np.nanmin(lows)) - 0.02)
    y_axis(fig, i).range = [max(-0.03, least), 1.03]


def _readable_at(frame: pl.DataFrame, name: str) -> tuple[float, str]:
    """The first layer at nine tenths of the way from the first accuracy to the peak."""
    own = frame.filter(pl.col("dataset") == name).sort("layer")
    accuracy = numbers(own, "accuracy")
    reached = np.flatnonzero(accuracy >= accuracy[0] + 0.9 * (accuracy.max() - accuracy[0]))
    return float(numbers(own, "layer")[reached[0]]), name
